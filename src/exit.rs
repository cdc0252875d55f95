//! The exit codes of the contract, each named once. Scripts branch on these numbers, so a
//! published one never changes its meaning.

use signal_hook::consts::SIGINT;

/// Why a command ended without having done what was asked; `meaning` explains each code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Usage,
    InsufficientVram,
    NotFound,
    StartFailed,
    StopFailed,
    Unavailable,
    Internal,
    Io,
    LockBusy,
    ServiceBusy,
    /// A trial is refused by the canary's limit of this name.
    NotNow(&'static str),
    LockLost,
    Permission,
    Config,
    Timeout,
    NotExecutable,
    CommandNotFound,
    /// The command was ended by the signal with this number.
    Interrupted(i32),
}

impl Code {
    /// The codes with which a command that is offered over HTTP may fail: all but those of `run`'s
    /// command, the canary's limits and signals.
    pub const ALL: &[Code] = &[
        Code::Usage,
        Code::InsufficientVram,
        Code::NotFound,
        Code::StartFailed,
        Code::StopFailed,
        Code::Unavailable,
        Code::Internal,
        Code::Io,
        Code::LockBusy,
        Code::ServiceBusy,
        Code::LockLost,
        Code::Permission,
        Code::Config,
        Code::Timeout,
    ];

    /// Returns the code's exit status, its `error.code` in JSON, and the sentence that explains it
    /// to users.
    fn row(self) -> (u8, &'static str, &'static str) {
        match self {
            Code::Usage => (2, "usage", "Bad command line."),
            Code::InsufficientVram => (
                3,
                "insufficient_vram",
                "It cannot fit even after stopping all that may be stopped; nothing was stopped.",
            ),
            Code::NotFound => (4, "not_found", "No such service, phase, container or process."),
            Code::StartFailed => (
                5,
                "start_failed",
                "A service exited or crashed at its start, or something else answers its port.",
            ),
            Code::StopFailed => (
                6,
                "stop_failed",
                "A service is still alive after SIGKILL, its VRAM did not come back, or something \
                 starts it again.",
            ),
            Code::Unavailable => (
                69,
                "unavailable",
                "Docker, Redis, systemd or the NVIDIA driver, where it is needed, cannot be reached.",
            ),
            Code::Internal => (70, "internal", "A bug in gpuctl."),
            Code::Io => (74, "io", "A file could not be read or written."),
            Code::LockBusy => {
                (75, "lock_busy", "Somebody else holds the GPU lock, and the wait for it ran out.")
            }
            Code::ServiceBusy => (
                75,
                "service_busy",
                "A service that would have to stop is still working; nothing was stopped.",
            ),
            Code::NotNow(limit) => {
                (75, limit, "Not now, because of the limit that `error.code` names.")
            }
            Code::LockLost => {
                (76, "lock_lost", "The GPU lock was lost while acting; acting stopped.")
            }
            Code::Permission => (
                77,
                "permission",
                "Docker, Redis or a process is closed to this user, or others may write the \
                 configuration or the lock.",
            ),
            Code::Config => (
                78,
                "config",
                "The configuration is missing or wrong, or two services claim one process, container \
                 or unit.",
            ),
            Code::Timeout => (124, "timeout", "A service did not become ready in time."),
            Code::NotExecutable => (126, "not_executable", "The command is not executable."),
            Code::CommandNotFound => (127, "command_not_found", "The command is not found."),
            Code::Interrupted(signal) => (128 + signal as u8, "interrupted", "Ended by a signal."),
        }
    }

    /// Returns the exit status of the process.
    pub fn status(self) -> u8 {
        self.row().0
    }

    /// Returns the HTTP status that follows from the exit status.
    pub fn http_status(self) -> u16 {
        match self.status() {
            2 => 400,
            3 | 76 => 409,
            4 => 404,
            5 => 502,
            69 => 503,
            75 => 423,
            124 => 504,
            _ => 500,
        }
    }

    /// Returns the `error.code` of the JSON output.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Returns the sentence that explains the code to users.
    pub fn meaning(self) -> &'static str {
        self.row().2
    }
}

/// What a command that did its work says by its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done, already so, or yes: exit status 0.
    Yes,
    /// The answer is no: exit status 1.
    No,
    /// The exit status of the command of `run`, or of the signal that ended `status --watch`.
    Passed(u8),
    /// The command of `run` was ended by Ctrl-C. gpuctl then ends by SIGINT itself: a shell has to
    /// see that, or its script goes on.
    Interrupted,
}

impl Answer {
    /// Returns the exit status of the process as a shell sees it.
    pub fn status(self) -> u8 {
        match self {
            Answer::Yes => 0,
            Answer::No => 1,
            Answer::Passed(status) => status,
            Answer::Interrupted => Code::Interrupted(SIGINT).status(),
        }
    }
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Answer::Yes } else { Answer::No }
    }
}
