//! The exit codes of the contract, each named once. Scripts branch on these numbers, so a
//! published one never changes its meaning.

use signal_hook::consts::SIGINT;

/// Why a command ended without having done what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Bad command line.
    Usage,
    /// It cannot fit even after stopping all that may be stopped; nothing was stopped.
    InsufficientVram,
    /// No such service, phase or container.
    NotFound,
    /// The service exited, crashed or loops, or its port is answered by something else.
    StartFailed,
    /// Still alive after SIGKILL, or its VRAM did not come back.
    StopFailed,
    /// Docker, Redis, systemd or NVML (where a reading was required) cannot be reached.
    Unavailable,
    /// A bug in gpuctl.
    Internal,
    /// A file could not be read or written.
    Io,
    /// Another holds the GPU lock, and the wait for it ran out.
    LockBusy,
    /// Not now, by this limit of the canary.
    NotNow(&'static str),
    /// The GPU lock was lost while acting; acting stopped.
    LockLost,
    /// The Docker socket or Redis is closed to us, or others may write the configuration or the lock.
    Permission,
    /// Missing, unparsable or contradictory configuration.
    Config,
    /// The service did not become ready in time.
    Timeout,
    /// The command that `run` was given is not executable.
    NotExecutable,
    /// The command that `run` was given is not there.
    CommandNotFound,
    /// Ended by this signal.
    Interrupted(i32),
}

impl Code {
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

/// What a command that did its work has to say by its exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done, already so, or yes: 0.
    Yes,
    /// The answer is no: 1.
    No,
    /// `run` passes on what its command ended with.
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
