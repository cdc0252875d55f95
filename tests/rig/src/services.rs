//! Services of a rig: model servers of `simserver`, under each of the three managers, with their part of the
//! configuration. `rig.native("vidi").vram(4000).phases([2]).server("--warmup 300ms").add()`

use crate::rig::Rig;
use crate::{docker, programs};
use std::thread::JoinHandle;
use toml::{Table, Value};

/// How start commands found in the wild go about it.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// `exec server`
    Foreground,
    /// `server &`, and the script returns
    Background,
    /// `nohup setsid server &`, and nothing of its output is kept
    Detached,
    /// The server forks twice, makes a session of its own, and exits 0
    Daemon,
    /// A file with a shebang, whose shell stays as the server's parent
    File,
}

#[derive(Clone, Copy)]
enum Manager {
    Native(Script),
    Docker,
    Systemd,
}

impl Rig {
    /// Started by a command. By default in the foreground, and found by its name as well.
    pub fn native(&self, name: &str) -> Draft<'_> {
        let draft = Draft::new(self, name, Manager::Native(Script::Foreground));
        let pattern = format!("simserver.*{}", self.mark(name));
        draft.set("type", "native").set("match", pattern)
    }

    /// In a container, which is created and not started.
    pub fn container(&self, name: &str) -> Draft<'_> {
        let draft = Draft::new(self, name, Manager::Docker);
        draft.set("type", "docker").set("container", self.mark(name))
    }

    /// In a unit of the simulated systemd.
    pub fn unit(&self, name: &str) -> Draft<'_> {
        let draft = Draft::new(self, name, Manager::Systemd);
        draft.set("type", "systemd").set("unit", format!("{}.service", self.mark(name)))
    }
}

/// A service that is being described; `add` makes it.
#[must_use = "there is no service before `add`"]
pub struct Draft<'a> {
    rig: &'a Rig,
    name: String,
    manager: Manager,
    vram: u32,
    port: u16,
    server: String,
    restarts: bool,
    is_installed: bool,
    settings: Table,
}

impl<'a> Draft<'a> {
    fn new(rig: &'a Rig, name: &str, manager: Manager) -> Self {
        let port = rig.port();
        let draft = Draft {
            rig,
            name: name.to_owned(),
            manager,
            vram: 0,
            port,
            server: String::new(),
            restarts: false,
            is_installed: true,
            settings: Table::new(),
        };
        draft.vram(1000).set("health", format!("http://127.0.0.1:{port}/health"))
    }

    pub fn rig(&self) -> &'a Rig {
        self.rig
    }

    /// What is declared, in MB; also what the server takes, unless its flags say otherwise. 1000 by default.
    pub fn vram(mut self, mb: u32) -> Self {
        self.vram = mb;
        self.set("vram_mb", mb)
    }

    pub fn priority(self, priority: i32) -> Self {
        self.set("priority", priority)
    }

    pub fn phases<const N: usize>(self, phases: [u32; N]) -> Self {
        self.set("phases", phases.to_vec())
    }

    /// More flags of `simserver`, which can misbehave in many ways.
    pub fn server(mut self, flags: &str) -> Self {
        self.server = flags.to_owned();
        self
    }

    /// Native: the shape of its start command.
    pub fn script(mut self, script: Script) -> Self {
        self.manager = Manager::Native(script);
        self
    }

    /// Native: to be found by gpuctl's own mark alone.
    pub fn without_match(mut self) -> Self {
        self.settings.remove("match");
        self
    }

    /// Nothing can be asked whether it is well.
    pub fn without_health(mut self) -> Self {
        self.settings.remove("health");
        self
    }

    /// Its manager starts it again when it ends: Docker's `--restart always`, systemd's `Restart=always`.
    pub fn restarts(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// It stays in the configuration, and its container or unit is not made.
    pub fn not_installed(mut self) -> Self {
        self.is_installed = false;
        self
    }

    /// Any key of the service, instead of what the rig would write: `.set("stop_timeout", "1s")`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Writes it into the configuration and, if need be, makes its container or unit.
    pub fn add(mut self) -> Service {
        let mark = self.rig.mark(&self.name);
        let mut flags = format!("--name {mark} --port {} {}", self.port, self.server);
        if !self.server.contains("--vram") {
            flags.push_str(&format!(" --vram {}", self.vram));
        }
        let command = format!("{} {flags}", programs::simserver().display());
        match self.manager {
            Manager::Native(script) => {
                let start = start_command(self.rig, script, &mark, &command);
                self.settings.entry("start").or_insert(start.into());
            }
            Manager::Docker if self.is_installed => {
                docker::create(self.rig, &mark, self.restarts, &flags);
            }
            Manager::Systemd => {
                let systemd = self.rig.systemd();
                if self.is_installed {
                    systemd.install_unit(&format!("{mark}.service"), self.restarts, &command);
                }
            }
            Manager::Docker => {}
        }
        self.rig.set(&format!("services.{}", self.name), self.settings);
        Service { mark, port: self.port, command }
    }
}

fn start_command(rig: &Rig, script: Script, mark: &str, command: &str) -> String {
    match script {
        Script::Foreground => format!("exec {command}"),
        Script::Background => format!("{command} &"),
        Script::Detached => format!("nohup setsid {command} >/dev/null 2>&1 &"),
        Script::Daemon => format!("{command} --daemonise"),
        Script::File => {
            let body = format!("cd \"$(dirname \"$0\")\" || exit 1\n{command}\necho ended");
            rig.program(&format!("start-{mark}.sh"), &body).display().to_string()
        }
    }
}

/// A service that is in the configuration.
pub struct Service {
    mark: String,
    port: u16,
    command: String,
}

impl Service {
    /// Its name with the rig's token: what its processes, its claims and its container are called.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// The server's command line, to start it behind gpuctl's back.
    pub fn command(&self) -> &str {
        &self.command
    }

    pub fn is_healthy(&self) -> bool {
        ureq::get(self.url("/health")).call().is_ok()
    }

    /// Sends it a request on a thread; its whole answer, or nothing where that was cut off.
    pub fn request(&self, path: &str, body: &serde_json::Value) -> JoinHandle<Option<String>> {
        let (url, body) = (self.url(path), body.to_string());
        std::thread::spawn(move || {
            ureq::post(url).send(body).ok()?.into_body().read_to_string().ok()
        })
    }

    /// Gives it a job, which takes all of its memory.
    #[track_caller]
    pub fn work(&self) {
        ureq::post(self.url("/work")).send_empty().unwrap();
    }
}
