//! Real Docker engines: the one that `GPUCTL_TEST_DOCKER_HOST` names, or else, for root, engines of
//! the tests' own, which nobody else on the machine notices.

use crate::processes;
use crate::programs::{self, command};
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use crate::wait;
use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::cell::OnceCell;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Output, Stdio};
use std::sync::Mutex;

/// A Docker engine that tests work with.
pub struct Engine {
    /// The folder of an engine of the tests' own; `None` if somebody else has started the engine.
    folder: Option<PathBuf>,
    host: String,
    image: String,
    /// The engine's network namespace; `None` if the engine is in the machine's network.
    network: Option<File>,
    /// The watchdog's input; the engine ends when this is closed, which the kernel does however
    /// this process ends.
    _leash: Option<ChildStdin>,
}

/// Script that runs `dockerd` in the folder $0, starts it again when it has ended and the file
/// `again` is there, and ends it and removes the folder when the script's input is closed. The
/// engine has its own network, because an engine without a bridge deletes the `docker0` that it
/// finds, its own mounts, with no containerd in them that it could share, and its own
/// configuration. It has no networks or overlays, so that it also runs inside a container.
const WATCHDOG: &str = r#"
unshare --net --mount sh -c '
    ip link set lo up || exit 1
    if [ -d /run/containerd ]; then mount -t tmpfs none /run/containerd || exit 1; fi
    until dockerd "$@"; [ ! -e "$0/again" ]; do rm "$0/again"; done
' "$0" --config-file "$0/daemon.json" --data-root "$0/data" --exec-root "$0/exec" --pidfile "$0/pid" \
    -H "unix://$0/docker.sock" --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs >"$0/log" 2>&1 &
echo $! >"$0/engine.new"
mv "$0/engine.new" "$0/engine"
cat >/dev/null
kill $(cat "$0/pid")
wait $!
rm -rf "$0"
"#;

thread_local! {
    /// The engine lent to this thread, on which one test runs; `None` if there is no engine to
    /// lend.
    static MINE: OnceCell<Option<Lent>> = const { OnceCell::new() };
}

/// Engines that no test is using now.
static FREE: Mutex<Vec<&'static Engine>> = Mutex::new(Vec::new());

/// An engine lent to one test until the test ends. Each test has one to itself: Docker 20.10 hangs
/// for good if containers end at the same moment (moby/moby#46661, fixed in 20.10.27), as those of
/// several tests would.
struct Lent(&'static Engine);

impl Lent {
    fn new() -> Result<Lent, String> {
        let free = FREE.lock().unwrap().pop();
        // An engine that hangs all the same is not lent again.
        match free.filter(|engine| docker(&engine.host, &["network", "ls"]).is_ok()) {
            Some(engine) => Ok(Lent(engine)),
            None => find("{}").map(|engine| Lent(Box::leak(Box::new(engine)))),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        FREE.lock().unwrap().push(self.0);
    }
}

/// Returns the engine of this test, and moves the thread, with all that it starts from then on,
/// into the engine's network. If there is no engine, reports the skip and returns `None`, or fails
/// the test if `GPUCTL_TEST_REQUIRE` has `docker`.
#[track_caller]
pub fn enter_engine_or_skip() -> Option<&'static Engine> {
    let lent = || Lent::new().inspect_err(|why| lacks_engine(why)).ok();
    let engine = MINE.with(|mine| mine.get_or_init(lent).as_ref().map(|lent| lent.0))?;
    engine.enter();
    Some(engine)
}

#[track_caller]
fn lacks_engine(why: &str) {
    skip_or_fail("docker", &format!("Docker engine: {why}"));
}

/// Starts an engine with a configuration of its own for a single test, which may restart it, and
/// moves the thread into its network. Returns `None`, after reporting the skip, if none can be
/// started.
#[track_caller]
pub fn start_or_skip(configuration: &str) -> Option<&'static Engine> {
    if std::env::var_os("GPUCTL_TEST_DOCKER_HOST").is_some() {
        skip_or_fail(
            "docker",
            "engine that may be restarted: GPUCTL_TEST_DOCKER_HOST names another",
        );
        return None;
    }
    match find(configuration) {
        Ok(engine) => {
            let engine = Box::leak(Box::new(engine));
            engine.enter();
            Some(engine)
        }
        Err(why) => {
            lacks_engine(&why);
            None
        }
    }
}

/// Creates a container that runs `simserver` on the rig's card; the container is removed with the
/// rig.
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

fn find(configuration: &str) -> Result<Engine, String> {
    if !programs::works("docker", &["--version"]) {
        return Err("`docker` is missing".to_owned());
    }
    if let Ok(host) = std::env::var("GPUCTL_TEST_DOCKER_HOST") {
        docker(&host, &["version"]).map_err(|why| format!("GPUCTL_TEST_DOCKER_HOST: {why}"))?;
        return Ok(Engine::at(None, host, None, None));
    }
    if !rustix::process::geteuid().is_root() {
        return Err("only root can start one; GPUCTL_TEST_DOCKER_HOST may name another".to_owned());
    }
    let missing = [("dockerd", "--version"), ("ip", "-Version"), ("unshare", "--version")]
        .into_iter()
        .find(|(program, argument)| !programs::works(program, &[*argument]));
    match missing {
        Some((program, _)) => Err(format!("`{program}` is missing")),
        None => private(configuration),
    }
}

#[expect(clippy::zombie_processes, reason = "the watchdog outlives this process")]
fn private(configuration: &str) -> Result<Engine, String> {
    // The folder has a short path, because the path of a socket in it must not be long.
    let folder = tempfile::Builder::new().prefix("gpuctl-dockerd-").tempdir().unwrap().keep();
    fs::write(folder.join("daemon.json"), configuration).unwrap();
    let mut watchdog = command("sh")
        .args(["-c", WATCHDOG])
        .arg(&folder)
        // A Ctrl-C in the tester's terminal must not reach the watchdog.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let leash = watchdog.stdin.take();
    let host = format!("unix://{}/docker.sock", folder.display());
    let answers = || docker(&host, &["version"]).is_ok();
    let pid = || fs::read_to_string(folder.join("engine")).ok()?.trim().parse::<i32>().ok();
    let has_ended = || pid().is_some_and(|pid| processes::state(pid).is_none());
    if wait::comes(|| answers() || has_ended()) && answers() {
        let network = File::open(format!("/proc/{}/ns/net", pid().unwrap())).unwrap();
        return Ok(Engine::at(Some(folder), host, Some(network), leash));
    }
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    Err(format!("dockerd does not start here:\n{log}"))
}

fn docker(host: &str, arguments: &[&str]) -> Result<String, String> {
    // An engine can hang for good when many containers end at once.
    let mut client = command("timeout");
    client.args(["120", "docker"]);
    // Docker's client must not use the tester's own settings.
    client.env("DOCKER_HOST", host).env("DOCKER_CONFIG", "/nonexistent").args(arguments);
    let Output { status, stdout, stderr } = client.output().map_err(|error| error.to_string())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    match status.code() {
        Some(0) => Ok(text(&stdout)),
        Some(124) => Err("the engine did not answer within 120s".to_owned()),
        _ => Err(text(&stderr)),
    }
}

impl Engine {
    fn at(
        folder: Option<PathBuf>,
        host: String,
        network: Option<File>,
        leash: Option<ChildStdin>,
    ) -> Engine {
        let mut hasher = DefaultHasher::new();
        fs::read(programs::simserver()).unwrap().hash(&mut hasher);
        let image = format!("gpuctl-simserver:{:016x}", hasher.finish());
        let engine = Engine { folder, host, image, network, _leash: leash };
        if docker(&engine.host, &["image", "inspect", &engine.image]).is_err() {
            engine.import_image();
        }
        engine
    }

    fn enter(&self) {
        if let Some(network) = &self.network {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(network.as_fd(), kind).unwrap();
        }
    }

    /// Returns a shell command that restarts the engine, as `systemctl restart docker` does, and
    /// returns once the old engine has ended.
    pub fn restarts(&self) -> String {
        let folder = self.folder.as_ref().expect("an engine of the test's own").display();
        let gone = "while kill -0 $pid 2>/dev/null; do sleep 0.01; done";
        format!("touch {folder}/again; pid=$(cat {folder}/pid); kill $pid; {gone}")
    }

    /// Returns the engine's address, as `DOCKER_HOST` takes it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the name of the image that holds `simserver`.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Calls Docker's client and returns what it prints; fails the test if Docker refuses.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        docker(&self.host, arguments).unwrap_or_else(|why| panic!("docker {arguments:?}: {why}"))
    }

    pub fn remove(&self, container: &str) {
        if let Err(why) = docker(&self.host, &["rm", "--force", "--volumes", container]) {
            eprintln!("LEFT BEHIND: container {container}: {why}");
        }
    }

    pub fn remove_network(&self, network: &str) {
        if let Err(why) = docker(&self.host, &["network", "rm", network]) {
            eprintln!("LEFT BEHIND: network {network}: {why}");
        }
    }

    fn import_image(&self) {
        let folder = tempfile::tempdir().unwrap();
        let image = pack_image(folder.path());
        self.docker(&["import", image.to_str().unwrap(), &self.image]);
    }
}

/// Packs an image in `folder` that any engine can import, and returns its file. The image holds
/// `simserver`, the libraries that it needs, and a shell if the machine has busybox.
pub fn pack_image(folder: &Path) -> PathBuf {
    let root = folder.join("image");
    put(&root, &programs::simserver(), "bin/simserver");
    let busybox = Path::new("/bin/busybox");
    if busybox.exists() {
        put(&root, busybox, "bin/busybox");
        // Not every busybox has a shell that finds the other applets without links.
        let listed = command(busybox).arg("--list").output().unwrap().stdout;
        for name in String::from_utf8(listed).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
    }
    let tar = folder.join("image.tar");
    let mut pack = command("tar");
    pack.args(["--create", "--owner", "0", "--group", "0", "--file"]).arg(&tar);
    assert!(pack.arg("--directory").args([&root, Path::new(".")]).status().unwrap().success());
    tar
}

/// Copies a program into an image's root, with the libraries that `ldd` lists.
fn put(root: &Path, program: &Path, name: &str) {
    let copy = |from: &Path, to: PathBuf| {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    };
    copy(program, root.join(name));
    // `ldd` fails for a program that needs no libraries.
    let listed = command("ldd").arg(program).output().unwrap().stdout;
    let listed = String::from_utf8(listed).unwrap();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), root.join(&library[1..]));
    }
}
