//! A check: its id, what it is about, its verdict, what was found, and what to do about it.

use crate::error::Failure;
use crate::redact::mask;
use serde::Serialize;

/// The ids in the order in which they are told, each with the title of its area.
macro_rules! ids {
    ($($title:literal { $($name:ident = $id:literal,)* })*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        pub enum CheckId {
            $($(#[serde(rename = $id)] $name,)*)*
        }

        impl CheckId {
            #[cfg(test)]
            pub const ALL: &'static [CheckId] = &[$($(CheckId::$name,)*)*];

            /// Returns what the JSON calls it; a contract.
            pub fn name(self) -> &'static str {
                match self {
                    $($(CheckId::$name => $id,)*)*
                }
            }

            /// The title of its area.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    /// It works, and may surprise.
    Warn,
    /// Some command will not do what it should.
    Fail,
    /// It could not be told, or there is nothing to be told.
    Skip,
}

#[derive(Debug, Serialize)]
pub struct Check {
    pub id: CheckId,
    pub verdict: Verdict,
    /// The service or phase that it is about.
    pub subject: Option<String>,
    /// It says what was found.
    pub message: String,
    /// It says what to do; whoever warns or fails has to say so.
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

    /// Returns what another command would fail with; `otherwise` is the fix where it has no hint.
    pub fn failure(id: CheckId, failure: &Failure, otherwise: &str) -> Check {
        let fix = match failure.hints.is_empty() {
            true => otherwise.to_owned(),
            false => failure.hints.join("; "),
        };
        Check::fail(id, &failure.message, fix)
    }

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
