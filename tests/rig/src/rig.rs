//! One test's own machine: a folder with everything in it, a card, a configuration, and a token in
//! the name of everything that runs on it, by which the rig finds those processes again and ends
//! them.

use crate::apart::assert_apart;
use crate::bystander::Bystander;
use crate::card::Card;
use crate::docker::{self, Engine};
use crate::gpuctl::Invocation;
use crate::machine;
use crate::redis::LOCK_KEY;
use crate::services::Service;
use crate::skip::skip_or_fail;
use crate::surroundings;
use crate::systemd::Systemd;
use crate::terminal::Terminal;
use crate::wait::until;
use crate::{ports, processes, programs};
use std::fs::{self, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use toml::{Table, Value};

/// Commands of gpuctl that signal processes; before one of them, `Rig::gpuctl` checks that no
/// service's pattern can find a stranger.
const ACTING: [&str; 8] =
    ["stop", "start", "restart", "prepare-phase", "release-all", "release-idle", "run", "recover"];

/// One test's own machine. Dropping the `Rig` ends everything that runs on it.
pub struct Rig {
    token: String,
    folder: PathBuf,
    pub card: Card,
    engine: Option<&'static Engine>,
    systemd: OnceLock<Systemd>,
    config: Mutex<Table>,
    containers: Mutex<Vec<String>>,
    networks: Mutex<Vec<String>>,
    ports: Mutex<Vec<UnixListener>>,
    has_machine: AtomicBool,
}

impl Rig {
    /// Makes a rig for native and systemd services, from which no Docker engine can be reached.
    pub fn new() -> Rig {
        Rig::with(None)
    }

    /// Makes a rig with a real Docker engine. From then on the test's thread is in the engine's
    /// network, with whatever it starts or asks and each rig that it makes. Returns `None`, after
    /// reporting the skip, if there is no engine; the test should then return.
    #[track_caller]
    pub fn with_docker() -> Option<Rig> {
        docker::enter_engine_or_skip().map(|engine| Rig::with(Some(engine)))
    }

    /// Makes a rig with a Docker engine for this test alone, which may restart it; `configuration`
    /// is the text of the engine's `daemon.json`. From then on the test's thread is in the engine's
    /// network. Returns `None`, after reporting the skip, if no engine can be started.
    #[track_caller]
    pub fn with_docker_of_its_own(configuration: &str) -> Option<Rig> {
        docker::start_or_skip(configuration).map(|engine| Rig::with(Some(engine)))
    }

    fn with(engine: Option<&'static Engine>) -> Rig {
        surroundings::leave();
        let token = format!("rig{:016x}", RandomState::new().hash_one("token"));
        let folder = std::env::temp_dir().join(format!("gpuctl-{token}"));
        for part in ["", "bin", "home", "state", "run"] {
            fs::create_dir(folder.join(part)).unwrap();
            fs::set_permissions(folder.join(part), Permissions::from_mode(0o700)).unwrap();
        }
        symlink(programs::gpuctl(), folder.join("bin/gpuctl")).unwrap();
        let rig = Rig {
            card: Card::new(&folder.join("card")),
            token,
            folder,
            engine,
            systemd: OnceLock::new(),
            config: Mutex::default(),
            containers: Mutex::default(),
            networks: Mutex::default(),
            ports: Mutex::default(),
            has_machine: AtomicBool::new(false),
        };
        rig.set("gpu.nvml_library", programs::nvml_library().to_str().unwrap());
        rig
    }

    /// Returns `NAME-TOKEN`, the name that a service's processes, container or unit bear.
    pub fn mark(&self, name: &str) -> String {
        format!("{name}-{}", self.token)
    }

    /// Returns a path in the rig's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns the folder in which gpuctl keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        self.path("state")
    }

    /// Writes a file into the rig's folder and returns its path.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Puts a shell script on the PATH, before all other programs, to add a missing program or to
    /// replace one, and returns its path.
    pub fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.path(&format!("bin/{name}"));
        programs::install(&format!("#!/bin/sh\n{script}\n"), &path);
        path
    }

    /// Packs an image with `/bin/simserver` that any engine can import, and returns the image's
    /// file.
    pub fn image(&self) -> PathBuf {
        docker::pack_image(&self.folder)
    }

    /// Returns the path of the model server's program, for servers that are not services.
    pub fn simserver(&self) -> String {
        programs::simserver().display().to_string()
    }

    /// Returns the path of the simulated NVML library.
    pub fn nvml_library(&self) -> String {
        programs::nvml_library().display().to_string()
    }

    /// Returns the token that is part of every mark.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Gives the rig to a user who owns nothing else on this machine, and returns the words that,
    /// put before a command, run it as that user. Returns `None`, after reporting the skip, if that
    /// user cannot run what was built here.
    #[track_caller]
    pub fn as_a_user(&self) -> Option<String> {
        let id =
            60_000 + self.token.bytes().fold(0, |sum: u32, byte| sum * 31 % 4000 + u32::from(byte));
        let words = format!("setpriv --reuid {id} --regid {id} --clear-groups");
        let may_run = |program: &Path| {
            // Tried in a child of the user's own: the process that setpriv itself becomes can still
            // pass through root's folders.
            let script = format!("{words} sh -c '{} --version' >/dev/null 2>&1", program.display());
            programs::works("sh", &["-c", &script])
        };
        if !may_run(programs::gpuctl()) || !may_run(&programs::simserver()) {
            skip_or_fail("root", "user who may run what was built here");
            return None;
        }
        let folder = self.folder.display();
        assert!(programs::works("sh", &["-c", &format!("chown -R {id}:{id} {folder}")]));
        Some(words)
    }

    /// Claims a TCP port that no other rig gets while this one lives.
    pub fn port(&self) -> u16 {
        let (port, claim) = ports::claim();
        self.ports.lock().unwrap().push(claim);
        port
    }

    /// Sets a key of the configuration, as in `rig.set("gpu.reserve_mb", 0)` or
    /// `rig.set("phases.4", "video")`.
    pub fn set(&self, key: &str, value: impl Into<Value>) {
        let mut config = self.config.lock().unwrap();
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().unwrap();
        let table = parts.into_iter().fold(&mut *config, |table, part| {
            let inner = table.entry(part).or_insert_with(|| Table::new().into());
            inner.as_table_mut().expect("a table")
        });
        table.insert(last.to_owned(), value.into());
        self.write_config(&toml::to_string(&*config).unwrap());
    }

    /// Replaces the configuration file with any text; a later `set`, or a service that is added,
    /// overwrites it.
    pub fn write_config(&self, text: &str) {
        let path = self.file("gpuctl.toml", text);
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// Prepares a call of gpuctl on another machine, which uses the same Redis but has a machine's
    /// lock of its own.
    pub fn elsewhere(&self, words: &str) -> Invocation {
        let mut command = self.bare_command(programs::gpuctl());
        machine::on(&mut command, &self.path("elsewhere"));
        command.args(words.split_whitespace());
        Invocation::new(command)
    }

    /// Returns the file of the machine's lock.
    pub fn lock_file(&self) -> PathBuf {
        match self.has_machine.load(Ordering::Relaxed) {
            true => self.path(&format!("machine/gpuctl-{LOCK_KEY}.lock")),
            false => self.path("run/lock"),
        }
    }

    /// Gives the rig a machine of its own as far as locks are concerned: a call whose lock is in
    /// Redis takes the machine's lock as well, which must not be the tester's. Returns `false`,
    /// after reporting the skip, if no such machine can be made.
    #[track_caller]
    pub(crate) fn gets_a_machine(&self) -> bool {
        let can_be_had = machine::can_be_had_or_skip(&self.path("machine"));
        self.has_machine.store(can_be_had, Ordering::Relaxed);
        can_be_had
    }

    /// Prepares a call of gpuctl with these words as arguments: `rig.gpuctl("start vidi")`.
    #[track_caller]
    pub fn gpuctl(&self, words: &str) -> Invocation {
        if words.split(' ').any(|word| ACTING.contains(&word)) {
            self.assert_careful();
        }
        let mut command = self.command(programs::gpuctl());
        command.args(words.split_whitespace());
        Invocation::new(command)
    }

    /// Runs a shell command on a terminal and in a session of its own: `rig.terminal("sh -i")`.
    #[track_caller]
    pub fn terminal(&self, command: &str) -> Terminal {
        self.assert_careful();
        let mut session = self.command("setsid");
        session.args(["--ctty", "sh", "-c", &format!("exec {command}")]);
        Terminal::start(session)
    }

    /// Prepares a call of `sh -c` with `gpuctl` on the PATH.
    #[track_caller]
    pub fn shell(&self, script: &str) -> Invocation {
        self.assert_careful();
        let mut command = self.command("sh");
        command.args(["-c", script]);
        Invocation::new(command)
    }

    /// Prepares a call of a shell script as another user, who is given by the words from
    /// `as_a_user`: `rig.shell_of(&rig.as_a_user()?, "id")`.
    #[track_caller]
    pub fn shell_of(&self, user: &str, script: &str) -> Invocation {
        let file = self.file("script", script);
        self.shell(&format!("{user} sh {}", file.display()))
    }

    /// Runs a shell command beside the test and in a session of its own, as a person does in
    /// another terminal: `rig.by_hand(vidi.command())`, `rig.by_hand(&format!("tail -f {log}"))`.
    #[track_caller]
    pub fn by_hand(&self, command: &str) -> Bystander {
        self.assert_careful();
        let mut shell = self.command("setsid");
        shell.args(["sh", "-c", &format!("exec {command}")]);
        Bystander::start(shell)
    }

    /// Returns the processes of a service, whoever started them: those with its mark in their
    /// command line.
    pub fn processes_of(&self, service: &Service) -> Vec<i32> {
        processes::mentioning(service.mark())
    }

    /// Returns the model servers that run under a service's name, leaving out processes that only
    /// mention that name.
    pub fn servers_of(&self, name: &str) -> Vec<i32> {
        processes::executing(&programs::simserver(), &self.mark(name))
    }

    /// Returns every process of gpuctl that runs on this rig, watchdogs included.
    pub fn gpuctls(&self) -> Vec<i32> {
        processes::running(programs::gpuctl(), &self.token)
    }

    /// Asserts that nothing of a `gpuctl run` is left, no gpuctl and no lock, after waiting for the
    /// watchdog, which may notice the end a moment later.
    #[track_caller]
    pub fn assert_free_and_alone(&self) {
        until("nothing of gpuctl is left", || self.gpuctls().is_empty());
        // The kernel closes the files of a process that ends only after its program can no longer
        // be seen, so that the lock may outlive it by a moment.
        until("nobody has locked its file", || self.kernel_locks().is_empty());
        self.assert_lock_is_free();
    }

    #[track_caller]
    pub fn assert_no_process_of(&self, service: &Service) {
        let left = self.processes_of(service);
        assert!(left.is_empty(), "of {} there are left: {left:?}", service.mark());
    }

    #[track_caller]
    pub fn assert_no_out_of_memory(&self) {
        assert_eq!(self.card.out_of_memory(), "", "a service ran out of memory");
    }

    /// Asserts that the servers have taken `count` jobs and have finished every one of them.
    #[track_caller]
    pub fn assert_jobs_done(&self, count: usize) {
        let jobs = self.card.jobs();
        assert!(jobs.values().all(|done| *done), "cut off: {jobs:?}");
        assert_eq!(jobs.len(), count, "{jobs:?}");
    }

    /// Returns the rig's simulated systemd, which the first call installs.
    pub fn systemd(&self) -> &Systemd {
        self.systemd.get_or_init(|| Systemd::install(self, &self.token))
    }

    /// Calls Docker's client on the rig's engine and returns what it prints:
    /// `rig.docker(&["pause", service.mark()])`. Fails the test if Docker refuses.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        self.engine().docker(arguments)
    }

    /// Returns the arguments of each call of `docker` made while `act` runs. A `docker` on the PATH
    /// writes down each call before making it.
    pub fn docker_calls(&self, act: impl FnOnce()) -> Vec<String> {
        let log = self.file("docker-calls", "");
        let next = "PATH=${PATH#*:} exec docker \"$@\"";
        self.program("docker", &format!("echo \"$*\" >>'{}'\n{next}", log.display()));
        act();
        fs::remove_file(self.path("bin/docker")).unwrap();
        fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
    }

    /// Returns the arguments of each call of the rig's `systemctl` made while `act` runs.
    pub fn systemctl_calls(&self, act: impl FnOnce()) -> Vec<String> {
        let (log, program) = (self.file("systemctl-calls", ""), self.path("bin/systemctl"));
        let real = self.path("bin/systemctl.real");
        fs::rename(&program, &real).unwrap();
        let script = format!("echo \"$*\" >>'{}'\nexec '{}' \"$@\"", log.display(), real.display());
        self.program("systemctl", &script);
        act();
        fs::rename(real, program).unwrap();
        fs::read_to_string(log).unwrap().lines().map(str::to_owned).collect()
    }

    /// Returns the rig's Docker engine; fails the test if the rig has none.
    #[track_caller]
    pub fn engine(&self) -> &'static Engine {
        self.engine.expect("a rig made by Rig::with_docker()")
    }

    /// Creates a Docker network on which containers can publish ports, and returns its name. The
    /// network is removed with the rig.
    pub fn network(&self) -> String {
        let name = self.mark("network");
        self.docker(&["network", "create", &name]);
        self.networks.lock().unwrap().push(name.clone());
        name
    }

    /// Adds a container to those that are removed with the rig.
    pub fn owns_container(&self, name: &str) {
        self.containers.lock().unwrap().push(name.to_owned());
    }

    /// Fails the test if a service's pattern may find a process outside of this rig, unless the
    /// test runs in `apart`: no gpuctl that acts may be called with such a pattern.
    #[track_caller]
    fn assert_careful(&self) {
        let text = fs::read_to_string(self.path("gpuctl.toml")).unwrap_or_default();
        let config: Table = toml::from_str(&text).unwrap_or_default();
        let services = config.get("services").and_then(Value::as_table).into_iter().flatten();
        for (_, service) in services {
            let pattern = service.get("match").and_then(Value::as_str);
            if !pattern.is_none_or(|pattern| finds_only(pattern, &self.token)) {
                assert_apart();
            }
        }
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.bare_command(program);
        self.on_its_machine(&mut command);
        command
    }

    /// Makes a command run on the rig's own machine, if the rig has one.
    pub fn on_its_machine(&self, command: &mut Command) {
        if self.has_machine.load(Ordering::Relaxed) {
            machine::on(command, &self.path("machine"));
        }
    }

    fn bare_command(&self, program: impl AsRef<Path>) -> Command {
        let inherited = std::env::var("PATH").unwrap();
        let docker_host = match self.engine {
            Some(engine) => engine.host().to_owned(),
            None => format!("unix://{}", self.path("no-docker.sock").display()),
        };
        let mut command = programs::command(program.as_ref());
        command
            .env("PATH", format!("{}:{inherited}", self.path("bin").display()))
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("GPUCTL_CONFIG", self.path("gpuctl.toml"))
            .env("GPUCTL_STATE_DIR", self.state_dir())
            .env("SIMGPU_DIR", self.card.folder())
            // The lock is in the rig's folder unless a configuration names another place.
            .env("REDIS_URL", format!("file://{}", self.path("run/lock").display()))
            .env("DOCKER_HOST", docker_host)
            .current_dir(self.path("home"));
        command
    }

    fn tell_logs(&self) {
        for entry in fs::read_dir(self.state_dir().join("logs")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            eprintln!("--- {}\n{text}", entry.path().display());
        }
        eprintln!("--- claims refused\n{}", self.card.out_of_memory());
    }
}

/// Reports whether a pattern matches nothing without the token in it, as far as can be seen at a
/// glance: each alternative has the token outside of any parentheses.
fn finds_only(pattern: &str, token: &str) -> bool {
    let mut depth = 0;
    let bare: String = pattern
        .chars()
        .filter(|character| {
            depth += i32::from(*character == '(') - i32::from(*character == ')');
            depth == 0
        })
        .collect();
    bare.split('|').all(|alternative| alternative.contains(token))
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_logs();
        }
        for container in self.containers.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner())
        {
            self.engine.inspect(|engine| engine.remove(container));
        }
        for network in self.networks.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            self.engine.inspect(|engine| engine.remove_network(network));
        }
        let all_ended = processes::end_all(&self.token);
        self.systemd.get().inspect(|systemd| systemd.remove_control_groups());
        let removed = fs::remove_dir_all(&self.folder);
        if !all_ended || removed.is_err() {
            eprintln!("LEFT BEHIND: something of {}: {removed:?}", self.folder.display());
            assert!(std::thread::panicking(), "the rig could not be cleared away");
        }
    }
}
