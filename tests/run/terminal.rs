//! Tests of `gpuctl run` on a terminal: Ctrl-C, Ctrl-Z, `fg` and `bg`, and programs that ask the
//! terminal.

use rig::{LOCK_KEY, Rig, Terminal, parent, state, until};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";

/// A command that works until it is told to end. It has no child: the kernel does not stop a shell
/// that waits for a child to execute its program, and nobody notices then that the job is stopped.
const WORK: &str = "exec 3<>go; echo pid=$$=; read _ <&3; echo work-is-done";

/// A command that works for ever in short steps, between which a shell runs its traps.
const LOOP: &str = "echo pid=$$=; while :; do sleep 0.02; done";

fn finish(rig: &Rig) {
    std::fs::write(rig.path("home/go"), "\n").unwrap();
}

fn with_comfyui() -> Rig {
    let rig = Rig::new();
    rig.native("comfyui").add();
    rig.shell("mkfifo go").run().succeeds();
    rig.gpuctl("start comfyui").run().succeeds().stdout_has("comfyui").progress();
    rig
}

fn shell(rig: &Rig) -> Terminal {
    let terminal = rig.terminal("sh -i");
    terminal.shows("ready> ");
    terminal
}

/// Waits for the number between `pid=` and `=`, and returns the last one.
fn pid_shown(terminal: &Terminal) -> i32 {
    let pid = || {
        let text = terminal.text();
        text.rsplit("pid=").find_map(|rest| rest.split_once('=')?.0.parse::<i32>().ok())
    };
    until("a PID is shown", || pid().is_some());
    pid().unwrap()
}

#[track_caller]
fn has_ended_with(terminal: &Terminal, code: i32) {
    terminal.is_the_leaders();
    terminal.types("echo code=$?.");
    terminal.shows(&format!("code={code}."));
}

fn is_stopped(pid: i32) -> bool {
    state(pid) == Some('T')
}

#[test]
fn ctrl_c_ends_the_command_and_gpuctl() {
    let rig = with_comfyui();
    for (keys, code) in [(CTRL_C, 130), (CTRL_BACKSLASH, 131)] {
        rig.program("work", &format!("ulimit -c 0; {WORK}"));
        let terminal = shell(&rig);
        terminal.types("gpuctl run --quiet comfyui -- work");
        let work = pid_shown(&terminal);
        until("it has the terminal", || terminal.foreground() == work);
        terminal.presses(keys);
        has_ended_with(&terminal, code);
        rig.assert_free_and_alone();
    }
}

#[test]
fn a_command_that_handles_ctrl_c_decides_itself() {
    let rig = with_comfyui();
    rig.program("work", &format!("trap 'echo caught-it; exit 7' INT; {LOOP}"));
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work");
    pid_shown(&terminal);
    terminal.presses(CTRL_C);
    terminal.shows("caught-it");
    has_ended_with(&terminal, 7);
    rig.assert_free_and_alone();
}

/// Suspends a command, and returns its PID and gpuctl's.
fn suspend(rig: &Rig, terminal: &Terminal) -> (i32, i32) {
    let work = pid_shown(terminal);
    // The other gpuctl is the watchdog.
    let all = rig.gpuctls();
    let is_it = |pid: &&i32| parent(**pid).is_some_and(|parent| !all.contains(&parent));
    let gpuctl = *all.iter().find(is_it).unwrap();
    terminal.presses(CTRL_Z);
    until("both are stopped", || is_stopped(work) && is_stopped(gpuctl));
    terminal.is_the_leaders();
    (work, gpuctl)
}

#[test]
fn ctrl_z_suspends_both_and_fg_continues_both() {
    let rig = with_comfyui();
    rig.program("work", "echo pid=$$=; read line; echo \"got($line)\"; exit 3");
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work");
    for _ in 0..2 {
        let (work, _) = suspend(&rig, &terminal);
        terminal.types("echo still-$((1+1))-there");
        terminal.shows("still-2-there");
        terminal.types("fg");
        until("it has the terminal again", || terminal.foreground() == work);
        until("it goes on", || !is_stopped(work));
    }
    terminal.types("typed");
    terminal.shows("got(typed)");
    has_ended_with(&terminal, 3);
    rig.assert_free_and_alone();
}

#[test]
fn ctrl_z_suspends_both_and_bg_continues_both() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work");
    let (work, gpuctl) = suspend(&rig, &terminal);
    terminal.types("bg");
    until("both go on", || !is_stopped(work) && !is_stopped(gpuctl));
    terminal.is_the_leaders();
    finish(&rig);
    terminal.shows("work-is-done");
    terminal.types("wait %1; echo waited=$?.");
    terminal.shows("waited=0.");
    rig.assert_free_and_alone();
}

#[test]
fn a_suspended_run_can_be_ended() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work");
    let (work, gpuctl) = suspend(&rig, &terminal);
    terminal.types("kill %1; kill -CONT %1");
    until("both have ended", || state(work).is_none() && state(gpuctl).is_none());
    rig.assert_free_and_alone();
}

#[test]
fn the_command_reads_the_terminal() {
    let rig = with_comfyui();
    rig.program(
        "work",
        "echo pid=$$=; read line; echo \"got($line)\"; read line </dev/tty; echo \"and($line)\"",
    );
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work");
    pid_shown(&terminal);
    terminal.types("one");
    terminal.shows("got(one)");
    terminal.types("two");
    terminal.shows("and(two)");
    has_ended_with(&terminal, 0);
}

#[test]
fn with_its_input_or_output_elsewhere_it_can_ask_on_the_terminal_too() {
    let rig = with_comfyui();
    rig.program("work", "echo pid=$$= >/dev/tty; stty -echo </dev/tty; read line </dev/tty; stty echo </dev/tty; echo \"got($line)\"");
    for redirections in ["</dev/null", "| sed s/x/y/", ">out; cat out"] {
        let terminal = shell(&rig);
        terminal.types(&format!("gpuctl run --quiet comfyui -- work {redirections}"));
        let work = pid_shown(&terminal);
        until("it has the terminal", || terminal.foreground() == work);
        terminal.types("secret");
        terminal.shows("got(secret)");
        terminal.is_the_leaders();
        rig.assert_free_and_alone();
    }
}

#[test]
fn others_in_a_pipeline_can_ask_on_the_terminal_while_the_command_works() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    rig.program("pager", "read line </dev/tty; echo \"paged($line)\" >/dev/tty; exec cat");
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work | pager");
    until("both run", || rig.gpuctls().len() == 2);
    terminal.types("line");
    terminal.shows("paged(line)");
    finish(&rig);
    terminal.shows("work-is-done");
    has_ended_with(&terminal, 0);
    rig.assert_free_and_alone();
}

#[test]
fn ctrl_z_and_ctrl_c_reach_the_command_in_a_pipeline_too() {
    let rig = with_comfyui();
    rig.program("work", &format!("exec >/dev/tty; {WORK}"));
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work | cat");
    let (work, _) = suspend(&rig, &terminal);
    terminal.types("fg");
    until("it goes on", || !is_stopped(work));
    until("it has the terminal", || terminal.foreground() != terminal.pid());
    terminal.presses(CTRL_C);
    until("it has ended", || state(work).is_none());
    terminal.is_the_leaders();
    rig.assert_free_and_alone();
}

#[test]
fn an_interactive_shell_as_the_command_has_jobs_of_its_own() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    let terminal = shell(&rig);
    terminal.types("PS1='in''ner> ' gpuctl run --quiet comfyui -- sh -i");
    terminal.shows("inner> ");
    let inner = terminal.foreground();
    assert_ne!(inner, terminal.pid());
    terminal.types("work");
    let work = pid_shown(&terminal);
    until("it has the terminal", || terminal.foreground() == work);
    terminal.presses(CTRL_Z);
    until("it is stopped", || is_stopped(work));
    until("the inner shell has the terminal", || terminal.foreground() == inner);
    finish(&rig);
    terminal.types("fg");
    terminal.shows("work-is-done");
    until("the inner shell has the terminal", || terminal.foreground() == inner);
    terminal.types("exit 6");
    has_ended_with(&terminal, 6);
    rig.assert_free_and_alone();
}

#[test]
fn in_the_background_it_leaves_the_terminal_alone_until_fg() {
    let rig = with_comfyui();
    rig.program("work", "exec 3<>go; echo pid=$$=; read _ <&3; read line; echo \"got($line)\"");
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work &");
    let work = pid_shown(&terminal);
    terminal.types("echo sum=$((20+3))");
    terminal.shows("sum=23");
    assert_eq!(terminal.foreground(), terminal.pid());
    finish(&rig);
    until("it is stopped when it reads", || is_stopped(work));
    until("and gpuctl with it", || rig.gpuctls().iter().any(|pid| is_stopped(*pid)));
    terminal.types("fg");
    until("it has the terminal", || terminal.foreground() == work);
    terminal.types("typed");
    terminal.shows("got(typed)");
    has_ended_with(&terminal, 0);
    rig.assert_free_and_alone();
}

#[test]
fn fetched_into_the_foreground_while_it_works_it_obeys_the_keys() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    let terminal = shell(&rig);
    terminal.types("gpuctl run --quiet comfyui -- work &");
    pid_shown(&terminal);
    terminal.types("fg");
    until("the job has the terminal", || terminal.foreground() != terminal.pid());
    suspend(&rig, &terminal);
    terminal.types("fg");
    until("the job has the terminal", || terminal.foreground() != terminal.pid());
    terminal.presses(CTRL_C);
    has_ended_with(&terminal, 130);
    rig.assert_free_and_alone();
}

#[test]
fn a_script_that_calls_it_ends_at_ctrl_c_as_well() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    rig.file("home/script", "gpuctl run --quiet comfyui -- work\necho went-$((1+1))-on\n");
    let shells = rig.shell("basename -a $(command -v dash bash sh)").run().succeeds().text();
    for shell_of_script in shells.lines() {
        let terminal = shell(&rig);
        terminal.types(&format!("{shell_of_script} script"));
        let work = pid_shown(&terminal);
        until("it has the terminal", || terminal.foreground() == work);
        terminal.presses(CTRL_C);
        has_ended_with(&terminal, 130);
        assert!(!terminal.text().contains("went-2-on"), "{shell_of_script}: {}", terminal.text());
        until("gpuctl has ended", || rig.gpuctls().is_empty());
        rig.assert_free_and_alone();
    }
}

#[test]
fn a_script_goes_on_where_its_command_handles_ctrl_c() {
    let rig = with_comfyui();
    rig.program("work", &format!("trap 'exit 4' INT; {LOOP}"));
    rig.file("home/script", "gpuctl run --quiet comfyui -- work\necho went-$?-on\n");
    let terminal = shell(&rig);
    terminal.types("sh script");
    let work = pid_shown(&terminal);
    until("it has the terminal", || terminal.foreground() == work);
    terminal.presses(CTRL_C);
    terminal.shows("went-4-on");
    has_ended_with(&terminal, 0);
}

#[test]
fn a_background_job_of_a_script_leaves_the_terminal_to_the_script() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    rig.file(
        "home/script",
        "gpuctl run --quiet comfyui -- work &\nread line; echo \"got($line)\"; wait",
    );
    let terminal = shell(&rig);
    terminal.types("sh script");
    pid_shown(&terminal);
    terminal.types("typed");
    terminal.shows("got(typed)");
    finish(&rig);
    terminal.shows("work-is-done");
    has_ended_with(&terminal, 0);
    rig.assert_free_and_alone();
}

#[test]
fn where_nobody_can_continue_it_ctrl_z_suspends_nothing_for_good() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    let terminal = rig.terminal("gpuctl run --quiet comfyui -- work");
    let work = pid_shown(&terminal);
    until("it has the terminal", || terminal.foreground() == work);
    terminal.presses(CTRL_Z);
    finish(&rig);
    // gpuctl ends as its command does. What that shows may be lost: gpuctl leads the session, and
    // when the leader ends, the kernel throws away what has not been read.
    assert_eq!(terminal.ends().code(), Some(0));
    rig.assert_free_and_alone();
}

#[test]
fn on_a_terminal_that_stops_background_output_a_lost_lock_is_still_told() {
    let rig = with_comfyui();
    let Some(redis) = rig.lock_in_redis() else { return };
    rig.program("work", WORK);
    let terminal = shell(&rig);
    terminal.types("stty tostop; gpuctl run comfyui -- work");
    let work = pid_shown(&terminal);
    redis.cli(&["DEL", LOCK_KEY]);
    until("it has ended", || state(work).is_none());
    terminal.shows("gpuctl: the GPU lock is lost");
    has_ended_with(&terminal, 76);
    rig.assert_free_and_alone();
}

#[test]
fn when_the_terminal_is_closed_the_command_ends() {
    let rig = with_comfyui();
    rig.program("work", WORK);
    let terminal = rig.terminal("gpuctl run --quiet comfyui -- work");
    let work = pid_shown(&terminal);
    drop(terminal);
    until("both have ended", || state(work).is_none() && rig.gpuctls().is_empty());
    rig.assert_free_and_alone();
}
