//! Tests of `gpuctl doctor`: where all is well, nothing is found; each fault that is planted is
//! found, reported with its fix, and taken for nothing else.

mod canary;
mod config;
mod docker;
mod gpu;
mod lock;
mod memory;
mod native;
mod services;
mod state;
mod systemd;
mod whole;

use rig::{Invocation, Rig, Script, Service};
use serde_json::Value;

const DOCTOR: &str = "doctor --json";

/// A machine on which the doctor finds nothing and skips only Docker, which is not needed there.
struct Machine {
    rig: Rig,
    vidi: Service,
    vllm: Service,
}

impl Machine {
    fn new() -> Machine {
        Machine::of(Rig::new())
    }

    fn of(rig: Rig) -> Machine {
        rig.set("gpu.total_mb", 24576);
        let vidi = rig.native("vidi").vram(4000).phases([2]).script(Script::File).add();
        rig.native("voice").vram(3000).phases([2]).add();
        let vllm = rig.unit("vllm").vram(12000).phases([4]).add();
        rig.set("canary.service", "vllm");
        rig.set("canary.start", "exec env A=1 sh -c 'exec {port}'");
        Machine { rig, vidi, vllm }
    }

    fn doctor(&self) -> Invocation {
        self.rig.gpuctl(DOCTOR)
    }

    /// Returns a call of the doctor without root's right to ignore the modes of files.
    fn doctor_without_privileges(&self) -> Invocation {
        let strip = "if [ $(id -u) = 0 ]; then exec setpriv --bounding-set=-all gpuctl $0; fi";
        self.rig.shell(&format!("{strip}; exec gpuctl $0")).arg(DOCTOR)
    }
}

/// A fault to be found: its verdict, its ID (followed by the subject, if there is one), a part of
/// the message, and a part of the fix.
type Fault<'a> = (&'a str, &'a str, &'a str, &'a str);

/// Asserts that the doctor finds these faults and no others, and returns its report.
#[track_caller]
fn finds(doctor: Invocation, faults: &[Fault]) -> Value {
    let fails = faults.iter().any(|(verdict, ..)| *verdict == "fail");
    let report = doctor.run().exits(i32::from(fails)).json();
    let mut found = told(&report, |verdict| ["warn", "fail"].contains(&verdict));
    // The real engine of this machine may be an old one.
    found.retain(|check| check["id"] != "docker.version");
    let names = |found: &Value| {
        let subject = found["subject"].as_str().map(|subject| format!(" {subject}"));
        format!("{}{}", found["id"].as_str().unwrap(), subject.unwrap_or_default())
    };
    let listed = |found: &[Value]| found.iter().map(names).collect::<Vec<_>>();
    let mut expected: Vec<&str> = faults.iter().map(|(_, name, ..)| *name).collect();
    let mut seen = listed(&found);
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected, "{report:#}");
    for (verdict, name, message, fix) in faults {
        let check = found.iter().find(|check| names(check) == *name).unwrap();
        assert_eq!(check["verdict"], *verdict, "{check:#}");
        let has =
            |key: &str, part: &str| check[key].as_str().is_some_and(|text| text.contains(part));
        assert!(has("message", message) && has("fix", fix), "{message:?}, {fix:?}: {check:#}");
    }
    assert_eq!(report["success"], !fails);
    for (count, verdict) in
        [("passed", "pass"), ("warned", "warn"), ("failed", "fail"), ("skipped", "skip")]
    {
        assert_eq!(report[count], told(&report, |own| own == verdict).len(), "{count}");
    }
    report
}

fn told(report: &Value, is_meant: impl Fn(&str) -> bool) -> Vec<Value> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|check| is_meant(check["verdict"].as_str().unwrap())).cloned().collect()
}

/// Returns the verdict of a check that must be in the report exactly once.
#[track_caller]
fn verdict<'a>(report: &'a Value, id: &str) -> &'a str {
    let mut of_id = report["checks"].as_array().unwrap().iter().filter(|check| check["id"] == id);
    let check = of_id.next().unwrap_or_else(|| panic!("no {id} in {report:#}"));
    assert!(of_id.next().is_none(), "{id} is told twice in {report:#}");
    check["verdict"].as_str().unwrap()
}
