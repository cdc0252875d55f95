//! How an invocation ended, and what it printed. A test has to state the exit code, and output that
//! it does not declare fails it.

use assert_cmd::assert::{Assert, OutputAssertExt};
use predicates::str::contains;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

/// The names that the contract gives to failures, and their exit codes.
const CODES: &[(&str, i32)] = &[
    ("no", 1),
    ("usage", 2),
    ("insufficient_vram", 3),
    ("not_found", 4),
    ("start_failed", 5),
    ("stop_failed", 6),
    ("unavailable", 69),
    ("internal", 70),
    ("io", 74),
    ("lock_busy", 75),
    ("service_busy", 75),
    ("lock_lost", 76),
    ("permission", 77),
    ("config", 78),
    ("timeout", 124),
];

/// How an invocation ended, and what it printed. A test states the ending with `succeeds`, `fails`,
/// `exits` or `dies_of`, and declares the output with the other methods; dropping an `Outcome` of
/// which anything is left unsaid fails the test.
pub struct Outcome {
    /// The result to check; `None` only for the moment in which a check has it.
    assert: Option<Assert>,
    ending_stated: bool,
    stdout_declared: bool,
    stderr_declared: bool,
}

impl Outcome {
    pub fn new(command: &str, output: Output) -> Outcome {
        Outcome {
            assert: Some(output.assert().append_context("arguments", command.to_owned())),
            ending_stated: false,
            stdout_declared: false,
            stderr_declared: false,
        }
    }

    /// Asserts that the exit code is 0.
    #[track_caller]
    pub fn succeeds(self) -> Self {
        self.exits(0)
    }

    /// Asserts that the exit code is the one of this name in the contract, and that the failure is
    /// reported as the contract says: an error document on stdout, as with `--json`, has to give
    /// the same name and exit code, and on stderr nothing but hints may follow the line that
    /// reports the failure.
    #[track_caller]
    pub fn fails(self, name: &str) -> Self {
        let known = CODES.iter().find(|(code, _)| *code == name);
        let (_, code) = known.unwrap_or_else(|| panic!("the contract has no code {name:?}"));
        let outcome = self.exits(*code);
        let Output { stdout, stderr, .. } = outcome.output();
        let document = serde_json::from_slice::<Value>(stdout).unwrap_or_default();
        if let Some(error) = document.get("error") {
            assert_eq!((&error["code"], &error["exit_code"]), (&name.into(), &(*code).into()));
        }
        let stderr = String::from_utf8_lossy(stderr);
        let mut after = stderr.lines().skip_while(|line| !line.starts_with("gpuctl: ")).skip(1);
        let are_hints = after.all(|line| line.starts_with("hint: "));
        assert!(are_hints, "more than hints after the failure: {}", outcome.assert());
        outcome
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn exits(mut self, code: i32) -> Self {
        self.ending_stated = true;
        self.check(|assert| assert.code(code))
    }

    /// Asserts that the process was ended by this signal, without having caught it.
    #[track_caller]
    pub fn dies_of(mut self, signal: i32) -> Self {
        self.ending_stated = true;
        assert_eq!(self.output().status.signal(), Some(signal), "{}", self.assert());
        self
    }

    /// Returns the exit code, or `None` after a signal, and stdout followed by stderr, for a test
    /// that judges these itself.
    pub fn ended(mut self) -> (Option<i32>, String) {
        (self.ending_stated, self.stdout_declared, self.stderr_declared) = (true, true, true);
        let Output { status, stdout, stderr } = self.output();
        (status.code(), String::from_utf8_lossy(&[&stdout[..], stderr].concat()).into_owned())
    }

    /// Declares stdout, which has to be exactly this text.
    #[track_caller]
    pub fn stdout(mut self, text: &str) -> Self {
        self.stdout_declared = true;
        self.check(|assert| assert.stdout(text.to_owned()))
    }

    /// Declares stdout, which has to contain this text.
    #[track_caller]
    pub fn stdout_has(mut self, text: &str) -> Self {
        assert!(!text.is_empty(), "\"\" is in every text: `ignores_stdout`");
        self.stdout_declared = true;
        self.check(|assert| assert.stdout(contains(text)))
    }

    /// Declares stderr, which has to contain this text.
    #[track_caller]
    pub fn stderr_has(mut self, text: &str) -> Self {
        assert!(!text.is_empty(), "\"\" is in every text: `ignores_stderr`");
        self.stderr_declared = true;
        self.check(|assert| assert.stderr(contains(text)))
    }

    /// Declares stderr, which may hold nothing but progress: no warning, no error, no hint.
    #[track_caller]
    pub fn progress(mut self) -> Self {
        self.stderr_declared = true;
        let stderr = String::from_utf8_lossy(&self.output().stderr).into_owned();
        for line in stderr.lines() {
            let is_more =
                ["warning:", "gpuctl:", "hint:"].iter().any(|more| line.starts_with(more));
            assert!(
                !is_more && !line.contains("panicked"),
                "more than progress: {}",
                self.assert()
            );
        }
        self
    }

    /// Declares stdout without checking it, because it is a matter of chance or the subject of
    /// another test.
    pub fn ignores_stdout(mut self) -> Self {
        self.stdout_declared = true;
        self
    }

    /// Declares stderr without checking it, because it is a matter of chance or the subject of
    /// another test.
    pub fn ignores_stderr(mut self) -> Self {
        self.stderr_declared = true;
        self
    }

    /// Declares stdout, which has to be one JSON document, and returns it.
    #[track_caller]
    pub fn json(mut self) -> Value {
        self.stdout_declared = true;
        serde_json::from_slice(&self.output().stdout)
            .unwrap_or_else(|error| panic!("stdout is not JSON: {error}: {}", self.assert()))
    }

    /// Declares stderr, and returns it.
    pub fn stderr_text(mut self) -> String {
        self.stderr_declared = true;
        String::from_utf8_lossy(&self.output().stderr).into_owned()
    }

    /// Declares stdout, and returns it.
    pub fn text(mut self) -> String {
        self.stdout_declared = true;
        String::from_utf8_lossy(&self.output().stdout).into_owned()
    }

    #[track_caller]
    fn check(mut self, check: impl FnOnce(Assert) -> Assert) -> Self {
        self.assert = self.assert.take().map(check);
        self
    }

    fn assert(&self) -> &Assert {
        self.assert.as_ref().expect("a check puts it back")
    }

    fn output(&self) -> &Output {
        self.assert().get_output()
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        let Some(assert) = self.assert.as_ref().filter(|_| !std::thread::panicking()) else {
            return;
        };
        let Output { stdout, stderr, .. } = assert.get_output();
        assert!(self.ending_stated, "the test does not state how it ends: {assert}");
        assert!(self.stdout_declared || stdout.is_empty(), "undeclared stdout: {assert}");
        assert!(self.stderr_declared || stderr.is_empty(), "undeclared stderr: {assert}");
        assert!(!String::from_utf8_lossy(stderr).contains("panicked at"), "a panic: {assert}");
    }
}
