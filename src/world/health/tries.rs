//! Health checks of many services, side by side.

use super::{TRY_LIMIT, answer, client};
use crate::error::Result;
use crate::model::{Health, Healthy};
use crate::world::wait::{Bell, Stop, Woken, wait};
use indexmap::IndexMap;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// So many tries are begun at once, whatever becomes of them.
const AT_ONCE: usize = 16;

/// Where as many tries as there are threads take longer than that, there are to be more threads.
const LATE: Duration = Duration::from_millis(10);

/// So many tries at most go to one host and port at a time: a server with a short queue drops more.
const FOR_ONE_SERVER: usize = 4;

/// A try for each of many services, side by side: those that answer at once by few threads, since
/// a thread takes longer than such an answer, and those that hang by one each. What several services
/// name is asked once.
pub struct Tries {
    shared: Arc<Shared>,
    /// This names, for each service, the try that answers for it.
    of_service: Vec<Option<usize>>,
}

struct Shared {
    tries: Vec<Health>,
    client: ureq::Agent,
    /// Tries that follow each other, by number.
    lanes: Vec<Vec<usize>>,
    /// The first lane that nobody has begun.
    next: AtomicUsize,
    answers: Vec<TryAnswer>,
    answered: Bell,
}

/// It holds what came of a try and how long that took, or its panic; `None` while it is under way.
type TryAnswer = Mutex<Option<thread::Result<(Healthy, Duration)>>>;

impl Tries {
    /// One that is under way when nobody waits for it any more is left behind.
    pub fn begin(checks: Vec<Option<Health>>) -> Result<Tries> {
        let mut tries: Vec<Health> = Vec::new();
        let mut known: HashMap<Health, usize> = HashMap::new();
        let of_service = checks
            .into_iter()
            .map(|check| {
                let check = check?;
                Some(*known.entry(check).or_insert_with_key(|check| {
                    tries.push(check.clone());
                    tries.len() - 1
                }))
            })
            .collect();
        let lanes = lanes(&tries);
        let count = lanes.len();
        let shared = Arc::new(Shared {
            answers: tries.iter().map(|_| Mutex::default()).collect(),
            tries,
            client: client(TRY_LIMIT),
            lanes,
            next: AtomicUsize::new(0),
            answered: Bell::new()?,
        });
        shared.clone().work(count.min(AT_ONCE));
        if count > AT_ONCE {
            let shared = shared.clone();
            thread::spawn(move || shared.hurry());
        }
        Ok(Tries { shared, of_service })
    }

    /// Returns what came of one, and how long it took; `None` where there was nothing to ask.
    /// Panics where the try has.
    pub fn answer(&self, at: usize, stop: &Stop, deadline: Instant) -> Option<(Healthy, Duration)> {
        let shared = &self.shared;
        let asked = self.of_service[at]?;
        loop {
            let mut answer = shared.answers[asked].lock().unwrap_or_else(PoisonError::into_inner);
            match &*answer {
                Some(Ok(answer)) => return Some(answer.clone()),
                Some(Err(_)) => resume_unwind(answer.take()?.err()?),
                None => {}
            }
            drop(answer);
            if wait(&[shared.answered.fd()], stop, deadline) != Woken::Event {
                let late = Healthy::Silent("its health check has not finished".to_owned());
                return Some((late, TRY_LIMIT));
            }
            shared.answered.hush();
        }
    }
}

/// Sorts tries by the server that they ask, so that no server has too many at once.
fn lanes(tries: &[Health]) -> Vec<Vec<usize>> {
    let mut by_server: IndexMap<String, Vec<Vec<usize>>> = IndexMap::new();
    for (number, health) in tries.iter().enumerate() {
        let lanes = by_server.entry(server(health)).or_default();
        if lanes.len() < FOR_ONE_SERVER {
            lanes.push(vec![number]);
        } else if let Some(shortest) = lanes.iter_mut().min_by_key(|lane| lane.len()) {
            shortest.push(number);
        }
    }
    by_server.into_values().flatten().collect()
}

/// The host and port that a health check asks.
fn server(health: &Health) -> String {
    match health {
        Health::Tcp { host, port } => format!("{host}:{port}"),
        Health::Http(url) => {
            let uri: Option<ureq::http::Uri> = url.parse().ok();
            let of = |uri: &ureq::http::Uri| {
                let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
                Some(format!("{}:{}", uri.host()?, uri.port_u16().unwrap_or(default)))
            };
            uri.as_ref().and_then(of).unwrap_or_else(|| url.clone())
        }
    }
}

impl Shared {
    /// Has so many threads go through one lane after another of those that nobody has begun.
    fn work(self: Arc<Shared>, threads: usize) {
        for _ in 0..threads {
            let shared = self.clone();
            thread::spawn(move || {
                while let Some(lane) = shared.lanes.get(shared.next.fetch_add(1, Ordering::SeqCst))
                {
                    lane.iter().for_each(|number| shared.attempt(*number));
                }
            });
        }
    }

    fn attempt(&self, number: usize) {
        let begun = Instant::now();
        let healthy = || answer(&self.tries[number], &self.client, TRY_LIMIT);
        let healthy = catch_unwind(AssertUnwindSafe(healthy));
        let answer = healthy.map(|healthy| (healthy, begun.elapsed()));
        *self.answers[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.answered.ring();
    }

    /// Doubles the threads while they do not get on.
    fn hurry(self: Arc<Shared>) {
        let mut threads = AT_ONCE;
        let mut begun = threads;
        while begun < self.lanes.len() {
            thread::sleep(LATE);
            let now = self.next.load(Ordering::SeqCst);
            if now < begun + threads {
                self.clone().work(threads);
                threads *= 2;
            }
            begun = now;
        }
    }
}
