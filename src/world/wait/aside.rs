//! Work on a thread of its own, which can be waited for or left behind.

use super::event::Event;
use super::{Stop, wait};
use crate::error::Result;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Work on a thread of its own, for calls that have no deadline themselves: a caller that waits for
/// the work can be called off, and then leaves the thread behind.
pub struct Aside<T> {
    ended: Arc<Event>,
    result: Arc<Mutex<Option<thread::Result<T>>>>,
}

impl<T: Send + 'static> Aside<T> {
    /// Starts `work` on a thread of its own.
    pub fn begin(work: impl FnOnce() -> T + Send + 'static) -> Result<Aside<T>> {
        let aside = Aside { ended: Event::new()?, result: Arc::default() };
        let (ended, sink) = (aside.ended.clone(), aside.result.clone());
        thread::spawn(move || {
            // A panic is passed on to the waiting thread, which would otherwise wait in vain.
            let result = catch_unwind(AssertUnwindSafe(work));
            *sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            ended.set();
        });
        Ok(aside)
    }

    /// Returns the event that happens when the work has ended.
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Waits for the result of the work; `None` if the deadline passes or `stop` calls the wait off
    /// before there is one.
    pub fn result_by(&self, stop: &Stop, deadline: Instant) -> Option<T> {
        wait(&[self.ended.fd()], stop, deadline);
        self.take()
    }

    /// Returns the result of the work; `None` while the work goes on and once the result has been
    /// taken. Panics if the work has panicked.
    pub fn take(&self) -> Option<T> {
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}
