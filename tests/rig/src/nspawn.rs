//! A machine that systemd runs: systemd is PID 1 of a container, over a copy of this machine's
//! files that is thrown away, with logind, dbus, polkit if it is installed, and two users, one of
//! whom lingers. The machine can be rebooted, and loses its power when its PID 1 is killed.

use crate::card::Card;
use crate::page::repository;
use crate::prober::Prober;
use crate::programs::{self, command, works};
use crate::skip::{root_or_skip, skip_or_fail};
use crate::wait::{comes, until};
use crate::{Signal, processes, surroundings};
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock};

/// Script that boots the machine in the folder $0 under the name $1 for each line that it reads,
/// with mounts and a control group of its own, which systemd-nspawn divides; $2 is the folder with
/// the programs. At the end of the script's input, which comes however the test ends, the machine
/// is ended and nothing of it is left.
const WATCHDOG: &str = r#"
groups='/sys/fs/cgroup/unified /sys/fs/cgroup /sys/fs/cgroup/systemd'
for root in $groups; do
    if [ -e "$root/cgroup.procs" ] && mkdir -p "$root/$1"; then echo $$ >"$root/$1/cgroup.procs"; fi
done
cd "$0" && mount -t tmpfs tmpfs layers && mkdir layers/upper layers/work || exit 99
mount -t overlay overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work root || exit 99
: >root/etc/machine-id
# Nothing of what this machine starts.
rm -rf root/etc/systemd/system/*.wants root/etc/systemd/system/*.requires root/var/lib/gpuctl
# Nor what its shells do at each login: pyenv waits a minute there for a login that was cut off.
rm -f root/root/.bashrc root/root/.bash_profile root/root/.bash_login root/root/.profile
for user in tester:1990 lingerer:1991; do
    name=${user%:*} id=${user#*:}
    echo "$name:x:$id:$id::/home/$name:/bin/sh" >>root/etc/passwd
    echo "$name:x:$id:" >>root/etc/group
    echo "$name:*:19000:0:99999:7:::" >>root/etc/shadow
    mkdir -p "root/home/$name" && chown "$id:$id" "root/home/$name"
done
mkdir -p root/var/lib/systemd/linger && : >root/var/lib/systemd/linger/lingerer
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
nspawn=
while read -r _; do
    systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --console=pipe --machine="$1" \
        --bind="$0/io:/io" --bind-ro="$2:/io/bin" --directory=root systemd.unit=multi-user.target \
        </dev/null >"$0/io/console" 2>&1 &
    nspawn=$!
    echo $nspawn >io/nspawn.new && mv io/nspawn.new io/nspawn
done
if [ -n "$nspawn" ]; then
    # What lives in there ends with its PID 1, and that not with systemd-nspawn.
    kill -9 $(cat "/proc/$nspawn/task/$nspawn/children") $nspawn
    wait
fi 2>/dev/null
cd / && umount -l "$0/root" "$0/layers"
rm -rf "$0"
for root in $groups; do
    if [ -e "$root/$1" ]; then
        echo $$ >"$root/cgroup.procs"
        until find "$root/$1" -depth -type d -exec rmdir {} + 2>/dev/null; do sleep 0.05; done
    fi
done
"#;

/// A machine that systemd runs. Dropping the `Machine` ends it.
pub struct Machine {
    folder: PathBuf,
    /// The watchdog's input; `None` once the machine is to end.
    leash: Mutex<Option<ChildStdin>>,
    watchdog: Mutex<Child>,
}

impl Machine {
    /// Returns the machine that the tests of this process share, which the first call boots.
    /// Returns `None`, after reporting the skip, if no such machine can be booted here.
    #[track_caller]
    pub fn shared() -> Option<&'static Machine> {
        static MACHINE: OnceLock<Result<Machine, String>> = OnceLock::new();
        if !root_or_skip() {
            return None;
        }
        match MACHINE.get_or_init(Machine::boot) {
            Ok(machine) => Some(machine),
            Err(why) => {
                skip_or_fail("systemd", why);
                None
            }
        }
    }

    /// Boots a machine for one test alone, which may reboot it. Returns `None`, after reporting the
    /// skip, if no such machine can be booted here.
    #[track_caller]
    pub fn own() -> Option<Machine> {
        // `shared` has reported the skip if no machine can be booted here.
        Machine::shared()?;
        Some(Machine::boot().unwrap())
    }

    fn boot() -> Result<Machine, String> {
        let systemd = ["/lib/systemd/systemd", "/usr/lib/systemd/systemd"];
        if !works("systemd-nspawn", &["--version"])
            || !systemd.iter().any(|path| Path::new(path).exists())
        {
            return Err("systemd-nspawn with a systemd to boot".to_owned());
        }
        surroundings::leave();
        let folder = tempfile::Builder::new().prefix("gpuctl-machine-").tempdir().unwrap().keep();
        for below in ["io", "io/bin", "layers", "root"] {
            fs::create_dir(folder.join(below)).unwrap();
        }
        let name = folder.file_name().unwrap().to_string_lossy().replace('.', "");
        let mut watchdog = command("unshare")
            .args(["--mount", "sh", "-c", WATCHDOG])
            .args([folder.as_os_str(), name.as_ref()])
            .arg(programs::simserver().parent().unwrap())
            // A Ctrl-C in the tester's terminal must not reach the watchdog.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("io/watchdog")).unwrap())
            .spawn()
            .unwrap();
        let leash = Mutex::new(watchdog.stdin.take());
        let machine = Machine { folder, leash, watchdog: Mutex::new(watchdog) };
        machine.switch_on();
        let is_up = comes(|| machine.is_up() || machine.has_failed());
        if is_up && machine.is_up() {
            return Ok(machine);
        }
        let said = |name| fs::read_to_string(machine.folder.join(name)).unwrap_or_default();
        Err(format!("systemd in a container: {}{}", said("io/watchdog"), said("io/console")))
    }

    fn switch_on(&self) {
        let mut leash = self.leash.lock().unwrap();
        writeln!(leash.as_mut().expect("it is not let go"), "on").unwrap();
    }

    fn has_failed(&self) -> bool {
        self.watchdog.lock().unwrap().try_wait().unwrap().is_some() || self.is_off()
    }

    fn is_up(&self) -> bool {
        self.leader().is_some()
            && self.try_sh("systemctl is-system-running | grep -Eq 'running|degraded'").1
    }

    fn is_off(&self) -> bool {
        let nspawn = fs::read_to_string(self.folder.join("io/nspawn")).ok();
        let nspawn = nspawn.and_then(|text| text.trim().parse().ok());
        nspawn.is_some_and(|pid| matches!(processes::state(pid), None | Some('Z')))
    }

    /// Returns the PID that the machine's PID 1 has outside of the machine, or `None` if the
    /// machine is not running.
    pub fn leader(&self) -> Option<i32> {
        let nspawn = fs::read_to_string(self.folder.join("io/nspawn")).ok()?;
        let nspawn = nspawn.trim();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
        let leader = children.split_whitespace().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{leader}/comm")).ok()?;
        (name == "systemd\n").then_some(leader)
    }

    /// Ends the whole machine at once, by killing its PID 1, and waits until it is off.
    pub fn loses_power(&self) {
        processes::signal(self.leader().expect("the machine runs"), Signal::KILL);
        until("it is off", || self.is_off());
    }

    /// Waits until the machine is off, switches it on again, and waits until it has booted.
    #[track_caller]
    pub fn boots(&self) {
        until("it is off", || self.is_off());
        fs::remove_file(self.folder.join("io/nspawn")).unwrap();
        self.switch_on();
        until("it has booted", || self.is_up());
    }

    /// Shuts the machine down in an orderly way, and waits until it is off.
    #[track_caller]
    pub fn shuts_down(&self) {
        self.try_sh("systemctl poweroff --no-block");
        until("it is off", || self.is_off());
    }

    /// Runs a shell script in the machine, as root with the environment of a fresh login, and
    /// returns all its output and whether it succeeded. On a machine that is not running it fails.
    pub fn try_sh(&self, script: &str) -> (String, bool) {
        let Some(output) = self.shell(&format!("exec 2>&1; {script}")) else {
            return (String::new(), false);
        };
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success())
    }

    /// Runs a shell script in the machine; returns `None` if the machine is not running.
    fn shell(&self, script: &str) -> Option<Output> {
        let leader = self.leader()?.to_string();
        let spaces = ["-m", "-p", "-u", "-i", "-n", "-C"];
        let environment = ["PATH=/io/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"];
        let mut nsenter = command("nsenter");
        nsenter.args(["-t", &leader]).args(spaces).args(["--", "env", "-i"]).args(environment);
        Some(nsenter.args(["sh", "-c", script]).output().unwrap())
    }

    /// Runs a shell script in the machine and returns the JSON document on its stdout, whatever it
    /// writes to stderr.
    #[track_caller]
    pub fn json(&self, script: &str) -> Value {
        let output = self.shell(script).expect("the machine runs");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{script}: {error}: {output:?}"))
    }

    /// Runs a shell script in the machine and returns all its output; fails the test if the script
    /// fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let (said, succeeds) = self.try_sh(script);
        assert!(succeeds, "{script}: {said}");
        said
    }

    /// Moves the thread, with everything that it starts from then on, into the machine's network,
    /// which lasts until the machine is booted again.
    pub fn enter_network(&self) {
        let leader = self.leader().expect("the machine runs");
        let network = fs::File::open(format!("/proc/{leader}/ns/net")).unwrap();
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Makes a corner of the machine for one test, with a folder, a card, a configuration and ports
    /// of its own.
    pub fn corner(&self) -> Corner<'_> {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let name = format!("t{number}");
        let folder = self.folder.join("io").join(&name);
        fs::create_dir(&folder).unwrap();
        let card = Card::new(&folder.join("card"));
        // Every user may take the lock.
        fs::write(folder.join("lock"), "").unwrap();
        fs::set_permissions(folder.join("lock"), fs::Permissions::from_mode(0o666)).unwrap();
        let corner = Corner { machine: self, card, folder, name, port: 20_000 + number * 10 };
        corner.config("");
        corner
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.leash.lock().unwrap().take();
        self.watchdog.lock().unwrap().wait().ok();
    }
}

/// One test's corner of a machine: a configuration, a card, a state folder and ports, and units
/// that bear its name.
pub struct Corner<'a> {
    pub machine: &'a Machine,
    pub card: Card,
    folder: PathBuf,
    name: String,
    /// The first of the ten TCP ports that are this corner's.
    pub port: u16,
}

impl Corner<'_> {
    /// Returns a name that is this corner's alone, such as `vllm-t3`.
    pub fn mark(&self, name: &str) -> String {
        format!("{name}-{}", self.name)
    }

    /// Returns a path in the corner's folder, as the machine sees it.
    pub fn path(&self, name: &str) -> String {
        format!("/io/{}/{name}", self.name)
    }

    /// Returns the corner's folder, as this process sees it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reports whether the server at the corner's `n`th port, counted from 0, is healthy, and
    /// leaves the thread in the machine's network.
    pub fn is_healthy(&self, n: u16) -> bool {
        self.machine.enter_network();
        ureq::get(self.url(n)).call().is_ok()
    }

    /// Starts to watch from outside for how long the server at the corner's `n`th port, counted
    /// from 0, is away, and leaves the thread in the machine's network.
    pub fn probe(&self, n: u16) -> Prober {
        self.machine.enter_network();
        Prober::of(self.url(n))
    }

    fn url(&self, n: u16) -> String {
        format!("http://127.0.0.1:{}/health", self.port + n)
    }

    /// Writes a file into the corner's folder.
    pub fn file(&self, name: &str, text: &str) {
        fs::write(self.folder.join(name), text).unwrap();
    }

    /// Returns the content of a file in the corner's folder; if it cannot be read, that is empty.
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Writes the configuration: the simulated card, a lock of the corner's own, and these tables.
    pub fn config(&self, tables: &str) {
        let text = format!(
            "[gpu]\nnvml_library = \"/io/bin/libsimgpu.so\"\n[lock]\nurl = \"file://{}\"\n{tables}",
            self.path("lock")
        );
        self.file("gpuctl.toml", &text);
    }

    /// Returns the command line of a model server of this corner, at its `n`th port, counted from
    /// 0.
    pub fn server(&self, name: &str, n: u16, flags: &str) -> String {
        format!("/io/bin/simserver --name {} --port {} {flags}", self.mark(name), self.port + n)
    }

    /// Installs a unit, given its full name and its text, for this boot and the next ones. systemd
    /// is reloaded only if the unit is not new, because a reload takes longer the more units there
    /// are.
    #[track_caller]
    pub fn unit(&self, name: &str, text: &str) {
        self.file(name, text);
        let place = format!("/etc/systemd/system/{name}");
        let reload = format!("[ ! -e '{place}' ] || reload=1; cp '{}' '{place}'", self.path(name));
        self.machine.sh(&format!("{reload}; [ -z \"$reload\" ] || systemctl daemon-reload"));
    }

    /// Installs a unit of `examples/systemd` under this name, with the programs and folders of this
    /// corner in place of its own, and with the further replacements in `more`.
    #[track_caller]
    pub fn example(&self, unit: &str, name: &str, more: &[(&str, &str)]) {
        let text = fs::read_to_string(repository().join("examples/systemd").join(unit)).unwrap();
        let own = format!("[Service]\n{}", self.environment());
        let (config, state) = (self.path("gpuctl.toml"), self.path("state"));
        let places = [
            ("/usr/bin/gpuctl", "/io/bin/gpuctl"),
            ("/etc/gpuctl/config.toml", &config),
            ("/var/lib/gpuctl", &state),
            ("[Service]\n", &own),
        ];
        let replaced = |text: String, (theirs, ours): &(&str, &str)| text.replace(theirs, ours);
        self.unit(name, &places.iter().chain(more).fold(text, replaced));
    }

    /// Returns the `[Service]` lines that every server of this corner needs.
    pub fn environment(&self) -> String {
        format!("Environment=SIMGPU_DIR={}\n", self.path("card"))
    }

    /// Runs a shell script in the machine, in the environment of this corner, and returns all its
    /// output and whether it succeeded.
    pub fn try_sh(&self, script: &str) -> (String, bool) {
        self.machine.try_sh(&format!("{} {script}", self.exports()))
    }

    /// Runs a shell script in the machine, in the environment of this corner, and returns all its
    /// output; fails the test if the script fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.machine.sh(&format!("{} {script}", self.exports()))
    }

    /// Runs a shell script in the machine, in the environment of this corner, and returns the JSON
    /// document on its stdout.
    #[track_caller]
    pub fn json(&self, script: &str) -> Value {
        self.machine.json(&format!("{} {script}", self.exports()))
    }

    fn exports(&self) -> String {
        format!(
            "export GPUCTL_CONFIG={} GPUCTL_STATE_DIR={} SIMGPU_DIR={};",
            self.path("gpuctl.toml"),
            self.path("state"),
            self.path("card")
        )
    }

    /// Runs gpuctl with these words in the machine, and returns its exit code and all its output.
    pub fn gpuctl(&self, words: &str) -> (i32, String) {
        let said = self.try_sh(&format!("gpuctl {words}; echo \"exit $?\"")).0;
        let (said, code) = said.trim_end().rsplit_once("exit ").expect("the shell tells it");
        (code.parse().unwrap(), said.to_owned())
    }

    /// Returns the state and the detail of a service, according to `gpuctl status`.
    #[track_caller]
    pub fn state(&self, service: &str) -> (String, String) {
        let status = self.json("gpuctl status --json");
        let of = &status["services"][service];
        (of["state"].as_str().unwrap().to_owned(), of["detail"].as_str().unwrap_or("").to_owned())
    }
}
