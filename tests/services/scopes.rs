//! Native services on a machine that systemd runs.

use rig::Booted;

fn start_is(machine: &Booted, start: &str) {
    let config = format!(
        "[gpu]\ntotal_mb = 8000\n[services.one]\ntype = \"native\"\nvram_mb = 100\nstart = '''{start}'''\n"
    );
    machine.file("gpuctl.toml", &config);
}

/// How many processes run `sleep` for so long, and are in a scope of gpuctl's.
const IN_SCOPE: &str = "for p in $(pgrep -fx '(/bin/)?sleep 777[0-9]'); do tail -n 1 /proc/$p/cgroup; done | \
                        grep -c '^0::/system.slice/gpuctl-one-[0-9a-f]*.scope$'";

#[test]
fn what_comes_of_a_start_is_in_its_scope_outlives_the_callers_unit_and_ends_with_a_stop() {
    let Some(machine) = Booted::boot() else { return };
    // In the background, nobody's child, of its own session, without environment and log.
    start_is(&machine, "(setsid env -i /bin/sleep 7771 >/dev/null 2>&1 &); exec sleep 7770");
    let unit = "[Service]\nType=oneshot\nPassEnvironment=GPUCTL_STATE_DIR GPUCTL_CONFIG\nExecStart=/io/gpuctl start one\n";
    machine.file("caller.service", unit);
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
    let Some(machine) = Booted::boot() else { return };
    start_is(&machine, "echo ran >>/root/ran; exec sleep 7770");
    let refuse = "printf '#!/bin/sh\\nexit 1\\n' >/usr/local/sbin/systemd-run; chmod +x /usr/local/sbin/systemd-run";
    assert!(machine.sh(refuse).1);
    assert!(machine.sh("PATH=/usr/local/sbin:$PATH /io/gpuctl start one").1);
    assert_eq!(machine.sh("cat /root/ran; pgrep -cfx 'sleep 7770'").0, "ran\n1\n");
    assert_eq!(machine.sh(IN_SCOPE).0, "0\n");
    assert!(machine.sh("/io/gpuctl stop one").1);
    assert_eq!(machine.sh("pgrep -fx 'sleep 7770'").0, "");
}
