//! Programs that gpuctl is measured beside: the Python program that it replaces, gpustat, and the
//! floors in C.

use super::measure::command;
use rig::Rig;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What the table calls the Python program that gpuctl replaces.
pub const SEED: &str = "the seeds' program";

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches");
const TARGET: &str = env!("CARGO_TARGET_TMPDIR");

/// Returns the `bin` folder of a Python environment with the libraries of the program that gpuctl
/// replaces, and gpustat. The first call makes the environment; the error says why it cannot be
/// made.
pub fn python() -> Result<&'static Path, &'static str> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(TARGET).join("seed");
        let wanted = std::fs::read_to_string(format!("{SOURCES}/seed/requirements.txt")).unwrap();
        let made = folder.join("requirements.txt");
        if std::fs::read_to_string(&made).ok().as_ref() != Some(&wanted) {
            done(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
            let pip = folder.join("bin/pip");
            let quiet = ["install", "--quiet", "--disable-pip-version-check", "--requirement"];
            done(Command::new(pip).args(quiet).arg(format!("{SOURCES}/seed/requirements.txt")))?;
            std::fs::write(made, wanted).unwrap();
        }
        done(Command::new(folder.join("bin/python")).args(["-c", "import tomllib"]))?;
        Ok(folder.join("bin"))
    })
    .as_deref()
    .map_err(String::as_str)
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let why = stderr.lines().last().unwrap_or("it fails");
    output.status.success().then_some(()).ok_or_else(|| why.to_owned())
}

/// Prepares a call of the Python program that gpuctl replaces, on the services of a rig. Its lock
/// is in Redis, which has to be there only for calls that use the lock.
pub fn seed(rig: &Rig, words: &str) -> Result<Command, &'static str> {
    let mut program = with_card(rig, &python()?.join("python"), "");
    program.arg(format!("{SOURCES}/seed/gpu_manager.py")).args(words.split_whitespace());
    Ok(program)
}

pub fn gpustat(rig: &Rig) -> Result<Command, &'static str> {
    Ok(with_card(rig, &python()?.join("gpustat"), "--json"))
}

/// Prepares a call of a program that finds the simulated library where it looks for NVIDIA's.
fn with_card(rig: &Rig, program: &Path, words: &str) -> Command {
    let folder = rig.path("library");
    if !folder.exists() {
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(library(), folder.join("libnvidia-ml.so.1")).unwrap();
    }
    let mut command = command(rig, program.to_str().unwrap(), words);
    command.env("LD_LIBRARY_PATH", folder);
    command
}

fn library() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_gpuctl")).with_file_name("libsimgpu.so")
}

/// Prepares a call of the C program that reads the card as gpuctl does and does nothing else.
pub fn floor(rig: &Rig) -> Command {
    command(rig, compiled("nvml").to_str().unwrap(), library().to_str().unwrap())
}

/// Compiles the C program of this name in benches/floor, and returns the program's path.
pub fn compiled(name: &str) -> PathBuf {
    let program = Path::new(TARGET).join(name);
    let source = format!("{SOURCES}/floor/{name}.c");
    done(Command::new("cc").args(["-O2", "-o"]).arg(&program).args([&source, "-ldl"])).unwrap();
    program
}
