//! A real Redis of one test's own, on a TCP port and a Unix socket, and what other programs do to
//! the lock's key in it: `let Some(redis) = rig.redis() else { return }; rig.set("lock.url",
//! redis.url());`

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

/// The lock's key in Redis, unless another is configured.
pub const LOCK_KEY: &str = "gpu_mutex_v2";

impl Rig {
    /// Starts an empty Redis. Returns `None`, after reporting the skip, if Redis or a machine of
    /// the rig's own is not available; the test should then return.
    #[track_caller]
    pub fn redis(&self) -> Option<Redis> {
        self.redis_with(&[])
    }

    /// Starts a Redis as `redis` does, with additional options of `redis-server`:
    /// `&["--requirepass", "secret"]`, `&["--replicaof", "127.0.0.1", port]`.
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

/// A Redis server. Dropping the `Redis` ends it.
pub struct Redis {
    /// The server's process; `None` while the server is stopped.
    process: Option<Child>,
    port: u16,
    folder: PathBuf,
    options: Vec<String>,
    /// Keeps a `Redis` from being sent to another thread: the kernel ends the server together with
    /// the thread that has started it.
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

    /// Returns the server's URL, without a password even if the server asks for one.
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

    /// Ends the server at once, without saving anything. Connections are refused from now on.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// Restarts the server on the same port, empty or with what `SAVE` has written last. While the
    /// server loads that, it may still answer `LOADING`; the option `--key-load-delay MICROSECONDS`
    /// makes this last longer.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.launch();
    }

    /// Calls `redis-cli` over the socket and returns what it prints:
    /// `redis.cli(&["CONFIG", "SET", "maxmemory", "1"])`. Fails the test if Redis refuses.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> String {
        let output = self.redis_cli().arg("-e").args(words).output().unwrap();
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "redis-cli {words:?}: {stdout} {stderr}");
        stdout
    }

    /// Reports whether somebody has sent data over TCP that the server has not read yet; see
    /// proc_net(5).
    pub fn has_unread(&self) -> bool {
        let port = format!(":{:04X}", self.port());
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).any(|line| {
            line[1].ends_with(&port) && line[3] == "01" && !line[4].ends_with(":00000000")
        })
    }

    /// Reports whether the server answers and has loaded what it had saved.
    pub fn is_ready(&self) -> bool {
        self.redis_cli().arg("PING").output().unwrap().stdout == b"PONG\n"
    }

    /// Returns the raw value of the lock's key, or `None` if there is none.
    #[track_caller]
    pub fn holder(&self) -> Option<String> {
        Some(self.cli(&["GET", LOCK_KEY])).filter(|value| !value.is_empty())
    }

    /// Returns how many milliseconds the lock's key has still to live: -1 if for ever, -2 if there
    /// is no key.
    #[track_caller]
    pub fn ttl_ms(&self) -> i64 {
        self.cli(&["PTTL", LOCK_KEY]).parse().unwrap()
    }

    /// Takes the lock as the Python clients from before gpuctl do, which know nothing of gpuctl,
    /// and reports whether that succeeded.
    #[track_caller]
    pub fn legacy_acquire(&self, name: &str) -> bool {
        self.cli(&["SET", LOCK_KEY, name, "NX", "EX", "600"]) == "OK"
    }

    /// Releases the lock as the Python clients from before gpuctl do: deletes the key if its value
    /// is the name, and notifies nobody.
    #[track_caller]
    pub fn legacy_release(&self, name: &str) {
        if self.holder().as_deref() == Some(name) {
            self.cli(&["DEL", LOCK_KEY]);
        }
    }

    /// Starts the server and waits until it answers, even if only with an error.
    #[track_caller]
    fn launch(&mut self) {
        let log = self.folder.join("log");
        let output = File::create(&log).unwrap();
        let process = programs::command("setpriv")
            // The kernel ends the server too, however this process ends.
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args(["--bind", "127.0.0.1", "--port", &self.port.to_string(), "--unixsocket"])
            .arg(self.socket())
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&self.folder)
            // The rig's token stays in the server's command line.
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

    /// Prepares a call of `redis-cli` with a deadline, since the server may have been stopped by a
    /// signal.
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
