//! A systemd of the rig's own: a `systemctl` on its PATH that really starts and ends the servers and answers in the
//! format of the real one, because test machines are not booted with systemd.

use crate::programs;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use crate::wait;
use std::fs;
use std::path::{Path, PathBuf};

/// How `systemctl` fails.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// All of it: the machine has another init.
    NotBooted,
    /// Polkit lets us look, and not act.
    NoPermission,
}

pub struct Systemd {
    units: PathBuf,
    /// The slice's folder, and its path as `/proc/PID/cgroup` has it; none where control groups cannot be made.
    slice: Option<(PathBuf, String)>,
}

impl Systemd {
    pub fn install(rig: &Rig, token: &str) -> Systemd {
        let units = rig.path("systemd");
        fs::create_dir(&units).unwrap();
        for name in ["systemctl", "journalctl"] {
            programs::install(include_str!("systemctl.sh"), &rig.path(&format!("bin/{name}")));
        }
        // The polkit of that machine, which lets everybody do everything.
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

    /// What `show` tells of a unit's installation: `file=enabled`, `load=masked`.
    pub fn installs(&self, unit: &str, facts: &str) {
        fs::write(self.units.join(unit).join("installed"), facts).unwrap();
    }

    /// Whether units have them; where they cannot be made, what depends on them is skipped, loudly.
    #[track_caller]
    pub fn has_control_groups(&self) -> bool {
        if self.slice.is_none() {
            skip_or_fail("cgroups", "control groups that can be made");
        }
        self.slice.is_some()
    }

    /// From now on.
    pub fn fails(&self, fault: Fault) {
        fs::write(self.units.join("fault"), format!("{fault:?}")).unwrap();
    }

    /// Once nothing runs in them.
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
