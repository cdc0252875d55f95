//! Tests of work in flight (row 64): a service that has to make room is waited for until it has no
//! jobs, or is left alone.

use rig::{Draft, Rig, Service, until};
use serde_json::{Value, json};
use std::thread::JoinHandle;
use toml::Table;

/// A kind of server: how it is given work, and how gpuctl asks for its jobs.
struct Kind {
    api: &'static str,
    server: &'static str,
    path: &'static str,
    body: Value,
    /// Makes the service's `busy` table from its URL, in place of what the api gives; `None` leaves
    /// it to the api.
    busy: Option<fn(&str) -> Table>,
}

fn kinds() -> Vec<Kind> {
    let of = |api, server, path, body| Kind { api, server, path, body, busy: None };
    let prompt = || json!({"prompt": {}});
    let stream = || json!({"prompt": "hello", "stream": true});
    vec![
        of("comfyui", "--api comfyui", "/prompt", prompt()),
        of("vllm", "--api vllm", "/v1/completions", stream()),
        of("llama-server", "--api llama --slots 2", "/completion", stream()),
        of(
            "llama-server",
            "--api llama --router --model a --model b",
            "/v1/chat/completions",
            json!({"model": "b", "stream": true}),
        ),
        of("sdwebui", "--api sdwebui", "/sdapi/v1/txt2img", prompt()),
        Kind {
            busy: Some(|url| {
                let pointer = "/exec_info/queue_remaining";
                Table::from_iter([
                    ("url".to_owned(), format!("{url}/prompt").into()),
                    ("json".to_owned(), pointer.into()),
                ])
            }),
            ..of("", "--api comfyui", "/prompt", prompt())
        },
        Kind {
            busy: Some(|url| {
                Table::from_iter([
                    ("url".to_owned(), format!("{url}/metrics").into()),
                    ("metric".to_owned(), "vllm:num_requests_running".into()),
                ])
            }),
            ..of("", "--api vllm --slots 2", "/v1/completions", stream())
        },
        Kind {
            busy: Some(|url| {
                let line =
                    format!("curl -s {url}/slots | grep -o '\"is_processing\":true' | wc -l");
                Table::from_iter([("command".to_owned(), line.into())])
            }),
            ..of("", "--api llama --slots 2", "/completion", stream())
        },
    ]
}

/// Creates a rig with a running worker of this kind in phase 1 and a larger service in phase 2;
/// returns the rig, the worker and the larger service.
fn rig_with(kind: &Kind, evict: &str) -> (Rig, Service, Service) {
    let rig = Rig::new();
    let worker = worker(rig.native("worker"), kind).set("evict", evict).add();
    complete(&rig, kind, &worker);
    let big = rig.native("big").vram(20000).priority(100).phases([2]).add();
    rig.gpuctl("start worker --quiet").run().succeeds();
    (rig, worker, big)
}

fn worker<'a>(draft: Draft<'a>, kind: &Kind) -> Draft<'a> {
    let draft = draft.vram(12000).priority(10).phases([1]).server(kind.server);
    match kind.api {
        "" => draft,
        api => draft.set("api", api).set("url", "http://127.0.0.1:1"),
    }
}

/// Sets the keys that name the port that the worker was given.
fn complete(rig: &Rig, kind: &Kind, worker: &Service) {
    if !kind.api.is_empty() {
        rig.set("services.worker.url", worker.url(""));
    }
    if let Some(busy) = kind.busy {
        rig.set("services.worker.busy", busy(&worker.url("")));
    }
}

/// Gives a service two jobs that last `ms` milliseconds each, and waits until it has them.
fn give(rig: &Rig, worker: &Service, kind: &Kind, ms: u64) -> Vec<JoinHandle<Option<String>>> {
    let mut body = kind.body.clone();
    body["ms"] = ms.into();
    let before = rig.card.jobs().len();
    let jobs = (0..2).map(|_| worker.request(kind.path, &body)).collect();
    until("it has the jobs", || rig.card.jobs().len() == before + 2);
    jobs
}

/// Asserts that every client that waits for an answer gets it, to its end.
#[track_caller]
fn assert_answered(kind: &Kind, jobs: Vec<JoinHandle<Option<String>>>) {
    for job in jobs {
        let answer = job.join().unwrap().unwrap_or_else(|| panic!("{}: cut off", kind.server));
        assert!(kind.body["stream"] != true || answer.ends_with("data: [DONE]\n\n"), "{answer}");
    }
}

#[test]
fn row_64_jobs_of_every_kind_of_server_are_waited_for_and_then_it_is_stopped() {
    for kind in kinds() {
        let (rig, worker, _big) = rig_with(&kind, "stop");
        let jobs = give(&rig, &worker, &kind, 1500);
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(status["services"]["worker"]["jobs"], 2, "{}: {status}", kind.server);
        let prepare = rig.gpuctl("prepare-phase 2 --json").run().succeeds();
        let prepare = prepare.stderr_has("draining worker, ").ignores_stderr().json();
        let steps = &prepare["steps"];
        assert_eq!(
            (&steps[0]["action"], &steps[0]["service"]),
            (&json!("drain"), &json!("worker"))
        );
        assert_eq!(prepare["stopped"], json!(["worker"]));
        assert_answered(&kind, jobs);
        rig.assert_jobs_done(2);
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn row_64_who_works_for_longer_is_not_stopped_and_is_named_with_its_jobs() {
    for kind in kinds() {
        for evict in ["stop", "unload"].iter().take(if kind.api.is_empty() { 1 } else { 2 }) {
            let (rig, worker, big) = rig_with(&kind, evict);
            let process = rig.processes_of(&worker);
            let jobs = give(&rig, &worker, &kind, 1500);
            let refused =
                rig.gpuctl("prepare-phase 2 --drain 0 --json").run().fails("service_busy");
            let error = refused.ignores_stderr().json()["error"].clone();
            assert_eq!(error["exit_code"], 75);
            assert_eq!(error["details"]["busy"], json!([{"service": "worker", "jobs": 2}]));
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("worker (2 jobs) is still working"), "{message}");
            assert!(message.contains("nothing was stopped"), "{message}");
            assert_eq!(rig.processes_of(&worker), process);
            rig.assert_no_process_of(&big);
            assert_answered(&kind, jobs);
            until("its work is done", || rig.card.jobs().values().all(|done| *done));
        }
    }
}

/// Asserts that a phase is refused while the worker has jobs, without its manager being asked to
/// stop it, and that the worker is drained and stopped once. `calls` runs a closure and returns
/// what the manager was asked meanwhile.
fn drained_by_its_manager(draft: Draft, calls: impl Fn(&Rig, &dyn Fn()) -> Vec<String>) {
    let (rig, kind) = (draft.rig(), &kinds()[1]);
    let worker = worker(draft, kind).set("evict", "stop").add();
    complete(rig, kind, &worker);
    rig.native("big").vram(20000).priority(100).phases([2]).add();
    rig.gpuctl("start worker --quiet").run().succeeds();
    let jobs = give(rig, &worker, kind, 2500);
    let stops = |calls: &[String]| {
        calls.iter().filter(|call| call.split(' ').any(|word| word == "stop")).count()
    };
    let refused = calls(rig, &|| {
        let refused = rig.gpuctl("prepare-phase 2 --drain 200ms").run().fails("service_busy");
        refused.stderr_has("worker (2 jobs) is still working after 200ms").ignores_stderr();
    });
    assert_eq!(stops(&refused), 0, "{refused:?}");
    assert!(worker.is_healthy());
    let drained = calls(rig, &|| {
        let prepare = rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("stopped worker");
        prepare.stderr_has("draining worker").ignores_stderr();
    });
    assert_eq!(stops(&drained), 1, "{drained:?}");
    assert_answered(kind, jobs);
    rig.assert_jobs_done(2);
    rig.gpuctl("prepare-phase 1 --quiet").run().succeeds().ignores_stdout();
    let body = json!({"ms": 60_000, "stream": true});
    let _cut_off = [(); 2].map(|()| worker.request(kind.path, &body));
    until("it has two jobs again", || {
        let status = rig.gpuctl("status --json").run().succeeds().json();
        status["services"]["worker"]["jobs"] == 2
    });
    let stop = rig.gpuctl("stop worker --force --json --quiet").run().succeeds().json();
    let note = stop["steps"][0]["note"].as_str().unwrap_or_default();
    assert!(note.contains("2 jobs cut off"), "{stop}");
}

#[test]
fn row_64_a_container_is_drained_before_the_engine_is_asked_to_stop_it() {
    let Some(rig) = Rig::with_docker() else { return };
    drained_by_its_manager(rig.container("worker"), |rig, act| rig.docker_calls(act));
}

#[test]
fn row_64_a_unit_is_drained_before_systemd_is_asked_to_stop_it() {
    let rig = Rig::new();
    // What a unit holds is known by its control group.
    if !rig.systemd().has_control_groups() {
        return;
    }
    drained_by_its_manager(rig.unit("worker"), |rig, act| rig.systemctl_calls(act));
}

#[test]
fn row_64_nobody_is_stopped_while_one_of_several_still_works() {
    let kind = &kinds()[1];
    let (rig, worker, _big) = rig_with(kind, "stop");
    let other = rig.native("other").vram(6000).priority(20).phases([1]).server("--api comfyui");
    let other = other.set("api", "comfyui").set("url", "http://127.0.0.1:1").add();
    rig.set("services.other.url", other.url(""));
    rig.set("services.worker.drain", "200ms");
    rig.gpuctl("start other --quiet").run().succeeds();
    let long = give(&rig, &worker, kind, 4000);
    let short = other.request("/prompt", &json!({"ms": 1}));
    let both = [rig.processes_of(&worker), rig.processes_of(&other)];
    let refused = rig.gpuctl("prepare-phase 2").run().fails("service_busy");
    refused.stderr_has("after 200ms").ignores_stderr();
    assert_eq!([rig.processes_of(&worker), rig.processes_of(&other)], both);
    assert!(short.join().unwrap().is_some());
    rig.gpuctl("prepare-phase 2 --drain 1m --quiet").run().succeeds();
    assert_answered(kind, long);
    rig.assert_jobs_done(3);
}

#[test]
fn row_64_every_command_that_stops_waits_for_work() {
    let kind = &kinds()[0];
    for command in [
        "stop worker",
        "release-all",
        "restart worker",
        "start big",
        "run big -- true",
        "run --phase 2 -- true",
    ] {
        let (rig, worker, _big) = rig_with(kind, "stop");
        drop(give(&rig, &worker, kind, 1000));
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(code, Some(0), "{command}: {told}");
        assert!(told.contains("draining worker"), "{command}: {told}");
        rig.assert_jobs_done(2);
    }
}

#[test]
fn row_64_work_is_cut_off_only_where_that_is_asked_for_and_that_is_told() {
    let kind = &kinds()[1];
    for command in ["prepare-phase 2 --no-drain", "stop worker --no-drain", "release-all --force"] {
        for evict in ["stop", "unload"] {
            let (rig, worker, _big) = rig_with(kind, evict);
            let jobs = give(&rig, &worker, kind, 60_000);
            let report = rig.gpuctl(&format!("{command} --json --quiet")).run().succeeds().json();
            assert_eq!(report["stopped"], json!(["worker"]), "{command}, {evict}: {report}");
            let note = report["steps"][0]["note"].as_str().unwrap_or_default();
            assert!(note.contains("2 jobs cut off"), "{command}, {evict}: {report}");
            drop(jobs);
            rig.assert_no_process_of(&worker);
        }
    }
    let (rig, ..) = rig_with(kind, "stop");
    rig.gpuctl("stop worker --force --drain 1m").run().fails("usage").ignores_stderr();
    rig.gpuctl("stop worker --no-drain --drain 1m").run().fails("usage").ignores_stderr();
}

#[test]
fn row_64_a_dry_run_says_who_works() {
    let kind = &kinds()[0];
    let (rig, worker, _big) = rig_with(kind, "stop");
    drop(give(&rig, &worker, kind, 60_000));
    let plan = rig.gpuctl("prepare-phase 2 --dry-run").run().succeeds();
    plan.stdout_has("would stop worker (12000 MB)\n  at work now, with 2 jobs\n");
    rig.gpuctl("prepare-phase 2 --dry-run --drain 0").run().fails("service_busy").ignores_stderr();
    assert!(worker.is_healthy());
}

#[test]
fn row_64_a_question_that_fails_is_told_and_is_not_idle() {
    let kind = &kinds()[0];
    let (rig, worker, _big) = rig_with(kind, "stop");
    rig.set("services.worker.busy.url", worker.url("/prompt"));
    rig.set("services.worker.busy.json", "/no/such/place");
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let service = &status["services"]["worker"];
    assert_eq!((&service["state"], &service["jobs"]), (&json!("ready"), &Value::Null));
    let detail = service["detail"].as_str().unwrap();
    assert!(detail.contains("there is nothing at \"/no/such/place\""), "{detail}");
    let prepare = rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("stopped worker");
    prepare.stderr_has("warning: worker: cannot tell whether it is at work").ignores_stderr();
}

/// Creates a rig whose worker has one thread, which works on a job of `ms` milliseconds and answers
/// nobody meanwhile. An `off_card` job does not work on the card.
fn rig_at_silent_work(evict: &str, ms: u64, off_card: bool) -> (Rig, Service, Service) {
    let kind = Kind { server: "--api comfyui --mute-at-work", ..kinds().swap_remove(0) };
    let (rig, worker, big) = rig_with(&kind, evict);
    let body = json!({"prompt": {}, "ms": ms, "off_card": off_card});
    worker.request("/prompt", &body).join().unwrap().unwrap();
    (rig, worker, big)
}

#[test]
fn row_64_who_does_not_answer_and_works_on_the_card_is_waited_for() {
    // A service that unloads is asked for its health before, too, so its job is longer.
    for (evict, ms, list) in [("stop", 14_000, "stopped"), ("unload", 25_000, "unloaded")] {
        let (rig, ..) = rig_at_silent_work(evict, ms, false);
        let prepare = rig.gpuctl("prepare-phase 2 --json").run().succeeds();
        let told = "draining worker, does not answer, and works on the card";
        let prepare = prepare.stderr_has(told).progress().json();
        let step = &prepare["steps"][0];
        assert_eq!((&step["action"], &step["service"]), (&json!("drain"), &json!("worker")));
        assert_eq!(prepare[list], json!(["worker"]), "{prepare}");
        rig.assert_jobs_done(1);
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn row_64_who_does_not_answer_and_works_on_the_card_for_longer_is_not_stopped_and_is_named() {
    for evict in ["stop", "unload"] {
        let (rig, worker, big) = rig_at_silent_work(evict, 60_000, false);
        let process = rig.processes_of(&worker);
        let status = rig.gpuctl("status --json").run().succeeds().json();
        let service = &status["services"]["worker"];
        assert_eq!(service["jobs"], Value::Null, "{status}");
        let plan = rig.gpuctl("prepare-phase 2 --dry-run").run().succeeds();
        plan.stdout_has("at work now: does not answer, and works on the card");
        let refused = rig.gpuctl("prepare-phase 2 --drain 3s --json").run().fails("service_busy");
        let error = refused.progress().json()["error"].clone();
        assert_eq!(error["details"]["busy"], json!([{"service": "worker", "jobs": null}]));
        let message = error["message"].as_str().unwrap();
        let named = "worker (does not answer, and works on the card) is still working after 3s";
        assert!(message.contains(named), "{message}");
        assert!(message.contains("nothing was stopped"), "{message}");
        assert_eq!(rig.processes_of(&worker), process);
        rig.assert_no_process_of(&big);
        let stop = rig.gpuctl("stop worker --no-drain --json --quiet").run().succeeds().json();
        let note = stop["steps"][0]["note"].as_str().unwrap_or_default();
        assert!(note.contains("work cut off: it did not answer, and worked on the card"), "{stop}");
    }
}

#[test]
fn row_64_who_does_not_answer_and_does_not_work_on_the_card_is_told_and_not_waited_for() {
    let (rig, worker, _big) = rig_at_silent_work("stop", 600_000, true);
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let service = &status["services"]["worker"];
    assert_eq!((&service["jobs"], &service["idle_s"]), (&Value::Null, &Value::Null), "{status}");
    let told = "warning: worker: cannot tell whether it is at work: ";
    let prepare = rig.gpuctl("prepare-phase 2 --drain 1h").run().succeeds();
    prepare.stdout_has("stopped worker").stderr_has(told).ignores_stderr();
    rig.assert_no_process_of(&worker);
}

#[test]
fn row_64_who_has_told_of_jobs_and_then_fails_to_tell_still_has_them() {
    let kind = &kinds()[0];
    let (rig, worker, _big) = rig_with(kind, "stop");
    let (answer, asked) = (rig.file("home/answer", "echo 2"), rig.file("home/asked", ""));
    let command = format!("echo >>{}; . {}", asked.display(), answer.display());
    rig.set("services.worker.busy.command", command);
    let prepare = rig.gpuctl("prepare-phase 2 --drain 25s").spawn();
    until("it waits for the jobs", || prepare.stderr().contains("draining worker, 2 jobs left"));
    // The command hangs, then fails, then prints no number.
    for failure in ["sleep 1000", "exit 1", "echo some"] {
        rig.file("home/answer", failure);
        rig.file("home/asked", "");
        until("it was asked and went on", || std::fs::read(&asked).unwrap().len() > 1);
    }
    let refused = prepare.wait().fails("service_busy");
    refused.stderr_has("worker (2 jobs) is still working after 25s").ignores_stderr();
    assert!(worker.is_healthy());
    rig.file("home/answer", "echo 2");
    let prepare = rig.gpuctl("prepare-phase 2").spawn();
    until("it waits for the jobs", || prepare.stderr().contains("draining worker, 2 jobs left"));
    // A service that is gone has no jobs.
    rig.file("home/answer", "exit 1");
    rig.processes_of(&worker).into_iter().for_each(|pid| rig::signal(pid, rig::Signal::KILL));
    prepare.wait().succeeds().stdout_has("started big").ignores_stderr();
}
