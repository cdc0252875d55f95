//! What the server does when it is asked: health, work, loading and unloading.
//! Each request is answered in a thread of its own, so that one that hangs does not keep the others waiting.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use simgpu::ClaimError;
use tiny_http::{Request, Response, Server};

use crate::api::{self, Asked};
use crate::args::{Args, Completion};
use crate::health;
use crate::life::Ending;
use crate::models::Models;

pub struct Service {
    args: Args,
    models: Mutex<Models>,
    warm_since: OnceLock<Instant>,
    endings: Sender<Ending>,
}

struct Answer {
    status: u16,
    body: Value,
    /// It dies of this once it has answered.
    fatal: Option<String>,
    /// The body is the text itself, and no JSON.
    raw: bool,
}

impl Service {
    pub fn new(args: &Args, models: Models, endings: Sender<Ending>) -> Arc<Self> {
        Arc::new(Self {
            args: args.clone(),
            models: Mutex::new(models),
            warm_since: OnceLock::new(),
            endings,
        })
    }

    pub fn listen(self: &Arc<Self>) -> io::Result<()> {
        let server = Server::http((self.args.host, self.args.port)).map_err(io::Error::other)?;
        let service = Arc::clone(self);
        thread::spawn(move || {
            for request in server.incoming_requests() {
                let service = Arc::clone(&service);
                thread::spawn(move || service.answer(request));
            }
        });
        Ok(())
    }

    pub fn models(&self) -> MutexGuard<'_, Models> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_warm_now(&self) {
        self.warm_since.get_or_init(Instant::now);
    }

    fn answer(self: &Arc<Self>, mut request: Request) {
        let mut text = String::new();
        request.as_reader().read_to_string(&mut text).ok();
        let body = serde_json::from_str(&text).unwrap_or_default();
        let path = request.url().split('?').next().unwrap_or_default();
        let is_completion = request.method().as_str() == "POST" && path == "/v1/completions";
        let answer = match (self.warm_since.get(), request.method().as_str()) {
            (Some(_), _) if is_completion => self.complete(),
            (None, _) => Answer::new(503, json!({"status": "loading"})),
            (Some(warm_since), method) => match (self.asked(method, path, &body), method) {
                (Some(answer), _) => answer,
                (None, "GET" | "HEAD") if self.is_well(*warm_since) => {
                    return health::respond(self.args.misbehaviour.health, request);
                }
                (None, "GET" | "HEAD") => Answer::new(503, json!({"status": "unhealthy"})),
                (None, _) => Answer::new(404, json!({"error": "not found"})),
            },
        };
        // A client that has gone away does not change what happened.
        let body = match (answer.raw, answer.body.as_str()) {
            (true, Some(text)) => text.to_owned(),
            _ => answer.body.to_string(),
        };
        let response = Response::from_string(body);
        request.respond(response.with_status_code(answer.status)).ok();
        if let Some(error) = answer.fatal {
            self.endings.send(Ending::Failed(error)).ok();
        }
    }

    fn is_well(&self, warm_since: Instant) -> bool {
        self.args.misbehaviour.unhealthy_after.is_none_or(|after| warm_since.elapsed() < after)
    }

    fn complete(&self) -> Answer {
        let misbehaviour = &self.args.misbehaviour;
        thread::sleep(misbehaviour.completion_delay);
        let completion =
            |text| json!({"object": "text_completion", "choices": [{"index": 0, "text": text}]});
        match misbehaviour.completion {
            Completion::Ok => Answer::new(200, completion(" and a good day to you")),
            Completion::Empty => Answer::new(200, completion("")),
            Completion::Garbage => {
                Answer { raw: true, ..Answer::new(200, json!("<html>gateway</html>")) }
            }
            Completion::Error => Answer::new(500, json!({"error": "internal error"})),
            Completion::Oom => {
                eprintln!(
                    "{}: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
                    self.args.name
                );
                Answer::new(500, json!({"error": "out of memory"}))
            }
            Completion::Crash => {
                Answer { fatal: Some("engine core died".to_owned()), ..Answer::new(500, json!({})) }
            }
        }
    }

    /// The work and the API; none if it is neither.
    fn asked(self: &Arc<Self>, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let mut models = self.models();
        if (method, path) == ("POST", "/work") {
            let all = models.all.clone();
            return Some(Answer::to_load(models.load(&all), json!({"status": "done"})));
        }
        Some(match api::understand(self.args.unload.api, method, path, body, &models)? {
            Asked::Tell(answer) => Answer::new(200, answer),
            Asked::NoSuchModel(model) => {
                Answer::new(404, json!({"error": format!("model '{model}' not found")}))
            }
            Asked::Load(names, answer) => Answer::to_load(models.load(&names), answer),
            Asked::Unload(names, answer) => {
                models.asleep = true;
                let (service, loads) = (Arc::clone(self), models.loads);
                if !self.args.unload.unload_ignored {
                    thread::spawn(move || service.unload(&names, loads));
                }
                Answer::new(200, answer)
            }
        })
    }

    /// Once the delay is over, unless something was loaded in between.
    fn unload(&self, names: &[String], loads: u64) {
        thread::sleep(self.args.unload.unload_delay);
        let mut models = self.models();
        if models.loads == loads
            && let Err(error) = models.unload(names)
        {
            self.endings.send(Ending::Failed(error.to_string())).ok();
        }
    }
}

impl Answer {
    fn new(status: u16, body: Value) -> Self {
        Self { status, body, fatal: None, raw: false }
    }

    fn to_load(loaded: Result<(), ClaimError>, body: Value) -> Self {
        match loaded {
            Ok(()) => Self::new(200, body),
            Err(error) => Self {
                status: 500,
                body: json!({"error": error.to_string()}),
                fatal: Some(error.to_string()),
                raw: false,
            },
        }
    }
}
