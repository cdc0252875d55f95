//! What the clap types do not know of a command: how it may end, and what it reads and writes.

use crate::exit::Code;

/// Environment variables or files that belong together, and what they are for.
pub struct Fact {
    pub names: &'static [&'static str],
    pub text: &'static str,
    pub topic: Topic,
}

/// What a fact is about. A page only shows facts about the topics of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A topic of every command.
    Any,
    Config,
    Lock,
    State,
    Canary,
    Run,
    Install,
}

const fn fact(topic: Topic, names: &'static [&'static str], text: &'static str) -> Fact {
    Fact { names, text, topic }
}

pub const ENVIRONMENT: &[Fact] = &[
    fact(Topic::Config, &["GPUCTL_CONFIG"], "Configuration file, unless `--config` names one."),
    fact(
        Topic::Config,
        &["XDG_CONFIG_HOME", "HOME"],
        "Where the user's configuration is looked for; see FILES. `~` in the configuration is HOME.",
    ),
    fact(
        Topic::Lock,
        &["GPUCTL_LOCK_URL"],
        "Where the GPU lock is kept; takes precedence over `lock.url` in the configuration.",
    ),
    fact(
        Topic::Lock,
        &["REDIS_URL"],
        "Where the GPU lock is kept if neither GPUCTL_LOCK_URL nor `lock.url` says so.",
    ),
    fact(
        Topic::Lock,
        &["GPUCTL_LOCK_TOKEN"],
        "Token of the lock that the caller holds. A command that has it acts under that lock: it \
         neither waits for it nor releases it.",
    ),
    fact(
        Topic::State,
        &["XDG_RUNTIME_DIR"],
        "Set for systemd-run, which finds a user's manager by it.",
    ),
    fact(
        Topic::Run,
        &["GPUCTL_SERVICE", "GPUCTL_FENCE"],
        "Set for the command: the services that are ready for it, and a number that rises with \
         every holder of the lock. So are GPUCTL_CONFIG and GPUCTL_LOCK_TOKEN.",
    ),
    fact(
        Topic::State,
        &["SPT_NOENV"],
        "Set to 1 for native services: a server that sets its title leaves its environment, and the \
         mark in it, as it is.",
    ),
    fact(
        Topic::State,
        &["GPUCTL_STATE_DIR", "XDG_STATE_HOME"],
        "Folder for logs and other state; see FILES.",
    ),
    fact(
        Topic::Canary,
        &["KLR_CANARY_MODE", "KLR_CANARY_PORT", "KLR_CANARY_TIMEOUT"],
        "Take precedence over `mode`, `port` and `timeout` of `[canary]`.",
    ),
    fact(
        Topic::Canary,
        &["KLR_GPU_MAINTENANCE_WINDOW", "KLR_GPU_MAINTENANCE_MAX_DOWNTIME"],
        "Take precedence over `window` and `max_downtime`.",
    ),
    fact(
        Topic::Canary,
        &["KLR_CANARY_COOLDOWN_HOURS"],
        "Takes precedence over `cooldown`; in hours.",
    ),
    fact(
        Topic::Canary,
        &["KLR_ALLOW_SPARE_GPU", "KLR_SPARE_GPU_ID"],
        "Take precedence over `allow_spare_gpu` and `spare_gpu`.",
    ),
    fact(
        Topic::Any,
        &["GPUCTL_LOG", "RUST_LOG"],
        "What to log on stderr, such as `debug` or `gpuctl=debug`; the first that is set counts, \
         and `-v` over both.",
    ),
    fact(
        Topic::Any,
        &["DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"],
        "Read by the clients of Docker and podman: the engine that gpuctl asks, too.",
    ),
    fact(
        Topic::Any,
        &["NO_COLOR", "CLICOLOR_FORCE"],
        "If set: no colour at all; colour even if the output is not a terminal.",
    ),
    fact(
        Topic::Any,
        &["COLUMNS", "TERM"],
        "Width of the output if it is not a terminal; a terminal of type `dumb` gets no colour.",
    ),
    fact(
        Topic::Any,
        &["LC_ALL", "LC_CTYPE", "LANG"],
        "The first that is set: output keeps to ASCII if it names an encoding other than UTF-8.",
    ),
];

pub const FILES: &[Fact] = &[
    fact(
        Topic::Config,
        &["./gpuctl.toml", "~/.config/gpuctl/config.toml", "/etc/gpuctl/config.toml"],
        "The configuration: the first that is there, unless `--config` or GPUCTL_CONFIG names one. \
         It holds commands that are run, so one that others may write to is refused. A name that ends \
         in `.json` is JSON of the same shape.",
    ),
    fact(
        Topic::State,
        &["~/.local/state/gpuctl"],
        "State of this user: below XDG_STATE_HOME, or the folder that GPUCTL_STATE_DIR names.",
    ),
    fact(Topic::State, &["~/.local/state/gpuctl/logs/SERVICE.log"], "Output of a native service."),
    fact(
        Topic::State,
        &["~/.local/state/gpuctl/history.jsonl", "~/.local/state/gpuctl/history.1.jsonl"],
        "The event log that `gpuctl history` shows, one line of JSON per event, and its older part.",
    ),
    fact(
        Topic::Lock,
        &["/run/lock/gpuctl-gpu_mutex_v2.lock", "/var/tmp/gpuctl-gpu_mutex_v2.lock"],
        "The GPU lock of the machine, for all its users; named after `lock.key`. Do not remove it \
         by hand.",
    ),
    fact(
        Topic::Canary,
        &["gpu_budget_YYYYMMDD.json", "gpu_canary_YYYYMMDD.jsonl"],
        "In `canary.state_dir`, by default the state folder: the night's downtime, and the audit.",
    ),
    fact(Topic::Canary, &["promotions/"], "In the same folder: candidates that have passed."),
    fact(
        Topic::Install,
        &["/usr/share/man/man1", "/usr/share/bash-completion/completions"],
        "Where packages put what `gpuctl man --out` and `gpuctl completions` write.",
    ),
];

/// What a command has to do with, and how it may end.
pub struct Concern {
    topics: &'static [Topic],
    /// What the exit code 1 of the command means, or `None` if the command has no answer that could
    /// be no.
    no: Option<&'static str>,
    codes: Vec<Code>,
}

/// Returns the concern of the command that these words name, or of gpuctl itself if there are none.
pub fn concern(path: &str) -> Concern {
    use Topic::{Canary, Config, Install, Lock, Run, State};
    const EVERYTHING: &[Topic] = &[Config, Lock, State, Canary, Run, Install];
    const READ: &[Code] = &[Code::Permission, Code::Config];
    const ASK: &[Code] = &[Code::NotFound, Code::Unavailable, Code::Permission, Code::Config];
    const TAKE: &[Code] = &[Code::LockBusy, Code::LockLost];
    const START: &[Code] = &[Code::InsufficientVram, Code::StartFailed, Code::Timeout];
    const STOP: &[Code] = &[Code::ServiceBusy, Code::StopFailed];
    const CMD: &[Code] = &[Code::NotExecutable, Code::CommandNotFound];
    const NOT_NOW: &[Code] = &[Code::NotNow("")];

    let no = match path {
        "" => "The answer is no.",
        "status" => "A service of `--check` is neither ready nor busy.",
        "can-fit" => "It does not fit.",
        "lock" | "lock status" => "The lock is held.",
        "lock release" => "The lock is held under another token.",
        "canary" | "canary check" => "The candidate is rejected, or out of bounds.",
        "canary run" => "The candidate is rejected.",
        "doctor" => "A precondition is not met.",
        _ => "",
    };
    let (topics, codes): (&'static [Topic], &[&[Code]]) = match path {
        "status" | "can-fit" | "lock release" | "lock status" => (&[Config, Lock], &[ASK]),
        "prepare-phase" | "start" | "restart" => {
            (&[Config, Lock, State], &[ASK, TAKE, STOP, START])
        }
        "stop" | "release-all" | "release-idle" => (&[Config, Lock, State], &[ASK, TAKE, STOP]),
        "adopt" => (&[Config, Lock, State], &[ASK, TAKE]),
        "run" => (&[Config, Lock, State, Run], &[ASK, TAKE, STOP, START, CMD]),
        "http" => (&[Config, Lock, State], &[]),
        "lock" | "lock acquire" => (&[Config, Lock, State], &[ASK, TAKE]),
        "canary" | "canary run" => {
            (&[Config, Lock, State, Canary], &[ASK, TAKE, STOP, START, NOT_NOW])
        }
        // `service_busy` cannot occur: production is not there, so it has no work in flight.
        "canary recover" => {
            (&[Config, Lock, State, Canary], &[ASK, TAKE, &[Code::StopFailed], START])
        }
        path if path.starts_with("canary ") => (&[Config, Lock, State, Canary], &[ASK]),
        "config" | "config check" | "config show" | "doctor" => (&[Config, Lock, State], &[READ]),
        "config init" | "config import" | "config path" => (&[Config], &[&[Code::Config]]),
        "history" => (&[Config, State], &[READ]),
        "logs" => (&[Config, State], &[ASK]),
        "config schema" => (&[Config], &[]),
        "completions" => (&[Config, Install], &[]),
        "man" => (&[Install], &[]),
        _ => (EVERYTHING, &[ASK, TAKE, STOP, START, CMD]),
    };
    let always: &[Code] = &[Code::Usage, Code::Internal, Code::Io];
    Concern {
        topics,
        no: Some(no).filter(|no| !no.is_empty()),
        codes: [&[always], codes].concat().concat(),
    }
}

impl Concern {
    pub fn is_about(&self, topic: Topic) -> bool {
        topic == Topic::Any || self.topics.contains(&topic)
    }

    /// Returns each exit status with its meaning, lowest first; `128+n` for signals and `any other`
    /// come last.
    pub fn exit_statuses(&self) -> Vec<(String, String)> {
        let mut codes = self.codes.clone();
        codes.sort_by_key(|code| code.status());
        let status = |code: &Code| (code.status().to_string(), code.meaning().to_owned());
        let done = match self.no {
            Some(_) => "Done, or already so; the answer is yes.",
            None => "Done, or already so.",
        };
        let mut statuses = vec![("0".to_owned(), done.to_owned())];
        statuses.extend(self.no.map(|no| ("1".to_owned(), no.to_owned())));
        statuses.extend(codes.iter().map(status));
        statuses.push(("128+n".to_owned(), "Ended by signal n.".to_owned()));
        if self.is_about(Topic::Run) {
            let own = "`gpuctl run`: whatever the command itself ended with.";
            statuses.push(("any other".to_owned(), own.to_owned()));
        }
        statuses
    }
}
