//! A real Docker engine: the one that `GPUCTL_TEST_DOCKER_HOST` names, else the machine's, else (as root, or through sudo) a private one
//! that a watchdog ends together with the test process.

use crate::programs;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use crate::wait;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;

pub struct Engine {
    host: String,
    image: String,
    /// The engine ends when this is closed, which the kernel does however this process ends.
    _leash: Option<ChildStdin>,
}

/// Starts `dockerd` in its own folder $0, through $1 where that names sudo, for the group $2; waits for the leash to be
/// closed, ends it and removes the folder. It has its own part of a containerd that the machine may run, and no networks
/// or overlays, so that it also runs inside a container.
const WATCHDOG: &str = r#"
$1 dockerd --group "$2" --data-root "$0/data" --exec-root "$0/exec" --pidfile "$0/pid" -H "unix://$0/docker.sock" \
    --containerd-namespace "${0##*/}" --containerd-plugins-namespace "${0##*/}-plugins" \
    --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs >"$0/log" 2>&1 &
cat >/dev/null
$1 kill "$(cat "$0/pid")"
wait $!
$1 sh -c 'umount "$0"/exec/netns/*; rm -rf "$0"' "$0"
"#;

/// The engine of this test process. None, loudly, where there is none, unless `GPUCTL_TEST_REQUIRE` has `docker`.
#[track_caller]
pub fn engine_or_skip() -> Option<&'static Engine> {
    static ENGINE: OnceLock<Option<Engine>> = OnceLock::new();
    let engine = ENGINE.get_or_init(find).as_ref();
    if engine.is_none() {
        skip_or_fail("docker", "Docker engine");
    }
    engine
}

/// Creates a container that runs `simserver` on the rig's card, and belongs to the rig.
pub fn create(rig: &Rig, name: &str, restarts: bool, flags: &str) {
    let card = rig.card.folder().display();
    let (variable, mount) = (format!("SIMGPU_DIR={card}"), format!("{card}:{card}"));
    let restart = if restarts { "always" } else { "no" };
    let mut arguments =
        vec!["create", "--name", name, "--network", "host", "--restart", restart, "--env"];
    let image = &rig.engine().image;
    arguments.extend([&variable, "--volume", &mount, image, "/bin/simserver"]);
    arguments.extend(flags.split_whitespace());
    rig.owns_container(name);
    rig.docker(&arguments);
}

fn find() -> Option<Engine> {
    let given = std::env::var("GPUCTL_TEST_DOCKER_HOST").ok();
    if let Some(host) = given.or_else(host_of_machine) {
        return Some(Engine::at(host, None));
    }
    match programs::works("dockerd", &["--version"]) {
        true if rustix::process::geteuid().is_root() => private(""),
        // Where it asks no password.
        true if programs::works("sudo", &["-n", "true"]) => private("sudo -n"),
        _ => None,
    }
}

fn host_of_machine() -> Option<String> {
    let ask = |arguments: &[&str]| {
        let output = Command::new("docker").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    ask(&["version"])?;
    ask(&["context", "inspect", "--format", "{{.Endpoints.docker.Host}}"])
}

#[expect(clippy::zombie_processes, reason = "the watchdog outlives this process")]
fn private(sudo: &str) -> Option<Engine> {
    // Short, because a socket's path may not be long.
    let folder = tempfile::Builder::new().prefix("gpuctl-dockerd-").tempdir().unwrap().keep();
    let mut watchdog = Command::new("sh")
        .args(["-c", WATCHDOG])
        .arg(&folder)
        .arg(sudo)
        .arg(rustix::process::getgid().as_raw().to_string())
        // Out of the way of a Ctrl-C.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let leash = watchdog.stdin.take();
    let host = format!("unix://{}/docker.sock", folder.display());
    let answers = || docker(&host, &["version"]).is_ok();
    let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
    if wait::comes(|| answers() || log().contains("failed to start daemon")) && answers() {
        return Some(Engine::at(host, leash));
    }
    writeln!(std::io::stderr(), "dockerd does not start here:\n{}", log()).ok();
    None
}

fn docker(host: &str, arguments: &[&str]) -> Result<String, String> {
    let command = Command::new("docker").env("DOCKER_HOST", host).args(arguments).output();
    let Output { status, stdout, stderr } = command.map_err(|error| error.to_string())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if status.success() { Ok(text(&stdout)) } else { Err(text(&stderr)) }
}

impl Engine {
    fn at(host: String, leash: Option<ChildStdin>) -> Engine {
        let mut hasher = DefaultHasher::new();
        fs::read(programs::simserver()).unwrap().hash(&mut hasher);
        let image = format!("gpuctl-simserver:{:016x}", hasher.finish());
        let engine = Engine { host, image, _leash: leash };
        if docker(&engine.host, &["image", "inspect", &engine.image]).is_err() {
            engine.import_image();
        }
        engine
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// Of `simserver`.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Fails the test if Docker refuses.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        docker(&self.host, arguments).unwrap_or_else(|why| panic!("docker {arguments:?}: {why}"))
    }

    pub fn remove(&self, container: &str) {
        if let Err(why) = docker(&self.host, &["rm", "--force", "--volumes", container]) {
            eprintln!("LEFT BEHIND: container {container}: {why}");
        }
    }

    /// `simserver`, the libraries that it needs, and a shell where the machine has one to spare.
    fn import_image(&self) {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), &programs::simserver(), "bin/simserver");
        let busybox = Path::new("/bin/busybox");
        if busybox.exists() {
            put(root.path(), busybox, "bin/busybox");
            symlink("busybox", root.path().join("bin/sh")).unwrap();
        }
        let tar = root.path().join("image.tar");
        let status = Command::new("tar")
            .args(["--exclude", "./image.tar", "--create", "--file"])
            .arg(&tar)
            .arg("--directory")
            .args([root.path(), Path::new(".")])
            .status()
            .unwrap();
        assert!(status.success(), "tar fails");
        self.docker(&["import", tar.to_str().unwrap(), &self.image]);
    }
}

/// Copies a program into an image's root, with the libraries that `ldd` lists.
fn put(root: &Path, program: &Path, name: &str) {
    let copy = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    copy(program, root.join(name));
    // It fails for a program that needs none.
    let listed = Command::new("ldd").arg(program).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), root.join(&library[1..]));
    }
}
