//! A check of `gpuctl doctor`: its id, what it is about, its verdict, what was found, and what to
//! do.

use crate::error::Failure;
use crate::redact::mask;
use serde::Serialize;

/// Defines `CheckId` from the ids, in the order in which they are reported, and the titles of their
/// areas.
macro_rules! ids {
    ($($title:literal { $($name:ident = $id:literal,)* })*) => {
        /// Id of a check. The variants are in the order in which checks are reported.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum CheckId {
            $($(#[serde(rename = $id)] $name,)*)*
        }

        impl CheckId {
            #[cfg(test)]
            pub const ALL: &'static [CheckId] = &[$($(CheckId::$name,)*)*];

            /// Returns the id as JSON has it. This name is a contract and never changes.
            pub fn name(self) -> &'static str {
                match self {
                    $($(CheckId::$name => $id,)*)*
                }
            }

            /// Returns the title of the area that the check belongs to.
            pub fn title(self) -> &'static str {
                match self {
                    $($(CheckId::$name)|* => $title,)*
                }
            }
        }
    };
}

ids! {
    "Configuration" {
        ConfigFile = "config.file",
        ConfigPermissions = "config.permissions",
        ConfigValid = "config.valid",
        ConfigSecrets = "config.secrets",
        HttpToken = "http.token",
    }
    "GPU" {
        NvmlLibrary = "nvml.library",
        NvmlDriver = "nvml.driver",
        NvmlDevice = "nvml.device",
        NvmlSize = "nvml.size",
        NvmlProcesses = "nvml.processes",
        NvmlNamespace = "nvml.namespace",
        CudaVisibleDevices = "cuda.visible_devices",
    }
    "Memory" {
        VramReserve = "vram.reserve",
        VramService = "vram.service",
        VramPeak = "vram.peak",
        VramPhase = "vram.phase",
    }
    "Docker" {
        DockerClient = "docker.client",
        DockerEngine = "docker.engine",
        DockerVersion = "docker.version",
        DockerPermission = "docker.permission",
        DockerRuntime = "docker.runtime",
        DockerContainer = "docker.container",
        DockerGpu = "docker.gpu",
        DockerPorts = "docker.ports",
        DockerRestart = "docker.restart",
        DockerRemoval = "docker.removal",
    }
    "systemd" {
        SystemdManager = "systemd.manager",
        SystemdPermission = "systemd.permission",
        SystemdUnit = "systemd.unit",
        SystemdBoot = "systemd.boot",
        SystemdSocket = "systemd.socket",
    }
    "Native services" {
        NativeStart = "native.start",
        NativeStop = "native.stop",
        NativeFolder = "native.folder",
        NativeMatch = "native.match",
        NativeStrangers = "native.strangers",
    }
    "Services" {
        ServiceState = "service.state",
        ServiceHealth = "service.health",
        ServicePort = "service.port",
        ServiceShared = "service.shared",
        ServiceJobs = "service.jobs",
        ServiceUnload = "service.unload",
    }
    "Lock" {
        LockPlace = "lock.place",
        LockFolder = "lock.folder",
        LockRedis = "lock.redis",
        LockCredentials = "lock.credentials",
        LockVersion = "lock.version",
        LockRole = "lock.role",
        LockEviction = "lock.eviction",
        LockLatency = "lock.latency",
        LockRecord = "lock.record",
    }
    "State" {
        StateFolder = "state.folder",
        StateSpace = "state.space",
        StateLogs = "state.logs",
    }
    "Canary" {
        CanaryRestore = "canary.restore",
        CanaryLedger = "canary.ledger",
        CanaryBudget = "canary.budget",
        CanaryStart = "canary.start",
        CanarySpareGpu = "canary.spare_gpu",
        CanaryMaintenanceLock = "canary.maintenance_lock",
    }
    "System" {
        SystemKernel = "system.kernel",
    }
}

/// Verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    /// What was checked works, but may surprise.
    Warn,
    /// At least one command will not do what it should.
    Fail,
    /// The check could not be made, or there is nothing to check.
    Skip,
}

/// One check of `gpuctl doctor` with its result.
#[derive(Debug, Serialize)]
pub struct Check {
    pub id: CheckId,
    pub verdict: Verdict,
    /// Name of the service or phase that the check is about, if it is about one.
    pub subject: Option<String>,
    /// What was found.
    pub message: String,
    /// What to do about it. Every check that warns or fails has a fix.
    pub fix: Option<String>,
}

impl Check {
    fn new(id: CheckId, verdict: Verdict, message: &str, fix: Option<String>) -> Check {
        Check { id, verdict, subject: None, message: mask(message), fix }
    }

    pub fn pass(id: CheckId, message: impl AsRef<str>) -> Check {
        Check::new(id, Verdict::Pass, message.as_ref(), None)
    }

    pub fn skip(id: CheckId, why: impl AsRef<str>) -> Check {
        Check::new(id, Verdict::Skip, why.as_ref(), None)
    }

    pub fn warn(id: CheckId, message: impl AsRef<str>, fix: impl Into<String>) -> Check {
        Check::new(id, Verdict::Warn, message.as_ref(), Some(fix.into()))
    }

    pub fn fail(id: CheckId, message: impl AsRef<str>, fix: impl Into<String>) -> Check {
        Check::new(id, Verdict::Fail, message.as_ref(), Some(fix.into()))
    }

    /// Returns a failed check for a failure that other commands would meet too. Its hints are the
    /// fix, or `otherwise` if it has none.
    pub fn failure(id: CheckId, failure: &Failure, otherwise: &str) -> Check {
        let fix = match failure.hints.is_empty() {
            true => otherwise.to_owned(),
            false => failure.hints.join("; "),
        };
        Check::fail(id, &failure.message, fix)
    }

    /// Returns the check as one about this service or phase.
    pub fn of(self, subject: impl Into<String>) -> Check {
        Check { subject: Some(subject.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::CheckId;

    #[test]
    fn the_manual_lists_each_id_and_no_other() {
        let manual = include_str!("../../docs/doctor.md");
        let rows = manual.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let listed: Vec<&str> = rows.collect();
        let known: Vec<&str> = CheckId::ALL.iter().map(|id| id.name()).collect();
        assert_eq!(listed, known);
    }
}
