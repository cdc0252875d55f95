//! Work on a thread of its own, which can be waited for and left behind.

use super::event::Event;
use super::{Stop, wait};
use crate::error::Result;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Work on a thread of its own, for calls that have no deadline themselves: whoever waits for it
/// can be called off, and leaves it behind then.
pub struct Aside<T> {
    ended: Arc<Event>,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

impl<T: Send + 'static> Aside<T> {
    pub fn begin(work: impl FnOnce() -> T + Send + 'static) -> Result<Aside<T>> {
        let aside = Aside { ended: Event::new()?, result: Arc::default() };
        let (ended, sink) = (aside.ended.clone(), aside.result.clone());
        thread::spawn(move || {
            // A panic is told to whoever waits, who would wait for nothing.
            let result = catch_unwind(AssertUnwindSafe(work));
            *sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            ended.set();
        });
        Ok(aside)
    }

    /// Happens when the work has ended.
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Waits for what comes of it; `None` where the deadline passes before, or the work is called off.
    pub fn result_by(&self, stop: &Stop, deadline: Instant) -> Option<T> {
        wait(&[self.ended.fd()], stop, deadline);
        self.take()
    }

    /// Returns what came of it; `None` while it is under way, and once it has been taken. Panics
    /// where the work has.
    pub fn take(&self) -> Option<T> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}
