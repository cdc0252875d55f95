//! Test of rows 64 and 65 over a long time: one change of phase after another, while clients give
//! work to whichever service runs.
//!
//! `GPUCTL_TEST_CHANGES=200` makes it longer; `GPUCTL_TEST_HISTORY_SEED` repeats a history, as far
//! as the machine's timing allows.

use rig::{Dice, Rig, Service, number, until};
use serde_json::{Value, json};
use std::thread;

/// A kind of service. It is all that its phase needs, and there is no room for it beside another.
struct Kind {
    name: &'static str,
    api: &'static str,
    server: &'static str,
    evict: &'static str,
    path: &'static str,
    stream: bool,
}

const KINDS: [Kind; 3] = [
    Kind {
        name: "comfyui",
        api: "comfyui",
        server: "--api comfyui --unload-residual 600 --unload-delay 50ms",
        evict: "unload",
        path: "/prompt",
        stream: false,
    },
    Kind {
        name: "vllm",
        api: "vllm",
        server: "--api vllm --slots 4 --unload-residual 900",
        evict: "unload",
        path: "/v1/completions",
        stream: true,
    },
    Kind {
        name: "llama",
        api: "llama-server",
        server: "--api llama --router --model a --model b --child-per-model --slots 2",
        evict: "stop",
        path: "/v1/chat/completions",
        stream: true,
    },
];

/// Gives a service jobs of these lengths in milliseconds, each before the previous one is done, and
/// waits for their answers.
fn work(kind: &Kind, service: &Service, lengths: &[u64]) {
    let mut answers = Vec::new();
    for ms in lengths {
        let body = match kind.api {
            "llama-server" => json!({"ms": ms, "model": "b", "stream": true}),
            _ => json!({"ms": ms, "stream": kind.stream}),
        };
        answers.push(service.request(kind.path, &body));
        thread::sleep(std::time::Duration::from_millis(ms / 2));
    }
    for answer in answers {
        let answer = answer.join().unwrap().expect("the answer is whole");
        assert!(!kind.stream || answer.ends_with("data: [DONE]\n\n"), "{}: {answer}", kind.name);
    }
}

#[test]
fn row_64_65_change_after_change_no_request_is_cut_off_and_nobody_runs_out_of_memory() {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": 100}));
    let services = KINDS.each_ref().map(|kind| {
        let phase = KINDS.iter().position(|one| one.name == kind.name).unwrap() as u32 + 1;
        let service = rig.native(kind.name).vram(20000).phases([phase]).server(kind.server);
        let service = service.set("evict", kind.evict).set("api", kind.api);
        service.set("url", "http://127.0.0.1:1").add()
    });
    for (kind, service) in KINDS.iter().zip(&services) {
        rig.set(&format!("services.{}.url", kind.name), service.url(""));
    }
    let mut dice = Dice::new();
    let (mut given, mut tally) = (0, [0; 3]);
    let mut now: Option<usize> = None;
    for change in 0..number("GPUCTL_TEST_CHANGES").unwrap_or(25) {
        let next = dice.below(3) as usize;
        let lengths: Vec<u64> = (0..dice.below(5)).map(|_| 200 + dice.below(400)).collect();
        let report = thread::scope(|scope| {
            let busy = now.filter(|_| !lengths.is_empty());
            if let Some(at) = busy {
                given += lengths.len();
                let (service, lengths) = (&services[at], &lengths);
                let taken = rig.card.jobs().len();
                scope.spawn(move || work(&KINDS[at], service, lengths));
                until("the first job is taken", || rig.card.jobs().len() > taken);
            }
            let prepare = rig.gpuctl(&format!("prepare-phase {} --json --quiet", next + 1)).run();
            let report: Value = prepare.succeeds().json();
            // A service that is not needed any more was given no more work, so all of its jobs have
            // to be done.
            if now.is_some_and(|at| at != next) {
                assert!(rig.card.jobs().values().all(|done| *done), "change {change}: {report}");
            }
            report
        });
        rig.assert_no_out_of_memory();
        for (at, list) in ["stopped", "unloaded", "started"].iter().enumerate() {
            tally[at] += report[list].as_array().unwrap().len();
        }
        for (kind, service) in KINDS.iter().zip(&services) {
            let is_stopped = report["stopped"].as_array().unwrap().contains(&json!(kind.name));
            assert!(!is_stopped || kind.evict == "stop", "change {change}: {report}");
            assert!(KINDS[next].name != kind.name || service.is_healthy());
        }
        now = Some(next);
    }
    // The last service may still be at work on queued jobs; a job that was cut off is never done.
    until("all the work is done", || rig.card.jobs().values().all(|done| *done));
    eprintln!("{given} jobs; stopped, unloaded, started: {tally:?}");
    rig.assert_jobs_done(given);
}
