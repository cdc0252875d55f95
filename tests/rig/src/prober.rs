//! Watching from outside for how long a service was away.

use crate::services::Service;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const PROBES: Duration = Duration::from_millis(50);

impl Service {
    /// Starts to watch from outside for how long the service is away.
    pub fn probe(&self) -> Prober {
        Prober::of(self.url("/health"))
    }
}

/// A thread that requests a service's health every 50 ms.
pub struct Prober {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Duration>>>,
}

impl Prober {
    /// Starts to request this URL, in the network of the thread that calls this.
    pub fn of(url: String) -> Prober {
        let over = Arc::new(AtomicBool::new(false));
        let is_over = over.clone();
        Prober { over, thread: Some(thread::spawn(move || probe(&url, &is_over))) }
    }

    /// Ends the watch and returns for how long the service was certainly away each time, however
    /// slow the machine is: from the first answer that it was not there to the last question that
    /// got such an answer. The service has to be back by now.
    #[track_caller]
    pub fn absences(mut self) -> Vec<Duration> {
        self.over.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

fn probe(url: &str, is_over: &AtomicBool) -> Vec<Duration> {
    // The time limit only concerns a server that is there and hangs.
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(30)));
    let agent = ureq::Agent::from(config.max_idle_connections(0).build());
    let (mut absences, mut away_since) = (Vec::new(), None);
    loop {
        // The last question is asked after the end of the watch, and sees the service back.
        let is_last = is_over.load(Ordering::SeqCst);
        let asked = Instant::now();
        match (agent.get(url).call().is_ok(), away_since) {
            (false, None) => {
                away_since = Some(Instant::now());
                absences.push(Duration::ZERO);
            }
            (false, Some(since)) => {
                *absences.last_mut().unwrap() = asked.saturating_duration_since(since);
            }
            (true, _) => away_since = None,
        }
        if is_last {
            return absences;
        }
        thread::sleep(PROBES);
    }
}
