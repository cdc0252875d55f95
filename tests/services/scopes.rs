//! Native services on a machine that systemd runs: systemd is PID 1 of a container, over a copy of this machine's files
//! that is thrown away.

use rig::{Signal, root_or_skip, signal, skip_or_fail, until, works};
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

/// A machine that systemd runs.
struct Machine {
    folder: tempfile::TempDir,
    nspawn: Child,
    name: String,
}

impl Machine {
    #[track_caller]
    fn boot() -> Option<Machine> {
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
            .args([folder.path().as_os_str(), name.as_ref(), env!("CARGO_BIN_EXE_gpuctl").as_ref()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("io/boot.log")).unwrap())
            .spawn()
            .unwrap();
        let mut machine = Machine { folder, nspawn, name };
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
    fn sh(&self, script: &str) -> (String, bool) {
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

    fn start_is(&self, start: &str) {
        let config = format!(
            "[gpu]\ntotal_mb = 8000\n[services.one]\ntype = \"native\"\nvram_mb = 100\nstart = '''{start}'''\n"
        );
        fs::write(self.folder.path().join("io/gpuctl.toml"), config).unwrap();
    }
}

impl Drop for Machine {
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

/// How many processes run `sleep` for so long, and are in a scope of gpuctl's.
const IN_SCOPE: &str = "for p in $(pgrep -fx '(/bin/)?sleep 777[0-9]'); do tail -n 1 /proc/$p/cgroup; done | \
                        grep -c '^0::/system.slice/gpuctl-one-[0-9a-f]*.scope$'";

#[test]
fn what_comes_of_a_start_is_in_its_scope_outlives_the_callers_unit_and_ends_with_a_stop() {
    let Some(machine) = Machine::boot() else { return };
    // In the background, nobody's child, of its own session, without environment and log.
    machine.start_is("(setsid env -i /bin/sleep 7771 >/dev/null 2>&1 &); exec sleep 7770");
    let unit = "[Service]\nType=oneshot\nPassEnvironment=GPUCTL_STATE_DIR GPUCTL_CONFIG\nExecStart=/io/gpuctl start one\n";
    fs::write(machine.folder.path().join("io/caller.service"), unit).unwrap();
    let in_unit = "systemctl set-environment GPUCTL_STATE_DIR=$GPUCTL_STATE_DIR GPUCTL_CONFIG=$GPUCTL_CONFIG && \
                   systemctl link --runtime /io/caller.service && systemctl start caller.service";
    for start in ["/io/gpuctl start one", in_unit] {
        assert!(machine.sh(start).1, "{start}");
        assert_eq!(machine.sh(IN_SCOPE).0, "2\n", "{start}");
        assert!(machine.sh("/io/gpuctl stop one").1, "{start}");
        assert_eq!(machine.sh("pgrep -fx '(/bin/)?sleep 777[0-9]'").0, "", "{start}");
    }
}

#[test]
fn without_a_scope_the_command_runs_once_all_the_same() {
    let Some(machine) = Machine::boot() else { return };
    machine.start_is("echo ran >>/root/ran; exec sleep 7770");
    let refuse = "printf '#!/bin/sh\\nexit 1\\n' >/usr/local/sbin/systemd-run; chmod +x /usr/local/sbin/systemd-run";
    assert!(machine.sh(refuse).1);
    assert!(machine.sh("PATH=/usr/local/sbin:$PATH /io/gpuctl start one").1);
    assert_eq!(machine.sh("cat /root/ran; pgrep -cfx 'sleep 7770'").0, "ran\n1\n");
    assert_eq!(machine.sh(IN_SCOPE).0, "0\n");
    assert!(machine.sh("/io/gpuctl stop one").1);
    assert_eq!(machine.sh("pgrep -fx 'sleep 7770'").0, "");
}
