//! A machine that systemd runs: systemd is PID 1 of a container, over a copy of this machine's files that is thrown away.

use crate::processes::signal;
use crate::programs::{self, works};
use crate::skip::{root_or_skip, skip_or_fail};
use crate::wait::until;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Boots $0, with its own mounts, in a control group of its own, which systemd-nspawn divides.
const BOOT: &str = r#"
for root in /sys/fs/cgroup/unified /sys/fs/cgroup /sys/fs/cgroup/systemd; do
    if [ -e "$root/cgroup.procs" ] && mkdir -p "$root/$1"; then echo $$ >"$root/$1/cgroup.procs"; fi
done
cd "$0" && mount -t tmpfs tmpfs layers && mkdir layers/upper layers/work || exit 99
mount -t overlay overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work root || exit 99
: >root/etc/machine-id
printf '[Unit]\nDefaultDependencies=no\n' >root/etc/systemd/system/gpuctl-test.target
export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
exec systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --console=pipe --machine="$1" \
    --bind="$0/io:/io" --bind-ro="$2:/io/gpuctl" --directory=root systemd.unit=gpuctl-test.target
"#;

/// A machine that systemd runs, over a copy of this one's files that is thrown away.
pub struct Booted {
    folder: tempfile::TempDir,
    nspawn: Child,
    name: String,
}

impl Booted {
    /// None, loudly, where there is no root, no systemd-nspawn, or nothing to boot.
    #[track_caller]
    pub fn boot() -> Option<Booted> {
        if !root_or_skip() {
            return None;
        }
        if !works("systemd-nspawn", &["--version"]) || !Path::new("/lib/systemd/systemd").exists() {
            skip_or_fail("systemd", "systemd-nspawn with a systemd to boot");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for below in ["io", "layers", "root"] {
            fs::create_dir(folder.path().join(below)).unwrap();
        }
        fs::write(folder.path().join("io/gpuctl"), "").unwrap();
        let name = format!(
            "gpuctl-test-{}",
            folder.path().file_name().unwrap().to_string_lossy().replace('.', "")
        );
        let nspawn = Command::new("unshare")
            .args(["--mount", "sh", "-c", BOOT])
            .args([folder.path().as_os_str(), name.as_ref(), programs::gpuctl().as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("io/boot.log")).unwrap())
            .spawn()
            .unwrap();
        let mut machine = Booted { folder, nspawn, name };
        let mut has_ended = false;
        until("systemd is up", || {
            has_ended = machine.nspawn.try_wait().unwrap().is_some();
            has_ended
                || (machine.leader().is_some() && machine.sh("test -S /run/systemd/private").1)
        });
        if has_ended {
            let why = fs::read_to_string(machine.folder.path().join("io/boot.log")).unwrap();
            skip_or_fail("systemd", &format!("systemd in a container: {}", why.trim()));
            return None;
        }
        Some(machine)
    }

    /// Its PID 1, by our number.
    fn leader(&self) -> Option<String> {
        let nspawn = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
        let leader = children.split_whitespace().next()?.to_owned();
        let name = fs::read_to_string(format!("/proc/{leader}/comm")).ok()?;
        (name == "systemd\n").then_some(leader)
    }

    /// What a shell says in there, and whether it succeeds.
    #[must_use]
    pub fn sh(&self, script: &str) -> (String, bool) {
        let leader = self.leader().expect("the machine runs");
        let output = Command::new("nsenter")
            .args(["-t", &leader, "-m", "-p", "-u", "-i", "-n", "-C", "--", "env", "-i"])
            .args([
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "HOME=/root",
                "GPUCTL_STATE_DIR=/root/gpuctl-state",
            ])
            .args(["GPUCTL_CONFIG=/io/gpuctl.toml", "sh", "-c", script])
            .output()
            .unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.success())
    }

    /// Writes a file into its folder `/io`; where gpuctl is.
    pub fn file(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join("io").join(name), text).unwrap();
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // What lives in there ends with its PID 1, and that not with systemd-nspawn.
        if let Some(leader) = self.leader() {
            signal(leader.parse().unwrap(), Signal::KILL);
        }
        self.nspawn.kill().ok();
        self.nspawn.wait().ok();
        // A group can be removed once the last of its processes is gone.
        let give_up = Instant::now() + Duration::from_secs(10);
        for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/systemd"] {
            let group = Path::new(root).join(&self.name);
            while group.exists() && Instant::now() < give_up {
                let remove = ["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"];
                Command::new("find").arg(&group).args(remove).output().ok();
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
