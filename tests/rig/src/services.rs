//! Services of a rig: model servers of `simserver` under each of the three managers, with their
//! part of the configuration: `rig.native("vidi").vram(4000).phases([2]).server("--warmup
//! 300ms").add()`.

use crate::rig::Rig;
use crate::{docker, programs};
use std::thread::JoinHandle;
use toml::{Table, Value};

/// Shapes of start commands, as they are found in the wild.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// `exec server`: the command becomes the server.
    Foreground,
    /// `server &`: the script returns while the server goes on.
    Background,
    /// `nohup setsid server &`: the server has a session of its own, and its output is thrown away.
    Detached,
    /// The server forks twice and makes a session of its own, and the command exits with 0.
    Daemon,
    /// A script file with a shebang, whose shell stays as the server's parent.
    File,
}

#[derive(Clone, Copy)]
enum Manager {
    Native(Script),
    Docker,
    Systemd,
}

impl Rig {
    /// Describes a service that is started by a command. By default the command stays in the
    /// foreground, and the service has a `match` that finds the server by its name as well.
    pub fn native(&self, name: &str) -> Draft<'_> {
        let draft = Draft::new(self, name, Manager::Native(Script::Foreground));
        let pattern = format!("simserver.*{}", self.mark(name));
        draft.set("type", "native").set("match", pattern)
    }

    /// Describes a service in a Docker container, which `add` creates but does not start.
    pub fn container(&self, name: &str) -> Draft<'_> {
        let draft = Draft::new(self, name, Manager::Docker);
        draft.set("type", "docker").set("container", self.mark(name))
    }

    /// Describes a service in a unit of the simulated systemd.
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

    /// Sets the memory that is declared, in MB; the server takes as much, unless its flags say
    /// otherwise. The default is 1000.
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

    /// Sets additional flags of `simserver`, which can misbehave in many ways.
    pub fn server(mut self, flags: &str) -> Self {
        self.server = flags.to_owned();
        self
    }

    /// Sets the shape of a native service's start command.
    pub fn script(mut self, script: Script) -> Self {
        self.manager = Manager::Native(script);
        self
    }

    /// Removes a native service's `match`, so that it is found by gpuctl's own mark alone.
    pub fn without_match(mut self) -> Self {
        self.settings.remove("match");
        self
    }

    /// Removes the health check, so that gpuctl has nothing to ask whether the service is healthy.
    pub fn without_health(mut self) -> Self {
        self.settings.remove("health");
        self
    }

    /// Makes the service's manager start it again whenever it ends: Docker's `--restart always`,
    /// systemd's `Restart=always`.
    pub fn restarts(mut self) -> Self {
        self.restarts = true;
        self
    }

    /// Keeps the service in the configuration, but does not make its container or unit.
    pub fn not_installed(mut self) -> Self {
        self.is_installed = false;
        self
    }

    /// Sets any key of the service, in place of what the rig would write:
    /// `.set("stop_timeout", "1s")`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Writes the service into the configuration and makes its container or unit, if it has one.
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
    /// Returns the service's name with the rig's token, which its processes, its claims and its
    /// container or unit bear.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// Returns the server's command line, for starting it behind gpuctl's back.
    pub fn command(&self) -> &str {
        &self.command
    }

    pub fn is_healthy(&self) -> bool {
        ureq::get(self.url("/health")).call().is_ok()
    }

    /// Posts a request to the server on a thread of its own, which returns the whole answer, or
    /// `None` if the request failed or its answer was cut off.
    pub fn request(&self, path: &str, body: &serde_json::Value) -> JoinHandle<Option<String>> {
        let (url, body) = (self.url(path), body.to_string());
        std::thread::spawn(move || {
            ureq::post(url).send(body).ok()?.into_body().read_to_string().ok()
        })
    }

    /// Gives the server a job, for which it takes all of its memory.
    #[track_caller]
    pub fn work(&self) {
        ureq::post(self.url("/work")).send_empty().unwrap();
    }
}
