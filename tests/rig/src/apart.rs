//! Scenarios in which a careless pattern harms nobody: the test runs again in a PID namespace of
//! its own, with its own `/proc`, `/run` and control groups, where nothing lives but what the test
//! starts. A rig may have such a pattern nowhere else.

use crate::programs;
use crate::rig::Rig;
use crate::skip::{root_or_skip, skip_or_fail};
use crate::wait::comes;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Environment variable that is set in the namespace. It holds `NAMESPACE:TOKEN`: the PID namespace
/// that the test came from, and a token that is in the environment of the namespace's PID 1.
const VARIABLE: &str = "GPUCTL_TEST_APART";

/// Longest time for a test in its namespace, more than any needs; then the test is killed, with
/// everything that lives in the namespace.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// Script that moves itself into the control group $0, if one can be made, and creates the
/// namespaces. Their PID 1 is a shell, which reaps orphans as an init does. Nothing outside can be
/// reached from there: no manager's socket, and no control group.
const ENTER: &str = r#"
for root in /sys/fs/cgroup /sys/fs/cgroup/unified; do
    if [ -e "$root/cgroup.procs" ] && mkdir "$root/$0" 2>/dev/null; then
        echo $$ >"$root/$0/cgroup.procs"
        break
    fi
done
exec unshare --pid --fork --mount-proc --kill-child --cgroup --ipc sh -c '
    mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs tmpfs /run && mkdir -m 1777 /run/lock /run/screen || exit 99
    "$@"
    exit $?' sh "$@"
"#;

/// Runs a scenario on a rig in a PID namespace of its own; `apart(|rig| …)` is all that a test
/// does. If no such namespace can be made, the test is skipped, and the skip reported.
#[track_caller]
pub fn apart<Scenario: FnOnce(&Rig)>(scenario: Scenario) {
    if std::env::var_os(VARIABLE).is_some() {
        assert_apart();
        return scenario(&Rig::new());
    }
    if !root_or_skip() {
        return;
    }
    if !programs::works("unshare", &["--pid", "--fork", "true"]) {
        return skip_or_fail("root", "PID namespace of its own");
    }
    // The model server is built outside of the namespace, where that disturbs nobody.
    programs::simserver();
    // The name is, for example, `cli::faults::row_52::a_name::{{closure}}`.
    let scenario = std::any::type_name::<Scenario>();
    let test = scenario.split("::").skip(1).take_while(|part| !part.starts_with('{'));
    let test = test.collect::<Vec<_>>().join("::");
    let token = format!("apart{:016x}", RandomState::new().hash_one(&test));
    let output = Command::new("timeout")
        .args(["--signal=KILL", &TIME_LIMIT.as_secs().to_string(), "sh", "-c", ENTER, &token])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env(VARIABLE, format!("{}:{token}", namespace("self").expect("a PID namespace")))
        .env_remove("GPUCTL_TEST_DOCKER_HOST")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        let group = Path::new(root).join(&token);
        // The last processes in the group may still be ending.
        assert!(comes(|| is_removed(&group)), "{} is left behind", group.display());
    }
    let told =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let [stdout, stderr] = &told;
    for line in stderr.lines().filter(|line| line.contains("SKIPPED")) {
        // Not printed by eprintln!, which the test harness would swallow.
        writeln!(std::io::stderr(), "{line}").ok();
    }
    let passed = output.status.success() && stdout.contains("1 passed");
    assert!(passed, "{test}, apart, ends with {}\n{stdout}\n{stderr}", output.status);
}

/// Fails the test if it could meet a process of the tester's machine; to be called before each call
/// that would be dangerous there.
#[track_caller]
pub fn assert_apart() {
    let told = std::env::var(VARIABLE)
        .expect("a pattern that may find a stranger is for a test in `apart` only");
    let (outside, token) = told.split_once(':').expect("NAMESPACE:TOKEN");
    let ours = namespace("self").expect("a PID namespace");
    assert_ne!(ours.to_string(), outside, "this is the tester's own PID namespace");
    assert_eq!(namespace("1"), Some(ours), "PID 1 is of another PID namespace");
    let me = fs::read_link("/proc/self").unwrap();
    assert_eq!(me.to_str(), Some(&*std::process::id().to_string()), "/proc is another's");
    let first = fs::read("/proc/1/environ").unwrap();
    let is_ours = first.windows(token.len()).any(|part| part == token.as_bytes());
    assert!(is_ours, "PID 1 is none of this test's");
}

/// Removes a control group and the groups inside it, and reports whether it is gone.
fn is_removed(group: &Path) -> bool {
    for inner in fs::read_dir(group).into_iter().flatten().flatten() {
        if inner.file_type().is_ok_and(|kind| kind.is_dir()) {
            is_removed(&inner.path());
        }
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

fn namespace(process: &str) -> Option<u64> {
    Some(fs::metadata(format!("/proc/{process}/ns/pid")).ok()?.ino())
}
