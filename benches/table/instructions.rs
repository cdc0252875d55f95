//! Instructions, counted by callgrind: they hardly differ between runs, so that a regression of a
//! few per cent shows. The baseline is in benches/instructions.toml;
//! `cargo bench --bench table -- --update` writes it anew.

use super::measure::command;
use super::report::{Row, Section, Target};
use rig::{Rig, works};
use std::fs;
use std::process::{Command, Stdio};
use toml::Table;

const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.toml");
const CALLS: [&str; 3] = ["--version", "can-fit 1", "status --json"];
/// Highest permitted ratio of a count to the baseline; more is a regression.
const MARGIN: f64 = 1.05;

pub fn measure() -> Section {
    let baseline: Table = fs::read_to_string(BASELINE).unwrap_or_default().parse().unwrap();
    let is_of_this =
        baseline.get("compiler").and_then(|value| value.as_str()) == Some(&*compiler());
    let rows = CALLS.map(|call| {
        let what = format!("`{call}`");
        match (count(call), baseline.get(call).and_then(|value| value.as_integer())) {
            (Err(why), _) => Row::missing(&what, "the baseline", why),
            (Ok(_), None) => Row::missing(&what, "the baseline", "it has none; --update writes it"),
            (Ok(count), Some(was)) => {
                let target = if is_of_this { Target::Times(MARGIN) } else { Target::None };
                Row::beside(&what, count / 1e6, "the baseline", was as f64 / 1e6, "million", target)
            }
        }
    });
    Section {
        title: "Instructions",
        note: "In user space, of gpuctl's own process, in a PID namespace of its own; `status` with four native services that \
               do not run. A target only with the compiler of the baseline.",
        rows: rows.into(),
    }
}

/// Counts the instructions of each call, and writes the baseline anew.
pub fn update() {
    let mut text =
        "# Instructions by callgrind, with this compiler. Written by `make bench-baseline`.\n"
            .to_owned();
    text.push_str(&format!("compiler = \"{}\"\n", compiler()));
    for call in CALLS {
        text.push_str(&format!("\"{call}\" = {}\n", count(call).unwrap()));
    }
    fs::write(BASELINE, text).unwrap();
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Returns the number of instructions of a call, the median of three counts; the error says why
/// they cannot be counted. The call runs in a PID namespace of its own, because the process table
/// is part of what it reads, and must always be the same.
fn count(call: &str) -> Result<f64, &'static str> {
    if !works("valgrind", &["--version"]) {
        return Err("there is no valgrind");
    }
    let isolation = ["--pid", "--fork", "--mount-proc"];
    if !works("unshare", &[&isolation[..], &["true"]].concat()) {
        return Err("no PID namespace is to be had");
    }
    let rig = Rig::new();
    for name in ["a", "b", "c", "d"] {
        rig.native(name).add();
    }
    let log = rig.path("callgrind.log");
    let counts = (0..3).map(|_| {
        let mut callgrind = command(&rig, "unshare", &isolation.join(" "));
        callgrind.args(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        callgrind.arg(format!("--log-file={}", log.display()));
        callgrind.arg(env!("CARGO_BIN_EXE_gpuctl")).args(call.split(' '));
        let status = callgrind.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{callgrind:?}");
        let text = fs::read_to_string(&log).unwrap();
        let line = text.lines().find_map(|line| line.split_once("Collected : "));
        line.unwrap().1.trim().parse::<f64>().unwrap()
    });
    Ok(super::measure::median(counts.collect()))
}
