//! What the server does with a request: it answers health checks, works, loads and unloads. Each
//! request is answered in a thread of its own, so that one that hangs does not keep the others
//! waiting.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use simgpu::ClaimError;
use tiny_http::{Request, Response, Server};

use crate::api::{self, Asked};
use crate::args::{Args, Completion};
use crate::health;
use crate::life::Ending;
use crate::models::Models;
use crate::work::{Job, Work};

const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/// The state that the threads which answer requests share.
pub struct Service {
    args: Args,
    models: Mutex<Models>,
    work: Work,
    /// Models to unload when the running job is done.
    to_unload: Mutex<Vec<String>>,
    warm_since: OnceLock<Instant>,
    endings: Sender<Ending>,
}

struct Answer {
    status: u16,
    body: Value,
    /// The error with which the server ends once it has answered, or `None` if it goes on.
    fatal: Option<String>,
    /// Whether the body is a text that is sent as it is, and not JSON.
    raw: bool,
}

impl Service {
    pub fn new(args: &Args, models: Models, endings: Sender<Ending>) -> Arc<Self> {
        Arc::new(Self {
            args: args.clone(),
            models: Mutex::new(models),
            work: Work::new(&args.name, args.unload.slots),
            to_unload: Mutex::default(),
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
        let url = request.url().to_owned();
        let path = url.split('?').next().unwrap_or_default();
        let method = request.method().as_str().to_owned();
        self.note(&format!("{method} {url}\n"));
        let Some(warm_since) = self.warm_since.get() else {
            return respond(Answer::new(503, json!({"status": "loading"})), request);
        };
        while method == "GET" && self.is_muted(path) {
            thread::sleep(Duration::from_millis(20));
        }
        if method == "GET" && self.args.misbehaviour.mute_at_work {
            self.work.wait_until_idle();
        }
        let answer = match (self.understood(&method, &url, &body), method.as_str()) {
            (Some(Asked::Job(names)), _) if body["stream"] == true => {
                return self.stream(&names, &body, request);
            }
            (Some(asked), _) => self.do_what_is(asked, &body),
            (None, "POST") if path == "/work" => {
                let mut models = self.models();
                let all = models.all.clone();
                Answer::to_load(models.load(&all), json!({"status": "done"}))
            }
            (None, "POST") if path == "/v1/completions" => self.complete(),
            (None, "GET" | "HEAD") if self.is_well(*warm_since) => {
                return health::respond(self.args.misbehaviour.health, request);
            }
            (None, "GET" | "HEAD") => Answer::new(503, json!({"status": "unhealthy"})),
            (None, _) => Answer::new(404, json!({"error": "not found"})),
        };
        let fatal = answer.fatal.clone();
        respond(answer, request);
        if let Some(error) = fatal {
            self.endings.send(Ending::Failed(error)).ok();
        }
    }

    fn is_muted(&self, path: &str) -> bool {
        let paths = self.args.misbehaviour.mute_paths.as_ref();
        let paths = paths.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        paths.lines().any(|muted| muted == path)
    }

    fn note(&self, line: &str) {
        let Some(path) = &self.args.requests else { return };
        if let Ok(mut log) = OpenOptions::new().create(true).append(true).open(path) {
            log.write_all(line.as_bytes()).ok();
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

    fn understood(&self, method: &str, url: &str, body: &Value) -> Option<Asked> {
        api::understand(&self.args.unload, method, url, body, &self.models(), &self.work)
    }

    fn do_what_is(self: &Arc<Self>, asked: Asked, body: &Value) -> Answer {
        match asked {
            Asked::Tell(status, answer) => Answer::new(status, answer),
            Asked::Page(text) => Answer { raw: true, ..Answer::new(200, json!(text)) },
            Asked::Load(names, answer) => {
                thread::sleep(self.args.unload.load_delay);
                Answer::to_load(self.models().load(&names), answer)
            }
            Asked::Job(names) => {
                let job = self.work.take();
                match self.work_at(&job, &names, body, || {}) {
                    true => Answer::new(200, json!({"done": true, "response": "done"})),
                    false => Answer::new(500, json!({"error": "aborted"})),
                }
            }
            Asked::Queued(names) => {
                let (service, job, body) = (Arc::clone(self), self.work.take(), body.clone());
                thread::spawn(move || service.work_at(&job, &names, &body, || {}));
                Answer::new(200, json!({"prompt_id": "1", "number": 1, "node_errors": {}}))
            }
            Asked::Unload(names, answer) => {
                match self.work.running() {
                    0 => self.unload_soon(names),
                    _ => self.to_unload().extend(names),
                }
                Answer::new(200, answer)
            }
            Asked::UnloadWhenIdle(names, answer) => {
                self.work.wait_until_idle();
                thread::sleep(self.args.unload.sleep_delay);
                self.unload_soon(names);
                Answer::new(200, answer)
            }
            Asked::UnloadAtOnce(names, answer) => {
                self.work.abort();
                self.unload_soon(names);
                Answer::new(200, answer)
            }
        }
    }

    fn to_unload(&self) -> MutexGuard<'_, Vec<String>> {
        self.to_unload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a job in its turn, and calls `each` now and then while it runs. Returns whether the job
    /// was done: it may be aborted, and its models may not fit on the card.
    fn work_at(
        self: &Arc<Self>,
        job: &Job,
        models: &[String],
        body: &Value,
        mut each: impl FnMut(),
    ) -> bool {
        let load = || match self.models().load(models) {
            Ok(()) => true,
            Err(error) => {
                self.endings.send(Ending::Failed(error.to_string())).ok();
                false
            }
        };
        let unload = || {
            let names = std::mem::take(&mut *self.to_unload());
            if !names.is_empty() {
                let loads = self.models().loads;
                self.unload(&names, loads);
            }
        };
        let each = || {
            if body["off_card"] != true {
                // If the card is gone, the test has ended.
                self.models().work().ok();
            }
            each();
        };
        self.work.run(job, lasts(body), load, each, unload)
    }

    /// Does a job whose answer comes bit by bit. The answer of a job that is aborted is left
    /// without an end.
    fn stream(self: &Arc<Self>, models: &[String], body: &Value, request: Request) {
        let mut connection = request.into_writer();
        connection.write_all(STREAM.as_bytes()).ok();
        let mut event = |text: &str| {
            write!(connection, "{:x}\r\n{text}\r\n", text.len())?;
            connection.flush()
        };
        let job = self.work.take();
        let is_done = self.work_at(&job, models, body, || {
            event("data: {\"text\": \"word\"}\n\n").ok();
        });
        if is_done {
            event("data: [DONE]\n\n").and_then(|()| event("")).ok();
        }
    }

    fn unload_soon(self: &Arc<Self>, names: Vec<String>) {
        let mut models = self.models();
        models.asleep = true;
        let (service, loads) = (Arc::clone(self), models.loads);
        if !self.args.unload.unload_ignored {
            thread::spawn(move || service.unload(&names, loads));
        }
    }

    /// Unloads models once `--unload-delay` is over, unless something was loaded in between.
    /// `loads` is the number of loads at the time of the request.
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

/// Returns how long the job that a request brings takes.
fn lasts(body: &Value) -> Duration {
    Duration::from_millis(body["ms"].as_u64().unwrap_or(0))
}

/// Sends an answer. Errors are ignored, because a client that has gone away does not change what
/// happened.
fn respond(answer: Answer, request: Request) {
    let body = match (answer.raw, answer.body.as_str()) {
        (true, Some(text)) => text.to_owned(),
        _ => answer.body.to_string(),
    };
    let response = Response::from_string(body);
    request.respond(response.with_status_code(answer.status)).ok();
}
