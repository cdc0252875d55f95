//! Health checks of many services, side by side.

use super::{TRY_LIMIT, answer, client};
use crate::error::Result;
use crate::model::{Health, Healthy};
use crate::world::wait::{Bell, Stop, Woken, wait};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// So many tries are begun at once, whatever becomes of them.
const AT_ONCE: usize = 16;

/// Where as many tries as there are threads take longer than that, there are to be more threads.
const LATE: Duration = Duration::from_millis(10);

/// A try for each of many services, side by side: those that answer at once by few threads, since
/// a thread takes longer than such an answer, and those that hang by one each.
pub struct Tries(Arc<Shared>);

struct Shared {
    checks: Vec<Option<Health>>,
    client: ureq::Agent,
    /// The first that nobody has begun.
    next: AtomicUsize,
    answers: Vec<Answer>,
    answered: Bell,
}

/// What came of a try, how long it took, or its panic; `None` while it is under way.
type Answer = Mutex<Option<thread::Result<(Healthy, Duration)>>>;

impl Tries {
    /// One that is under way when nobody waits for it any more is left behind.
    pub fn begin(checks: Vec<Option<Health>>) -> Result<Tries> {
        let count = checks.iter().flatten().count();
        let shared = Arc::new(Shared {
            answers: checks.iter().map(|_| Mutex::default()).collect(),
            checks,
            client: client(TRY_LIMIT),
            next: AtomicUsize::new(0),
            answered: Bell::new()?,
        });
        shared.clone().work(count.min(AT_ONCE));
        if count > AT_ONCE {
            let shared = shared.clone();
            thread::spawn(move || shared.hurry());
        }
        Ok(Tries(shared))
    }

    /// What came of one, and how long it took; `None` where there was nothing to ask. Panics where
    /// the try has.
    pub fn answer(&self, at: usize, stop: &Stop, deadline: Instant) -> Option<(Healthy, Duration)> {
        let shared = &self.0;
        shared.checks[at].as_ref()?;
        loop {
            let answer = shared.answers[at].lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(answer) = answer {
                return Some(answer.unwrap_or_else(|panic| resume_unwind(panic)));
            }
            if wait(&[shared.answered.fd()], stop, deadline) != Woken::Event {
                let late = Healthy::Silent("its health check does not end".to_owned());
                return Some((late, TRY_LIMIT));
            }
            shared.answered.hush();
        }
    }
}

impl Shared {
    /// Has so many threads try one after another of those that nobody has begun.
    fn work(self: Arc<Shared>, threads: usize) {
        for _ in 0..threads {
            let shared = self.clone();
            thread::spawn(move || {
                while let Some((check, sink)) = shared.take() {
                    let begun = Instant::now();
                    let healthy = || answer(check, &shared.client, TRY_LIMIT);
                    let healthy = catch_unwind(AssertUnwindSafe(healthy));
                    let answer = healthy.map(|healthy| (healthy, begun.elapsed()));
                    *sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
                    shared.answered.ring();
                }
            });
        }
    }

    fn take(&self) -> Option<(&Health, &Answer)> {
        loop {
            let at = self.next.fetch_add(1, Ordering::SeqCst);
            if let Some(check) = self.checks.get(at)? {
                return Some((check, &self.answers[at]));
            }
        }
    }

    /// Doubles the threads while they do not get on.
    fn hurry(self: Arc<Shared>) {
        let mut threads = AT_ONCE;
        let mut begun = threads;
        while begun < self.checks.len() {
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
