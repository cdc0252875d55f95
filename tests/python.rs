//! Tests of the client for Python, with a real Python in a fresh environment: on the machine
//! itself, where the client calls gpuctl, and over HTTP, as in a container.

use rig::page::{Page, repository};
use rig::{Invocation, Rig, Served, Signal, signal, skip_or_fail, until, works};
use serde_json::{Value, json};

/// Makes a rig with two services that Python can reach in both ways; returns `None`, after
/// reporting the skip, if Python or systemd-socket-activate is missing.
fn rig() -> Option<(Rig, Served)> {
    let rig = Rig::new();
    if !rig.has_python() {
        return None;
    }
    rig.native("comfyui").vram(20000).priority(100).phases([4]).add();
    rig.native("vidi").vram(4000).priority(40).phases([2]).add();
    rig.set("phases.4", "video");
    rig.set("lock.wait", "1s");
    let http = rig.http("127.0.0.1")?;
    Some((rig, http))
}

fn over(http: &Served, script: Invocation) -> Invocation {
    script.env("GPUCTL_URL", format!("http://localhost:{}", http.port))
}

/// Runs a script on the machine and, from the same state again, over HTTP, and returns what each
/// run prints; returns nothing, after reporting the skip, if the rig cannot be made.
#[track_caller]
fn on_both_ways(script: &str) -> Vec<String> {
    let Some((rig, http)) = rig() else { return Vec::new() };
    let here = rig.python(script).run().succeeds().text();
    rig.gpuctl("release-all --quiet").run().succeeds();
    let there = over(&http, rig.python(script)).run().succeeds().text();
    rig.assert_lock_is_free();
    vec![here, there]
}

#[test]
fn the_functions_do_what_their_commands_do() {
    let script = r#"
assert gpuctl.can_fit(20000) and gpuctl.can_fit("20GB") and gpuctl.can_fit("comfyui")
assert not gpuctl.can_fit(24000) and gpuctl.can_fit(24000, margin=0)
plan = gpuctl.prepare_phase("video", dry_run=True)
assert plan["started"] == ["comfyui"] and gpuctl.status()["vram"]["used_mb"] == 0
assert gpuctl.prepare_phase(2)["started"] == ["vidi"]
status = gpuctl.status()
assert status["services"]["vidi"]["state"] == "ready"
fields = gpuctl.ServiceStatus.__annotations__.keys() - status["services"]["vidi"].keys()
assert not fields and not gpuctl.Vram.__annotations__.keys() - status["vram"].keys(), fields
done = gpuctl.prepare_phase("video", wait="5m", lazy=True)
assert done["stopped"] == [] or done["stopped"] == ["vidi"], done
assert gpuctl.start("comfyui", no_preempt=True, wait=0.5)["success"]
assert gpuctl.restart("comfyui", force=True)["started"] == ["comfyui"]
assert gpuctl.stop("comfyui")["stopped"] == ["comfyui"]
assert gpuctl.release_all(force=True)["success"]
print("done")
"#;
    on_both_ways(script).iter().for_each(|said| assert_eq!(said, "done\n"));
}

#[test]
fn what_fails_raises_the_class_of_its_code_with_all_that_gpuctl_said() {
    let script = r#"
try:
    gpuctl.start("comfy")
except gpuctl.NotFound as error:
    assert isinstance(error, gpuctl.Error)
    assert (error.code, error.exit_code) == ("not_found", 4)
    assert error.hint == 'did you mean "comfyui"?', error.hint
    assert str(error) == f"{error.message} ({error.hint})"
gpuctl.start("comfyui")
try:
    gpuctl.start("vidi")
except gpuctl.InsufficientVram as error:
    assert error.details["blockers"], error.details
for call in (lambda: gpuctl.can_fit("9x"), lambda: gpuctl.start("vidi", wait="soon")):
    try:
        call()
    except gpuctl.Usage as error:
        print(error.exit_code)
"#;
    on_both_ways(script).iter().for_each(|said| assert_eq!(said, "2\n2\n"));
}

#[test]
fn every_code_of_the_contract_has_its_class() {
    let Some((rig, _http)) = rig() else { return };
    let sections = Page::read("endpoints.md").sections;
    let rows = sections.iter().flat_map(|section| section.rows()).filter(|row| row.len() == 4);
    let codes: Vec<String> = rows.map(|row| row[1].trim_matches('`').to_owned()).collect();
    let codes: Vec<&String> = codes.iter().filter(|code| !code.is_empty()).collect();
    assert!(codes.len() > 10, "{codes:?}");
    for code in codes {
        let name: String =
            code.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
        let script = format!(
            "error = gpuctl._errors.error_of({{'error': {{'code': '{code}', 'exit_code': 1, \
             'message': 'm', 'hint': None, 'details': {{}}}}}})\nprint(type(error) is gpuctl.{name})"
        );
        rig.python(&script).run().succeeds().stdout("True\n");
    }
}

#[test]
fn within_use_service_the_service_is_ready_nobody_else_acts_and_what_is_called_acts_under_the_lock()
{
    let script = r#"
import subprocess
def another():
    words = ["gpuctl", "lock", "acquire", "--no-wait", "--quiet"]
    return subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
with gpuctl.use_service("comfyui") as ready:
    assert ready and ready.service == "comfyui" and ready.fence > 0
    status = gpuctl.status()
    assert status["services"]["comfyui"]["state"] == "busy", status
    assert status["lock"]["holder"] == "comfyui", status["lock"]
    assert another() == 75
    gpuctl.stop("vidi")
    with gpuctl.lock("inner"), gpuctl.use_service("comfyui"):
        assert another() == 75
    assert another() == 75, "the inner ones have not released it"
assert gpuctl.status()["services"]["comfyui"]["state"] == "ready", "it keeps running"
with gpuctl.lock("batch", ttl="1h") as held:
    assert gpuctl.status()["lock"]["holder"] == "batch"
try:
    with gpuctl.use_service("comfyui"):
        raise ValueError("what went wrong within")
except ValueError as error:
    print(error)
"#;
    on_both_ways(script).iter().for_each(|said| assert_eq!(said, "what went wrong within\n"));
}

#[test]
fn use_service_says_why_not_and_holds_nothing_then() {
    let script = r#"
for service, failure in (("nobody", gpuctl.NotFound), ("broken", gpuctl.StartFailed)):
    try:
        with gpuctl.use_service(service):
            print("never")
    except failure as error:
        assert gpuctl.status()["lock"]["holder"] is None
        print(error.code)
with gpuctl.lock("me"):
    pass
"#;
    let Some((rig, http)) = rig() else { return };
    rig.native("broken").set("start", "exit 3").add();
    for script in [rig.python(script), over(&http, rig.python(script))] {
        script.run().succeeds().stdout("not_found\nstart_failed\n");
    }
    let token = rig.acquire("another");
    let busy = "try:\n with gpuctl.use_service('comfyui', wait=0): print('never')\n\
                except gpuctl.LockBusy as error: print(error.details['holder'])";
    for script in [rig.python(busy), over(&http, rig.python(busy))] {
        script.run().succeeds().stdout("another\n");
    }
    rig.release(&token);
}

#[test]
fn who_works_is_waited_for_as_long_as_is_said_and_then_raises_service_busy_or_is_cut_off() {
    let script = r#"
def hold(**given):
    with gpuctl.use_service("comfyui", **given):
        return gpuctl.status()["services"]["worker"]["state"]
calls = (
    lambda **given: gpuctl.prepare_phase("video", **given),
    lambda **given: gpuctl.start("comfyui", **given),
    lambda **given: gpuctl.stop("worker", **given),
    lambda **given: gpuctl.restart("worker", **given),
    lambda **given: gpuctl.release_all(**given),
    hold,
)
for call in calls:
    for drain in (0, 0.1, "0s"):
        try:
            print("never", call(drain=drain))
        except gpuctl.ServiceBusy as error:
            assert (error.code, error.exit_code) == ("service_busy", 75)
            assert error.details["busy"] == [{"service": "worker", "jobs": 1}], error.details
assert gpuctl.status()["services"]["worker"]["state"] == "ready"
print(hold(no_drain=True))
"#;
    let Some((rig, http)) = rig() else { return };
    let worker = rig.native("worker").vram(8000).priority(1).server("--api comfyui");
    let worker = worker.set("api", "comfyui").set("url", "http://127.0.0.1:1").add();
    rig.set("services.worker.url", worker.url(""));
    for script in [rig.python(script), over(&http, rig.python(script))] {
        rig.gpuctl("release-all --no-drain --quiet").run().succeeds();
        rig.gpuctl("start worker --quiet").run().succeeds();
        let work = worker.request("/prompt", &json!({"ms": 600_000}));
        until("it works", || rig.card.jobs().values().any(|done| !done));
        script.run().succeeds().stdout("stopped\n");
        work.join().unwrap();
    }
}

#[test]
fn its_types_hold_in_strict_mode() {
    if !works("mypy", &["--version"]) {
        return skip_or_fail("mypy", "mypy");
    }
    let rig = Rig::new();
    let package = repository().join("python/gpuctl").display().to_string();
    let cache = rig.path("cache").display().to_string();
    let check = rig.shell(&format!("mypy --strict --cache-dir {cache} {package}"));
    check.run().succeeds().stdout_has("no issues found");
}

#[test]
fn async_with_excludes_other_tasks_and_does_not_hold_up_the_loop() {
    let script = r#"
inside = 0
async def work(number):
    global inside
    async with gpuctl.use_service("vidi", wait="5m"):
        inside += 1
        assert inside == 1, "two at once"
        await asyncio.sleep(0.05)
        await asyncio.to_thread(gpuctl.status)
        inside -= 1
async def main():
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1
    ticking = asyncio.create_task(tick())
    # More than a pool has threads for.
    await asyncio.gather(*(work(number) for number in range(12)))
    ticking.cancel()
    assert ticks > 20, ticks
asyncio.run(main())
print("done")
"#;
    on_both_ways(script).iter().for_each(|said| assert_eq!(said, "done\n"));
}

#[test]
fn a_task_that_is_cancelled_while_it_waits_takes_nothing() {
    let script = r#"
async def main():
    async with gpuctl.lock("first"):
        # A context of its own, or it would wait under our lock.
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.5)
        waiting.cancel()
        try:
            await waiting
        except asyncio.CancelledError:
            print("cancelled")
    assert gpuctl.status()["lock"]["holder"] is None
    assert gpuctl.status()["services"]["vidi"]["state"] == "stopped"
async def wait():
    gpuctl._call.held_token.set(None)
    async with gpuctl.use_service("vidi", wait="1h"):
        print("never")
asyncio.run(main())
"#;
    on_both_ways(script).iter().for_each(|said| assert_eq!(said, "cancelled\n"));
}

#[test]
fn on_the_machine_the_lock_ends_with_the_python_that_has_it() {
    let Some((rig, _http)) = rig() else { return };
    for hold in ["gpuctl.use_service('vidi')", "gpuctl.lock('me', ttl='1h')"] {
        let script =
            rig.python(&format!("with {hold}:\n print('in', flush=True)\n time.sleep(600)"));
        let running = script.spawn();
        until("it is in", || running.stdout().contains("in"));
        assert_ne!(rig.lock_held()["holder"], Value::Null);
        running.signal(Signal::KILL);
        until("the lock is free", || rig.gpuctls().is_empty());
        rig.assert_lock_is_free();
        running.wait().dies_of(9).stdout("in\n");
    }
}

#[test]
fn a_lock_that_ended_too_early_is_told_at_the_end_of_the_block() {
    let Some((rig, http)) = rig() else { return };
    let late = "try:\n with gpuctl.use_service('vidi', timeout=1): time.sleep(2)\n\
                except gpuctl.LockLost as error: print(error.exit_code)";
    over(&http, rig.python(late)).run().succeeds().stdout("76\n");

    let lost = "try:\n with gpuctl.use_service('vidi'):\n  print('in', flush=True)\n  \
                while not os.path.exists('go'): time.sleep(0.01)\n\
                except gpuctl.LockLost as error: print(error.exit_code)";
    let running = rig.python(lost).spawn();
    until("it is in", || running.stdout().contains("in"));
    for gpuctl in rig.gpuctls() {
        signal(gpuctl, Signal::KILL);
    }
    rig.file("home/go", "");
    running.wait().succeeds().stdout("in\n76\n");
}

#[test]
fn a_token_is_shown_where_one_is_needed_and_what_cannot_be_asked_is_told() {
    let Some((rig, http)) = rig() else { return };
    rig.set("http.token", "correct-horse");
    let asked =
        "try:\n gpuctl.status(); print('told')\nexcept gpuctl.Error as error: print(error.code)";
    over(&http, rig.python(asked)).run().succeeds().stdout("permission\n");
    let shown = over(&http, rig.python(asked)).env("GPUCTL_TOKEN", "correct-horse");
    shown.run().succeeds().stdout("told\n");
    let nowhere = rig.python(asked).env("GPUCTL_URL", "http://127.0.0.1:1");
    nowhere.run().succeeds().stdout("unavailable\n");
    let no_gpuctl = rig.python(&format!("os.environ['PATH'] = '/nowhere'\n{asked}"));
    no_gpuctl.run().succeeds().stdout("unavailable\n");
}

#[test]
fn the_worker_of_the_page_works_puts_back_what_has_to_wait_and_fails_in_words() {
    let Some((rig, _http)) = rig() else { return };
    rig.native("broken").set("start", "exit 3").add();
    let page = Page::read("python.md");
    let section = page.sections.iter().find(|s| s.title == "Moving `worker.py` over").unwrap();
    let worker = section.text_of("python").replace("\"10m\"", "0");
    let stubs = r#"
async def execute_workflow(task): return f"{task}: {gpuctl.status()['services']['comfyui']['state']}"
async def put_back(task): return f"{task}: later"
async def fail(task, why): return f"{task}: {why}"
"#;
    let run = |task: &str, worker: &str| {
        let script = format!("{stubs}{worker}\nprint(asyncio.run(process_comfy('{task}')))");
        rig.python(&script).run().succeeds().text()
    };
    assert_eq!(run("first", &worker), "first: busy\n");
    let token = rig.acquire("another");
    assert_eq!(run("second", &worker), "second: later\n");
    rig.release(&token);
    let broken = worker.replace("\"comfyui\"", "\"broken\"");
    assert!(run("third", &broken).starts_with("third: broken"), "{broken}");
}

#[test]
fn a_socket_of_the_host_that_a_container_has_by_a_mount_needs_no_token() {
    let Some((rig, _http)) = rig() else { return };
    let path = rig.path("run/gpuctl.sock").display().to_string();
    let _listener = rig.listen(&path);
    until("it listens", || std::os::unix::net::UnixStream::connect(&path).is_ok());
    let script = "with gpuctl.use_service('vidi'): print(gpuctl.status()['lock']['holder'])";
    let asked = rig.python(script).env("GPUCTL_URL", format!("unix://{path}"));
    asked.run().succeeds().stdout("vidi\n");
}

#[test]
fn a_worker_in_a_container_uses_a_service_of_the_host_over_http() {
    let Some(rig) = Rig::with_docker() else { return };
    if !works("/usr/bin/python3", &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"]) {
        return skip_or_fail("python", "/usr/bin/python3 of 3.9 or later for a container");
    }
    rig.native("vidi").vram(4000).add();
    rig.set("http.token", "correct-horse");
    let Some(http) = rig.http("0.0.0.0") else { return };
    let network = rig.network();
    let gateway = "{{(index .IPAM.Config 0).Gateway}}";
    let gateway = rig.docker(&["network", "inspect", "--format", gateway, &network]);
    let script = "import gpuctl\nwith gpuctl.use_service('vidi', timeout='1h'):\n \
                  status = gpuctl.status()\n print(status['services']['vidi']['state'], status['lock']['holder'])";
    let url = format!("GPUCTL_URL=http://{}:{}", gateway.trim(), http.port);
    let client = format!("{}:/client:ro", repository().join("python").display());
    let name = rig.mark("worker");
    rig.owns_container(&name);
    let mut words = vec!["run", "--rm", "--name", &name, "--network", &network];
    let token = "GPUCTL_TOKEN=correct-horse";
    for variable in [&url, token, "PYTHONPATH=/client", "PYTHONDONTWRITEBYTECODE=1"] {
        words.extend(["--env", variable]);
    }
    for volume in ["/usr:/usr:ro", "/usr/lib:/lib:ro", "/usr/lib64:/lib64:ro", &client] {
        words.extend(["--volume", volume]);
    }
    words.extend([rig.engine().image(), "/usr/bin/python3", "-c", script]);
    assert_eq!(rig.docker(&words), "busy vidi\n");
    rig.assert_lock_is_free();
}
