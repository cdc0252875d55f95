//! The programs that tests work with: gpuctl, and the simulated NVML library and model server,
//! which are built on demand into the same target folder and profile, once a test run.

use rustix::fs::FlockOperation;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Returns the path of gpuctl, which Cargo builds before the tests and benchmarks of its package
/// and puts beside the folder that holds those.
pub fn gpuctl() -> &'static Path {
    static GPUCTL: OnceLock<PathBuf> = OnceLock::new();
    GPUCTL.get_or_init(|| {
        let program = std::env::current_exe().unwrap();
        let gpuctl = program.parent().unwrap().with_file_name("gpuctl");
        assert!(gpuctl.exists(), "there is no {}", gpuctl.display());
        gpuctl
    })
}

/// Returns the path of the simulated library that is loaded in the place of `libnvidia-ml.so.1`,
/// and builds it if needed.
pub fn nvml_library() -> PathBuf {
    built().join("libsimgpu.so")
}

/// Returns the path of the simulated model server, and builds it if needed.
pub fn simserver() -> PathBuf {
    built().join("simserver")
}

/// Prepares a call of a program of this machine with nothing of the tester's environment but
/// `PATH`.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Reports whether the machine has a program that exits with 0 for these arguments.
pub fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = command(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Writes a script that can be run at once. Another process writes it, because a child that another
/// thread is just starting may inherit a file that this process has open for writing, and running
/// the script would then fail with "Text file busy".
pub fn install(script: &str, path: &Path) {
    let mut write = command("sh");
    write.args(["-c", "umask 022; rm -f \"$0\"; cat >\"$0\"; chmod 755 \"$0\""]).arg(path);
    let mut write = write.stdin(Stdio::piped()).spawn().unwrap();
    write.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(write.wait().unwrap().success(), "cannot write {}", path.display());
}

/// Builds the simulated library and model server on the first call, and returns their folder.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = gpuctl().parent().unwrap();
        let profile = match folder.file_name().unwrap().to_str().unwrap() {
            "debug" => "dev",
            name => name,
        };
        // Test processes that run side by side wait for one another.
        let lock = File::create(folder.join("gpuctl-test-helpers.lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--package", "simgpu", "--package", "simserver"])
            .args(["--profile", profile])
            .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")])
            .arg("--target-dir")
            .arg(folder.parent().unwrap())
            .status()
            .unwrap();
        assert!(status.success(), "simgpu and simserver do not build");
        folder.to_owned()
    })
}
