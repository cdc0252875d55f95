//! What is told while work goes on: plain lines on stderr.

use std::io::Write;

#[derive(Clone)]
pub struct Progress {
    quiet: bool,
}

impl Progress {
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet }
    }

    /// One step, as it begins or ends. That stderr is closed is no reason to stop working.
    #[expect(clippy::disallowed_methods, reason = "the one place that prints progress")]
    pub fn line(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    pub fn warning(&self, text: &str) {
        self.line(&format!("warning: {text}"));
    }
}
