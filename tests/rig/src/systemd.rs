//! A simulated systemd of the rig's own: a `systemctl` on its PATH that really starts and ends the
//! servers and answers in the format of the real one, because machines that run tests need not be
//! booted with systemd.

use crate::programs;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use crate::wait;
use std::fs;
use std::path::{Path, PathBuf};

/// Ways in which `systemctl` can be made to fail.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Every call fails, because the machine has another init.
    NotBooted,
    /// Polkit permits queries, but no actions.
    NoPermission,
}

/// The simulated systemd of one rig.
pub struct Systemd {
    units: PathBuf,
    /// Folder of the slice that holds the units, and its path as shown in `/proc/PID/cgroup`;
    /// `None` if control groups cannot be made.
    slice: Option<(PathBuf, String)>,
}

impl Systemd {
    /// Puts `systemctl`, `journalctl` and `pkcheck` on the rig's PATH, and makes a slice for its
    /// units if control groups can be made.
    pub fn install(rig: &Rig, token: &str) -> Systemd {
        let units = rig.path("systemd");
        fs::create_dir(&units).unwrap();
        for name in ["systemctl", "journalctl"] {
            programs::install(include_str!("systemctl.sh"), &rig.path(&format!("bin/{name}")));
        }
        // Stands in for polkit's client, and permits everything to everybody.
        rig.program("pkcheck", "");
        let name = format!("gpuctl-{token}.slice");
        let slice = ["", "unified", "systemd"].into_iter().find_map(|hierarchy| {
            let root = Path::new("/sys/fs/cgroup").join(hierarchy);
            let folder = root.join(&name);
            (root.join("cgroup.procs").exists() && fs::create_dir(&folder).is_ok())
                .then(|| (folder, format!("/{name}")))
        });
        Systemd { units, slice }
    }

    pub fn install_unit(&self, unit: &str, restarts: bool, command: &str) {
        let folder = self.units.join(unit);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("command"), command).unwrap();
        if restarts {
            fs::write(folder.join("restarts"), "").unwrap();
        }
        if let Some((slice, path)) = &self.slice {
            fs::create_dir(slice.join(unit)).unwrap();
            fs::write(folder.join("cgroup"), slice.join(unit).to_str().unwrap()).unwrap();
            fs::write(folder.join("group"), format!("{path}/{unit}")).unwrap();
        }
    }

    /// Sets what `show` reports about a unit's installation, as in `file=enabled` or `load=masked`.
    pub fn installs(&self, unit: &str, facts: &str) {
        fs::write(self.units.join(unit).join("installed"), facts).unwrap();
    }

    /// Returns whether units have control groups; if none can be made, reports the skip of what
    /// depends on them.
    #[track_caller]
    pub fn has_control_groups(&self) -> bool {
        if self.slice.is_none() {
            skip_or_fail("cgroups", "control groups that can be made");
        }
        self.slice.is_some()
    }

    /// Makes `systemctl` fail in this way from now on.
    pub fn fails(&self, fault: Fault) {
        fs::write(self.units.join("fault"), format!("{fault:?}")).unwrap();
    }

    /// Removes the control groups of the units, once nothing runs in them any more.
    pub fn remove_control_groups(&self) {
        let Some((slice, _)) = &self.slice else { return };
        let is_removed = wait::comes(|| {
            for unit in fs::read_dir(slice).into_iter().flatten().flatten() {
                fs::remove_dir(unit.path()).ok();
            }
            fs::remove_dir(slice).is_ok()
        });
        if !is_removed {
            eprintln!("LEFT BEHIND: {}", slice.display());
        }
    }
}
