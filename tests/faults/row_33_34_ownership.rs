//! Tests of patterns that match too much, and of processes that only mention a service (rows 33 and
//! 34).

use rig::{Bystander, Invocation, Rig, Service, apart, until};
use serde_json::Value;
use std::fs;

#[test]
fn row_33_a_pattern_that_is_empty_or_matches_everything_is_refused() {
    apart(|rig| {
        for pattern in ["", " ", ".", ".*", "^", "$", "^.*$", ".+", "()", "a*", "python|", "[^ ]"] {
            let vidi = rig.native("vidi").set("match", pattern).add();
            for command in ["stop vidi", "start vidi", "status", "config check", "release-all"] {
                let refused = rig.gpuctl(command).run().fails("config");
                refused.stderr_has("match").stderr_has("vidi");
            }
            rig.assert_no_process_of(&vidi);
        }
    });
}

#[test]
fn row_33_a_pattern_that_is_no_expression_is_refused() {
    apart(|rig| {
        rig.native("vidi").set("match", "(vidi").add();
        for command in ["stop vidi", "status", "config check"] {
            let refused = rig.gpuctl(command).run().fails("config");
            refused
                .stderr_has("services.vidi.match")
                .stderr_has("\"(vidi\" is not a valid extended regular expression");
        }
    });
}

/// Starts processes that wait until they are ended, with `mark` and then a word at the end of their
/// command lines.
fn waiting<const N: usize>(rig: &Rig, mark: &str, words: [&str; N]) -> [Bystander; N] {
    rig.shell("mkfifo fifo").run().succeeds();
    let processes =
        words.map(|word| rig.by_hand(&format!("sh -c 'read _ <&3' 3<>fifo {mark} '{word}'")));
    for process in &processes {
        let line = format!("/proc/{}/cmdline", process.pid());
        until("it waits", || fs::read_to_string(&line).unwrap().starts_with("sh\0-c\0read"));
    }
    processes
}

/// Returns for each pattern which of the processes match it according to `gpuctl doctor`, and which
/// of them pgrep finds, both with these environment variables.
fn found<const N: usize>(
    rig: &Rig,
    patterns: &[String],
    processes: &[Bystander; N],
    variables: &[(&str, &str)],
) -> Vec<([bool; N], [bool; N])> {
    rig.set("gpu.total_mb", 24576);
    for (index, pattern) in patterns.iter().enumerate() {
        rig.native(&format!("s{index}")).set("match", pattern.as_str()).add();
    }
    let within = |invocation: Invocation| {
        let set =
            |invocation: Invocation, (name, value): &(&str, &str)| invocation.env(name, value);
        variables.iter().fold(invocation, set).run().succeeds()
    };
    let report = within(rig.gpuctl("doctor --json")).json();
    let checks = report["checks"].as_array().unwrap();
    let each = patterns.iter().enumerate().map(|(index, pattern)| {
        let subject = format!("s{index}");
        let is_meant = |check: &&Value| {
            check["id"] == "native.strangers" && check["subject"] == subject.as_str()
        };
        let told = checks.iter().find(is_meant).unwrap()["message"].as_str().unwrap();
        let pgrep = rig.shell("pgrep -f -- \"$PATTERN\" || true").env("PATTERN", pattern);
        let pgrep = within(pgrep).text();
        let pids = processes.each_ref().map(|process| process.pid().to_string());
        let is_told = pids.each_ref().map(|pid| told.contains(&format!(" {pid} (")));
        (is_told, pids.map(|pid| pgrep.lines().any(|line| line == pid)))
    });
    each.collect()
}

#[test]
fn a_pattern_finds_the_processes_that_pgrep_finds() {
    let rig = Rig::new();
    let mark = rig.mark("server");
    let processes = waiting(&rig, &mark, ["a b", "é", "x--flag", "(y)"]);
    let [none, ab, e, flag, y] = [0, 1, 2, 4, 8].map(|set| [1, 2, 4, 8].map(|bit| set & bit != 0));
    let patterns = [
        (" a b$", ab),
        (" [[:alpha:]] ", ab),
        ("x(-){2}flag", flag),
        (r"\(y\)", y),
        ("(a b|x--).*", [true, false, true, false]),
        ("é$", e),
        ("[xy][^b]*$", [false, false, true, true]),
        ("[)]$", y),
        (" A B", none),
        ("nothing", none),
        ("(.)\\1flag", flag),
    ];
    let marked = patterns.map(|(pattern, _)| format!("{mark}.*{pattern}"));
    let found = found(&rig, &marked, &processes, &[("LC_ALL", "C.UTF-8")]);
    for ((pattern, expected), (told, pgrep)) in patterns.into_iter().zip(found) {
        assert_eq!(pgrep, expected, "pgrep: {pattern}");
        assert_eq!(told, expected, "{pattern}");
    }
}

#[test]
fn a_pattern_means_in_each_locale_what_it_means_to_pgrep() {
    let rig = Rig::new();
    let mark = rig.mark("server");
    let processes = waiting(&rig, &mark, ["codeq7x4éend", "codeq7x4end", "codeq7x4-end"]);
    let patterns = [
        "x4.end",
        "x4..end",
        "x4é?end",
        "x4é{0,1}end",
        "x4[é-]end",
        "x4[[:alpha:]]end",
        r"x4\wend",
    ];
    let marked = patterns.map(|pattern| format!("{mark}.*{pattern}"));
    // In the last two cases the locale does not exist, or not for all of its categories.
    for (variables, is_utf8) in [
        ([("LC_ALL", "C"), ("LANG", "C.UTF-8")], false),
        ([("LC_ALL", "C.UTF-8"), ("LANG", "C")], true),
        ([("LC_TIME", "C"), ("LANG", "C.UTF-8")], true),
        ([("LC_ALL", "xx_YY.UTF-8"), ("LANG", "C.UTF-8")], false),
        ([("LC_TIME", "xx_YY.UTF-8"), ("LANG", "C.UTF-8")], false),
    ] {
        let found = found(&rig, &marked, &processes, &variables);
        // Without UTF-8, pgrep sees a question mark in place of each byte of `é`.
        let alike = |pattern: &str| is_utf8 || pattern.is_ascii();
        for (pattern, (told, pgrep)) in patterns.iter().zip(&found).filter(|(p, _)| alike(p)) {
            assert_eq!(told, pgrep, "{pattern} with {variables:?}");
        }
        assert_eq!(found[0].0, [is_utf8, false, true], "{variables:?}");
    }
}

/// Adds a service whose pattern is just its name, which is in gpuctl's own command line, too.
/// Returns the name and the service.
fn service_named_as_its_pattern(rig: &Rig) -> (String, Service) {
    let name = rig.mark("vidi");
    let service = rig.native(&name).set("match", name.as_str()).add();
    (name, service)
}

#[test]
fn row_33_a_pattern_that_matches_gpuctl_and_its_shell_ends_neither() {
    let rig = Rig::new();
    let (name, vidi) = service_named_as_its_pattern(&rig);
    rig.gpuctl(&format!("start {name} --quiet")).run().succeeds();
    assert!(vidi.is_healthy());
    let script = format!("bash -c 'gpuctl stop {name}; echo survived with $?'; echo too");
    rig.shell(&script).run().succeeds().stdout_has("survived with 0\ntoo").progress();
    rig.assert_no_process_of(&vidi);
    rig.shell(&script).run().succeeds().stdout_has("nothing to do").stdout_has("survived with 0");
}

#[test]
fn row_33_a_script_of_the_services_name_survives_its_own_stop() {
    let rig = Rig::new();
    let (name, vidi) = service_named_as_its_pattern(&rig);
    // The script's command line does not show that it calls gpuctl.
    let script = format!("gpuctl start {name}\ngpuctl stop {name}\necho survived with $?");
    let script = rig.program(&format!("cycle-{name}"), &script);
    let cycle = rig.shell(&script.display().to_string()).run().succeeds();
    cycle.stdout_has("started").stdout_has("stopped").stdout_has("survived with 0").progress();
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_33_nor_does_a_start_take_its_own_shell_for_the_service() {
    let rig = Rig::new();
    let (name, vidi) = service_named_as_its_pattern(&rig);
    let script = format!("bash -c 'gpuctl start {name}; echo survived with $?'");
    rig.shell(&script)
        .run()
        .succeeds()
        .stdout_has("started")
        .stdout_has("survived with 0")
        .progress();
    assert!(vidi.is_healthy());
}

/// Returns programs that have the service's name on their command lines: for each, the name of its
/// process and the command that starts it.
fn readers(rig: &Rig, vidi: &Service) -> Vec<(&'static str, String)> {
    let mark = vidi.mark();
    let log = rig.file(&format!("{mark}.log"), "");
    let (log, server) = (log.display(), vidi.command().split_whitespace().next().unwrap());
    for viewer in ["less", "vim.basic", "sudo"] {
        rig.program(viewer, "while :; do sleep 1; done");
    }
    vec![
        ("tail", format!("tail -f {log}")),
        ("less", format!("less {log}")),
        ("vim.basic", format!("vim.basic {log}")),
        ("sudo", format!("sudo -u vidi env {mark}")),
        // These are known by what they call themselves.
        ("simserver", format!("bash -c 'exec -a /usr/bin/vim {server} --name {mark}.log'")),
        ("simserver", format!("bash -c 'exec -a -nano {server} --name {mark}.log'")),
        ("simserver", format!("bash -c 'exec -a \"vim {mark}.log\" {server} --name notes'")),
        // These are other shells, which are going to call gpuctl for the service.
        ("sh", format!("sh -c 'sleep 1000; gpuctl stop {mark}'")),
        ("bash", format!("bash -c 'sleep 1000; /opt/gpuctl start {mark} && true'")),
    ]
}

/// Reports whether a process has become the program `name` and is no longer the shell that is about
/// to execute it.
fn is(pid: i32, name: &str) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    comm.trim() == name && !String::from_utf8_lossy(&line).contains("exec")
}

#[test]
fn row_34_those_who_read_edit_or_call_survive_a_running_service_and_one_that_does_not_run() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).set("match", rig.mark("vidi")).add();
    let mut bystanders: Vec<_> = readers(&rig, &vidi)
        .into_iter()
        .map(|(name, command)| (name, command.clone(), rig.by_hand(&command)))
        .collect();
    for (name, command, bystander) in &bystanders {
        until(command, || is(bystander.pid(), name));
    }
    let mut all_live = |when: &str| {
        for (_, command, bystander) in &mut bystanders {
            assert!(bystander.is_alive(), "{command}, {when}");
        }
    };
    let stop = || rig.gpuctl("stop vidi").run().succeeds().progress();

    stop().stdout_has("nothing to do");
    all_live("where nothing runs");

    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    stop().stdout_has("stopped vidi");
    all_live("with what gpuctl started");

    let mut server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    stop().stdout_has("stopped vidi");
    assert!(!server.is_alive());
    all_live("with what was started by hand");

    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    rig.gpuctl("stop vidi --force").run().succeeds().stdout_has("stopped vidi").progress();
    all_live("by force");
}

#[test]
fn row_34_a_pipeline_that_writes_to_the_log_survives_its_own_stop() {
    let rig = Rig::new();
    let (name, vidi) = service_named_as_its_pattern(&rig);
    rig.gpuctl(&format!("start {name} --quiet")).run().succeeds();
    let script = format!("{{ gpuctl stop {name} --quiet; echo survived; }} | tee -a {name}.log");
    rig.shell(&script).run().succeeds().stdout_has("survived");
    rig.assert_no_process_of(&vidi);
}

#[test]
fn row_34_a_service_is_known_by_what_it_calls_itself_whatever_program_it_is() {
    let rig = Rig::new();
    let mark = rig.mark("vidi");
    rig.native("vidi").set("match", format!("^{mark} ")).add();
    let service = rig.by_hand(&format!("bash -c 'exec -a {mark} tail -f /dev/null'"));
    until("it is what it calls itself", || is(service.pid(), "tail"));
    // The process matches, and nothing proves that it is the service's. A process that calls itself
    // a viewer would not even be named.
    let named = format!("gpuctl adopt vidi {}", service.pid());
    rig.gpuctl("stop vidi").run().exits(6).stderr_has(&named);
}
