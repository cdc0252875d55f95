//! A real Redis of one test's own, on a TCP port and a Unix socket: `let Some(redis) = rig.redis() else { return };
//! rig.set("lock.url", redis.url());` Also what others do to the lock's key in it.

use crate::programs;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use crate::wait::until;
use crate::{Signal, processes};
use std::fs::{self, File};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;

/// The lock's key, unless it is configured otherwise.
pub const LOCK_KEY: &str = "gpu_mutex_v2";

impl Rig {
    /// An empty one. None where there is none to be had: the test returns then, and it has been said so.
    #[track_caller]
    pub fn redis(&self) -> Option<Redis> {
        self.redis_with(&[])
    }

    /// As `redis`, with options of `redis-server`: `&["--requirepass", "secret"]`, `&["--replicaof", "127.0.0.1", port]`.
    #[track_caller]
    pub fn redis_with(&self, options: &[&str]) -> Option<Redis> {
        let programs = ["redis-server", "redis-cli"];
        if let Some(missing) = programs.iter().find(|name| !programs::works(name, &["--version"])) {
            skip_or_fail("redis", missing);
            return None;
        }
        self.gets_a_machine().then(|| Redis::start(self, options))
    }
}

pub struct Redis {
    /// None while it is stopped.
    process: Option<Child>,
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
    /// Not to be sent to another thread: the kernel ends the server together with the thread that has started it.
    _thread: PhantomData<MutexGuard<'static, ()>>,
}

impl Redis {
    #[track_caller]
    fn start(rig: &Rig, options: &[&str]) -> Redis {
        let port = rig.port();
        let folder = rig.path(&format!("redis-{port}"));
        fs::create_dir(&folder).unwrap();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut redis = Redis { process: None, port, folder, options, _thread: PhantomData };
        redis.launch();
        redis
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Without a password, also where one is asked for.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub fn socket_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    pub fn pid(&self) -> i32 {
        self.process.as_ref().expect("it is stopped").id() as i32
    }

    pub fn signal(&self, signal: Signal) {
        processes::signal(self.pid(), signal);
    }

    /// Ends it at once, and saves nothing. Connections are refused from now on.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// It comes back on the same port and empty, or with what `SAVE` has written last. While it reads that, `LOADING` is
    /// an answer too, and the option `--key-load-delay MICROSECONDS` makes it last.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
    }

    /// What `redis-cli` prints, over the socket: `redis.cli(&["CONFIG", "SET", "maxmemory", "1"])`. Fails the test if
    /// Redis refuses.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> String {
        let output = self.redis_cli().arg("-e").args(words).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "redis-cli {words:?}: {stdout} {stderr}");
        stdout
    }

    /// Whether somebody has sent what it has not read yet; see proc_net(5).
    pub fn has_unread(&self) -> bool {
        let port = format!(":{:04X}", self.port());
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|line| {
            line[1].ends_with(&port) && line[3] == "01" && !line[4].ends_with(":00000000")
        })
    }

    /// Whether it answers, and has loaded what it had saved.
    pub fn is_ready(&self) -> bool {
        self.redis_cli().arg("PING").output().unwrap().stdout == b"PONG\n"
    }

    /// The lock's key, raw.
    #[track_caller]
    pub fn holder(&self) -> Option<String> {
        Some(self.cli(&["GET", LOCK_KEY])).filter(|value| !value.is_empty())
    }

    /// What the lock's key has still to live; -1 for ever, -2 without a key.
    #[track_caller]
    pub fn ttl_ms(&self) -> i64 {
        self.cli(&["PTTL", LOCK_KEY]).parse().unwrap()
    }

    /// What the Python clients from before gpuctl do, which know nothing of it.
    #[track_caller]
    pub fn legacy_acquire(&self, name: &str) -> bool {
        self.cli(&["SET", LOCK_KEY, name, "NX", "EX", "600"]) == "OK"
    }

    /// As they do it: deleted if the value is the name, told to nobody.
    #[track_caller]
    pub fn legacy_release(&self, name: &str) {
        if self.holder().as_deref() == Some(name) {
            self.cli(&["DEL", LOCK_KEY]);
        }
    }

    /// Starts it, and waits until it answers, whatever.
    #[track_caller]
    fn launch(&mut self) {
        let log = self.folder.join("log");
        let output = File::create(&log).unwrap();
        let process = programs::command("setpriv")
            // However this process ends, the server does too.
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--unixsocket"])
            .arg(self.socket())
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&self.folder)
            // The rig's token stays in its command line.
            .args(["--set-proc-title", "no"])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let process = self.process.insert(process);
        until("redis-server listens", || {
            let ended = process.try_wait().unwrap();
            let told = || fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none(), "redis-server does not start: {}", told());
            fs::exists(self.folder.join("socket")).unwrap()
        });
        until("redis-server answers", || {
            self.redis_cli().arg("PING").output().unwrap().status.success()
        });
    }

    /// With a deadline, since the server may be one that has been stopped by a signal.
    fn redis_cli(&self) -> Command {
        let mut command = programs::command("timeout");
        command.args(["30", "redis-cli", "-s"]).arg(self.socket());
        let password = self.options.iter().skip_while(|option| *option != "--requirepass").nth(1);
        if let Some(password) = password {
            command.env("REDISCLI_AUTH", password);
        }
        command
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}
