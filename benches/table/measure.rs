//! Takes the time of commands. Those that are compared are run in turn, so that the comparison
//! holds on a noisy machine.

use rig::Rig;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What one process took, from its start to its end.
#[derive(Clone, Copy)]
pub struct Sample {
    /// Wall time in milliseconds.
    pub wall: f64,
    /// CPU time in milliseconds, user's and system's, of the process and the children that it has
    /// waited for.
    pub cpu: f64,
}

/// Runs a command to its end and returns what it took; panics if the command fails.
#[expect(unsafe_code, clippy::zombie_processes, reason = "only wait4(2) tells what a process took")]
pub fn run(command: &mut Command) -> Sample {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut status = 0;
    // SAFETY: zeroes are a valid value of this plain structure, and the call fills both.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let waited = libc::wait4(process.id() as i32, &mut status, 0, &mut usage);
        assert!(waited > 0, "{command:?} cannot be waited for");
        usage
    };
    let wall = begun.elapsed().as_secs_f64() * 1e3;
    assert!(status == 0, "{command:?} ends with {status:#x}");
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    Sample { wall, cpu: ms(usage.ru_utime) + ms(usage.ru_stime) }
}

/// Runs commands in turn for this many rounds, and returns the medians of each; a round before them
/// is not counted.
pub fn compare<const N: usize>(rounds: usize, mut commands: [Command; N]) -> [Sample; N] {
    let mut samples = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for (command, samples) in commands.iter_mut().zip(&mut samples) {
            let sample = run(command);
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    samples.map(|samples| {
        let of = |part: fn(&Sample) -> f64| median(samples.iter().map(part).collect());
        Sample { wall: of(|s| s.wall), cpu: of(|s| s.cpu) }
    })
}

/// Returns the most memory that a process has had at once, in MB. `ru_maxrss` would also count that
/// of its children, and that of its parent at the fork.
pub fn peak_memory(command: &mut Command) -> f64 {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    let status = format!("/proc/{}/status", process.id());
    let mut peak = 0.0;
    while process.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        peak = size.unwrap_or_default().max(peak);
    }
    peak / 1024.0
}

pub fn median(values: Vec<f64>) -> f64 {
    at(values, 0.5)
}

/// Returns the value that this part of all values is not above: 0.5 for the median, 0.99 for the
/// 99th of 100.
pub fn at(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

/// Prepares a command that sees the rig as the tests do, without the tests' way of waiting.
pub fn command(rig: &Rig, program: &str, words: &str) -> Command {
    let mut command = Command::new(program);
    command.args(words.split_whitespace()).env_clear().envs(environment(rig));
    command.current_dir(rig.path("home"));
    rig.on_its_machine(&mut command);
    command
}

/// Returns the environment of everything that runs on the rig.
pub fn environment(rig: &Rig) -> Vec<(String, String)> {
    let text = rig.shell("env").run().succeeds().text();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub fn gpuctl(rig: &Rig, words: &str) -> Command {
    command(rig, env!("CARGO_BIN_EXE_gpuctl"), words)
}
