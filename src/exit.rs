//! The exit codes of the contract, each named once. Scripts branch on these numbers, so a
//! published one never changes its meaning.

use signal_hook::consts::SIGINT;

/// Why a command ended without having done what was asked; `meaning` says it for each.
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
    /// It is refused by this limit of the canary.
    NotNow(&'static str),
    LockLost,
    Permission,
    Config,
    Timeout,
    NotExecutable,
    CommandNotFound,
    /// It was ended by this signal.
    Interrupted(i32),
}

impl Code {
    /// Returns what users are told it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Code::Usage => "Bad command line.",
            Code::InsufficientVram => {
                "It cannot fit even after stopping all that may be stopped; nothing was stopped."
            }
            Code::NotFound => "No such service, phase, container or process.",
            Code::StartFailed => {
                "A service exited or crashed at its start, or something else answers its port."
            }
            Code::StopFailed => {
                "A service is still alive after SIGKILL, or its VRAM did not come back."
            }
            Code::Unavailable => {
                "Docker, Redis, systemd or the NVIDIA driver, where it is needed, cannot be reached."
            }
            Code::Internal => "A bug in gpuctl.",
            Code::Io => "A file could not be read or written.",
            Code::LockBusy => "Somebody else holds the GPU lock, and the wait for it ran out.",
            Code::NotNow(_) => "Not now, because of the limit that `error.code` names.",
            Code::LockLost => "The GPU lock was lost while acting; acting stopped.",
            Code::Permission => {
                "Docker, Redis or a process is closed to this user, or others may write the \
                 configuration or the lock."
            }
            Code::Config => "The configuration is missing or wrong.",
            Code::Timeout => "A service did not become ready in time.",
            Code::NotExecutable => "The command is not executable.",
            Code::CommandNotFound => "The command is not found.",
            Code::Interrupted(_) => "Ended by a signal.",
        }
    }

    /// The process's exit status.
    pub fn status(self) -> u8 {
        match self {
            Code::Usage => 2,
            Code::InsufficientVram => 3,
            Code::NotFound => 4,
            Code::StartFailed => 5,
            Code::StopFailed => 6,
            Code::Unavailable => 69,
            Code::Internal => 70,
            Code::Io => 74,
            Code::LockBusy | Code::NotNow(_) => 75,
            Code::LockLost => 76,
            Code::Permission => 77,
            Code::Config => 78,
            Code::Timeout => 124,
            Code::NotExecutable => 126,
            Code::CommandNotFound => 127,
            Code::Interrupted(signal) => 128 + signal as u8,
        }
    }

    /// `error.code` of the JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Code::Usage => "usage",
            Code::InsufficientVram => "insufficient_vram",
            Code::NotFound => "not_found",
            Code::StartFailed => "start_failed",
            Code::StopFailed => "stop_failed",
            Code::Unavailable => "unavailable",
            Code::Internal => "internal",
            Code::Io => "io",
            Code::LockBusy => "lock_busy",
            Code::NotNow(limit) => limit,
            Code::LockLost => "lock_lost",
            Code::Permission => "permission",
            Code::Config => "config",
            Code::Timeout => "timeout",
            Code::NotExecutable => "not_executable",
            Code::CommandNotFound => "command_not_found",
            Code::Interrupted(_) => "interrupted",
        }
    }
}

/// A command that did its work says one of these by its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done, already so, or yes: 0.
    Yes,
    /// The answer is no: 1.
    No,
    /// `run` passes on what its command ended with, `status --watch` the signal that ended it.
    Passed(u8),
    /// Its command was ended by Ctrl-C: a shell has to see the same of us, or its script goes on.
    Interrupted,
}

impl Answer {
    /// The process's exit status, as a shell sees it.
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
