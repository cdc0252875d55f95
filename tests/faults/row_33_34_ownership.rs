//! Patterns that match too much, and those who only mention a service (rows 33 and 34).

use rig::{Rig, Service, apart, until};
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

#[test]
fn a_pattern_finds_the_processes_that_pgrep_finds() {
    let rig = Rig::new();
    let mark = rig.mark("server");
    let _processes: Vec<_> = ["a b", "é", "x--flag", "(y)"]
        .map(|word| rig.by_hand(&format!("sh -c 'read _ <&3' 3<>fifo {mark} '{word}'")))
        .into_iter()
        .collect();
    let patterns = [
        " a b$",
        " [[:alpha:]] ",
        "x(-){2}flag",
        r"\(y\)",
        "(a b|x--).*",
        "é$",
        "[xy][^b]*$",
        "^sh -c .*",
        "A B",
        "nothing",
        "(.)\\1flag",
    ];
    for (index, pattern) in patterns.iter().enumerate() {
        let pattern = format!("{mark}.*{pattern}");
        let name = format!("s{index}");
        rig.native(&name).set("match", pattern.as_str()).add();
        let found = rig.shell("pgrep -f -- \"$PATTERN\" || true").env("PATTERN", &pattern);
        let mut found: Vec<i32> =
            found.run().succeeds().text().lines().map(|pid| pid.parse().unwrap()).collect();
        found.sort_unstable();
        let status = rig.gpuctl("status --json").run().succeeds().json();
        let pids: Vec<i32> =
            serde_json::from_value(status["services"][&name]["pids"].clone()).unwrap();
        assert_eq!(pids, found, "{pattern}");
    }
}

/// A service whose pattern is just its name, which gpuctl's own command line has in it, too.
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
    // Nothing on its command line tells that it calls gpuctl.
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

/// People who have the service's name on their command line: name of the process, and how to start it.
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
        // Known by what it calls itself.
        ("simserver", format!("bash -c 'exec -a /usr/bin/vim {server} --name {mark}.log'")),
        ("simserver", format!("bash -c 'exec -a -nano {server} --name {mark}.log'")),
        ("simserver", format!("bash -c 'exec -a \"vim {mark}.log\" {server} --name notes'")),
        // Another shell, which is going to call gpuctl for it.
        ("sh", format!("sh -c 'sleep 1000; gpuctl stop {mark}'")),
        ("bash", format!("bash -c 'sleep 1000; /opt/gpuctl start {mark} && true'")),
    ]
}

/// Whether it has become what it is to be, and is no shell any more that is about to.
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
    // It matches, and nothing proves it; what is a viewer by its name is not even named.
    let named = format!("gpuctl adopt vidi {}", service.pid());
    rig.gpuctl("stop vidi").run().exits(6).stderr_has(&named);
}
