//! The canary's decisions in tables: windows through nights and clock changes, limits, verdicts.

use super::candidate::{self, Candidate};
use super::limits::{NotNow, PastRuns, Route, permit, runs_in_a_day};
use super::verdict::{Card, Status, judge};
use crate::config::{Config, Limits, Window};
use crate::model::Mb;
use jiff::Timestamp;
use jiff::tz::TimeZoneDatabase;
use serde_json::{Map, Value, json};
use std::time::Duration;

fn window(text: &str) -> Window {
    Window::parse(text, "America/New_York", &TimeZoneDatabase::bundled()).expect(text)
}

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

#[test]
fn both_ends_belong_to_the_window_and_not_a_moment_more() {
    // New York is at -05:00 in January.
    let window = window("03:00-07:00");
    for (moment, is_in) in [
        ("2026-01-10T07:59:59.999Z", false),
        ("2026-01-10T08:00:00Z", true),
        ("2026-01-10T12:00:00Z", true),
        ("2026-01-10T12:00:00.001Z", false),
        ("2026-01-10T20:00:00Z", false),
    ] {
        assert_eq!(window.contains(at(moment)), is_in, "{moment}");
    }
}

#[test]
fn a_window_across_midnight_is_one_night_with_the_date_of_its_beginning() {
    let window = window("22:30-04:00 Europe/Berlin");
    for (moment, is_in, night) in [
        ("2026-01-10T21:29:59Z", false, "2026-01-10"),
        ("2026-01-10T21:30:00Z", true, "2026-01-10"),
        ("2026-01-10T22:59:59Z", true, "2026-01-10"),
        ("2026-01-10T23:00:00Z", true, "2026-01-10"),
        ("2026-01-11T03:00:00Z", true, "2026-01-10"),
        ("2026-01-11T03:00:01Z", false, "2026-01-11"),
    ] {
        assert_eq!(window.contains(at(moment)), is_in, "{moment}");
        assert_eq!(window.night(at(moment)).to_string(), night, "{moment}");
    }
}

#[test]
fn the_zone_of_the_window_stands_over_the_configured_one() {
    let berlin = window("03:00-07:00 Europe/Berlin");
    assert!(berlin.contains(at("2026-01-10T02:00:00Z")));
    assert!(!berlin.contains(at("2026-01-10T08:00:00Z")));
}

#[test]
fn clock_changes_move_the_window_with_the_clock_on_the_wall() {
    let window = window("03:00-07:00");
    // Forward on 2026-03-08: 07:00Z is 03:00 already.
    assert!(!window.contains(at("2026-03-08T06:59:59Z")));
    assert!(window.contains(at("2026-03-08T07:00:00Z")));
    assert!(window.contains(at("2026-03-08T11:00:00Z")));
    assert!(!window.contains(at("2026-03-08T11:00:01Z")));
    // Back on 2026-11-01: 03:00 is at 08:00Z again.
    assert!(!window.contains(at("2026-11-01T07:30:00Z")));
    assert!(window.contains(at("2026-11-01T08:00:00Z")));
}

#[test]
fn a_window_that_begins_in_the_hour_that_is_skipped_opens_after_it() {
    let window = window("02:30-05:00");
    assert_eq!(window.opens_next(at("2026-03-08T05:00:00Z")), at("2026-03-08T07:30:00Z"));
    // The window is open both times in the hour that comes twice.
    let twice = self::window("01:15-01:45");
    assert!(twice.contains(at("2026-11-01T05:30:00Z")));
    assert!(twice.contains(at("2026-11-01T06:30:00Z")));
}

#[test]
fn the_next_opening_is_always_later_than_now() {
    let window = window("03:00-07:00");
    assert_eq!(window.opens_next(at("2026-01-10T07:59:59Z")), at("2026-01-10T08:00:00Z"));
    assert_eq!(window.opens_next(at("2026-01-10T08:00:00Z")), at("2026-01-11T08:00:00Z"));
    assert_eq!(window.opens_next(at("2026-03-07T20:00:00Z")), at("2026-03-08T07:00:00Z"));
}

#[test]
fn what_is_no_window_or_no_zone_is_refused() {
    for text in ["", "03:00", "3-7", "25:00-26:00", "03:00-07:00 Mars/Olympus", "03:00/07:00"] {
        let parsed = Window::parse(text, "UTC", &TimeZoneDatabase::bundled());
        assert!(parsed.is_err(), "{text}");
    }
    let zone = Window::parse("03:00-07:00", "Nowhere", &TimeZoneDatabase::bundled());
    assert_eq!(zone.expect_err("no zone").0, "time_zone");
}

fn limits(window: &Window) -> Limits {
    Limits {
        window: window.clone(),
        cooldown: Duration::from_secs(6 * 3600),
        max_runs_per_day: 3,
        max_downtime: Duration::from_secs(60),
        reserve: Duration::from_secs(45),
    }
}

fn history(runs: &[&str], used: f64) -> PastRuns {
    PastRuns { runs: runs.iter().map(|run| at(run)).collect(), used: Duration::from_secs_f64(used) }
}

/// A moment within the window, in UTC.
const NOW: &str = "2026-01-10T04:00:00Z";

#[test]
fn each_limit_refuses_with_the_time_to_come_again() {
    let window = window("03:00-07:00 UTC");
    let limits = limits(&window);
    let refused =
        |history: &PastRuns, now: &str| permit(&limits, history, Route::Quiesced, false, at(now));
    assert_eq!(refused(&history(&[], 15.0), NOW), Ok(()));
    assert_eq!(
        refused(&history(&[], 0.0), "2026-01-10T12:00:00Z"),
        Err(NotNow::OutsideWindow { next: at("2026-01-11T03:00:00Z") })
    );
    assert_eq!(
        refused(&history(&["2026-01-09T22:00:01Z"], 0.0), NOW),
        Err(NotNow::Cooldown { next: at("2026-01-10T04:00:01Z") })
    );
    assert_eq!(refused(&history(&["2026-01-09T22:00:00Z"], 0.0), NOW), Ok(()));
    let three = ["2026-01-09T05:00:00Z", "2026-01-09T12:00:00Z", "2026-01-09T20:00:00Z"];
    assert_eq!(
        refused(&history(&three, 0.0), NOW),
        Err(NotNow::RateLimited { next: at("2026-01-10T05:00:00Z") })
    );
    assert_eq!(refused(&history(&three, 0.0), "2026-01-10T05:00:00Z"), Ok(()));
    assert_eq!(
        refused(&history(&[], 15.1), NOW),
        Err(NotNow::BudgetExhausted {
            used: Duration::from_secs_f64(15.1),
            next: at("2026-01-11T03:00:00Z")
        })
    );
}

#[test]
fn an_operators_word_waives_window_and_cooldown_and_never_the_budget_or_the_rate() {
    let window = window("03:00-07:00 UTC");
    let limits = limits(&window);
    let noon = at("2026-01-10T12:00:00Z");
    let recent = history(&["2026-01-10T11:59:00Z"], 0.0);
    assert_eq!(permit(&limits, &recent, Route::Quiesced, true, noon), Ok(()));
    let spent = permit(&limits, &history(&[], 16.0), Route::Quiesced, true, noon);
    assert!(matches!(spent, Err(NotNow::BudgetExhausted { .. })));
    let runs = ["2026-01-10T09:00:00Z", "2026-01-10T10:00:00Z", "2026-01-10T11:00:00Z"];
    let fourth = permit(&limits, &history(&runs, 0.0), Route::Quiesced, true, noon);
    assert_eq!(fourth, Err(NotNow::RateLimited { next: at("2026-01-11T09:00:00Z") }));
}

#[test]
fn a_budget_that_is_spent_before_its_night_has_begun_comes_back_in_the_next_one() {
    for (window, now, next) in [
        ("03:00-07:00 UTC", "2026-01-10T01:00:00Z", "2026-01-11T03:00:00Z"),
        ("22:00-04:00 UTC", "2026-01-10T12:00:00Z", "2026-01-11T22:00:00Z"),
        ("22:00-04:00 UTC", "2026-01-10T03:00:00Z", "2026-01-10T22:00:00Z"),
    ] {
        let window = self::window(window);
        let refusal = permit(&limits(&window), &history(&[], 16.0), Route::Quiesced, true, at(now));
        assert_eq!(refusal.map_err(|not_now| not_now.next()), Err(at(next)), "{now}");
    }
}

#[test]
fn beside_production_neither_window_nor_budget_apply() {
    let window = window("03:00-07:00 UTC");
    let limits = limits(&window);
    let noon = at("2026-01-10T12:00:00Z");
    assert_eq!(permit(&limits, &history(&[], 60.0), Route::Spare(1), false, noon), Ok(()));
    let recent =
        permit(&limits, &history(&["2026-01-10T11:00:00Z"], 0.0), Route::Spare(1), false, noon);
    assert!(matches!(recent, Err(NotNow::Cooldown { .. })));
}

#[test]
fn a_run_that_a_clock_step_has_put_into_the_future_counts() {
    let ahead = history(&["2026-01-12T00:00:00Z"], 0.0);
    assert_eq!(runs_in_a_day(&ahead, at(NOW)).len(), 1);
}

fn document(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

const BOX: &str = r#"
[services.vllm]
type = "docker"
container = "vllm"
vram_mb = 18000
[canary]
service = "vllm"
[canary.extra_mb.whisper_model_size]
small = 2000
"#;

#[test]
fn a_candidate_is_known_by_its_content_and_not_by_its_order() {
    // echo -n '{"vllm_memory_util":0.75,"whisper_model_size":"small"}' | sha256sum
    let one = document(json!({"whisper_model_size": "small", "vllm_memory_util": 0.75}));
    let other = document(json!({"vllm_memory_util": 0.75, "whisper_model_size": "small"}));
    assert_eq!(candidate::id(&one), candidate::id(&other));
    assert_eq!(candidate::id(&one), "9c21dcc68ad15da0");
}

#[test]
fn what_is_set_is_typed_by_its_bounds() {
    let config = Config::of_text(BOX).expect("a good configuration");
    let bounds = &config.canary().expect("a canary").bounds;
    let mut set = Map::new();
    for assignment in ["vllm_memory_util=0.75", "max_model_len=8192", "whisper_model_size=base"] {
        candidate::set(&mut set, assignment, bounds).expect(assignment);
    }
    let typed =
        json!({"vllm_memory_util": 0.75, "max_model_len": 8192, "whisper_model_size": "base"});
    assert_eq!(Value::from(set), typed);
    assert!(candidate::set(&mut Map::new(), "vllm_memory_util", bounds).is_err());
}

#[test]
fn verdicts_follow_the_arithmetic() {
    let config = Config::of_text(BOX).expect("a good configuration");
    let canary = config.canary().expect("a canary");
    let judged = |value: Value, persistent: u64| {
        let candidate = Candidate::new(&document(value), &canary.bounds);
        let card = Card { total: Mb(24576), persistent: Mb(persistent) };
        let verdict = judge(&candidate, canary, card);
        (verdict.status, verdict.allocation)
    };
    let share = |share: f64| json!({"vllm_memory_util": share});
    assert_eq!(judged(share(0.75), 0), (Status::Pass, Some(Mb(18432))));
    assert_eq!(judged(share(0.75), 6144), (Status::Pass, Some(Mb(18432))));
    assert_eq!(judged(share(0.75), 6145), (Status::Fail, Some(Mb(18432))));
    let with_whisper = json!({"vllm_memory_util": 0.75, "whisper_model_size": "small"});
    assert_eq!(judged(with_whisper.clone(), 4144), (Status::Pass, Some(Mb(18432))));
    assert_eq!(judged(with_whisper, 4145), (Status::Fail, Some(Mb(18432))));
    for invalid in [
        share(0.59),
        share(0.91),
        json!({}),
        json!({"vllm_memory_util": "0.75"}),
        json!({"vllm_memory_util": null}),
        json!({"max_model_len": 8192}),
        json!({"vllm_memory_util": 0.7, "whisper_model_size": "huge"}),
        json!({"vllm_memory_util": 0.7, "tensor_parallel": 2}),
    ] {
        assert_eq!(judged(invalid.clone(), 0), (Status::Invalid, None), "{invalid}");
    }
}

#[test]
fn a_small_card_leaves_no_room_for_the_cache() {
    let config = Config::of_text(BOX).expect("a good configuration");
    let canary = config.canary().expect("a canary");
    let candidate = Candidate::new(&document(json!({"vllm_memory_util": 0.6})), &canary.bounds);
    // 0.6 of the card is 6069.6 MB, of which 6070 are needed.
    let judged = judge(&candidate, canary, Card { total: Mb(10116), persistent: Mb(0) });
    assert_eq!((judged.status, judged.allocation), (Status::Fail, Some(Mb(6069))));
    let judged = judge(&candidate, canary, Card { total: Mb(10117), persistent: Mb(0) });
    assert_eq!((judged.status, judged.kv_cache), (Status::Pass, Some(Mb(370))));
}

#[test]
fn the_start_command_takes_what_is_in_braces_and_leaves_the_shells_alone() {
    let config = Config::of_text(BOX).expect("a good configuration");
    let bounds = &config.canary().expect("a canary").bounds;
    let candidate = Candidate::new(&document(json!({"vllm_memory_util": 0.75})), bounds);
    let candidate = candidate.expect("within bounds");
    let command = |template: &str| candidate.command(template, 9011, "/models/m");
    assert_eq!(
        command("serve --port {port} -m {model} -u {vllm_memory_util}").as_deref(),
        Ok("serve --port 9011 -m /models/m -u 0.75")
    );
    assert_eq!(command("f() { echo ${x}; }; f").as_deref(), Ok("f() { echo ${x}; }; f"));
    assert!(command("serve {max_model_len}").is_err());
}

/// Log lines that report a lack of memory on the card, as they stand in the sources of vLLM V1
/// (`core/kv_cache_utils.py`, `worker/utils.py`, `worker/gpu_model_runner.py`,
/// `config/compilation.py`, `csrc/cumem_allocator.cpp`), PyTorch (`CUDACachingAllocator.cpp`),
/// Triton and NCCL.
const OUT_OF_MEMORY: [&str; 17] = [
    "ValueError: To serve at least one request with the models's max seq len (40960), (5.62 GiB KV cache is needed, which is larger than the available KV cache memory (4.50 GiB). Based on the available memory, the estimated maximum model length is 32768. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.",
    "ValueError: To serve at least one request with the model's max seq len (32768), 4.00 GiB KV cache is needed, which is larger than the available KV Cache memory (1.20 GiB).",
    "(EngineCore_DP0 pid=262) ERROR 10-08 20:33:48 [core.py:708] ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
    "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be stored in KV cache (12416). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.",
    "ValueError: Free memory on device (3.27/15.98 GiB) on startup is less than desired GPU memory utilization (0.9, 14.39 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
    "ValueError: Free memory on device cuda:0 (3.25/23.43 GiB) on startup is less than desired GPU memory utilization (0.96, 22.49 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
    "ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (603). Each decode sequence requires one Mamba cache block, so CUDA graph capture cannot proceed. Please lower max_num_seqs to at most 603 or increase gpu_memory_utilization.",
    "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
    "ERROR 04-07 15:58:28 [gpu_model_runner.py:4818] Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free memory for weights, increasing --tensor-parallel-size, or using --quantization. (original error: CUDA out of memory. Tried to allocate 112.00 MiB. GPU 0 has a total capacity of 31.36 GiB of which 96.50 MiB is free.)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.74 GiB. GPU 3 has a total capacity of 94.97 GiB of which 1.69 GiB is free.",
    "torch.cuda.OutOfMemoryError: Allocation on device",
    "RuntimeError: CUDA error: out of memory",
    "RuntimeError: CUDA driver error: out of memory",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62",
    "RuntimeError: Triton Error [CUDA]: out of memory",
    "host:71:71 [0] include/alloc.h:320 NCCL WARN Cuda failure 2 'out of memory'",
];

/// Log lines of the same programs when all is well, or when something else is wrong.
const OTHER_NEWS: [&str; 14] = [
    "INFO 09-24 20:54:35 [gpu_worker.py:391] Free memory on device (43.93/44.42 GiB) on startup. Desired GPU memory utilization is (0.9, 39.98 GiB). Actual usage is 27.72 GiB for weight, 1.4 GiB for peak activation, 0.21 GiB for non-torch memory, and 3.45 GiB for CUDAGraph memory.",
    "INFO 10-04 22:27:39 model_runner.py:1333] CUDA graphs can take additional 1~3 GiB memory per GPU. If you are running out of memory, consider decreasing `gpu_memory_utilization` or enforcing eager mode.",
    "INFO model_runner.py:1518] Capturing cudagraphs for decoding. If out-of-memory error occurs during cudagraph capture, consider decreasing `gpu_memory_utilization` or switching to eager mode.",
    "INFO 08-21 18:21:55 [gpu_worker.py:692] Available KV cache memory: 56.21 GiB",
    "INFO 08-21 18:21:55 [kv_cache_utils.py:2235] GPU KV cache size: 621,392 tokens",
    "INFO 08-21 18:21:55 [kv_cache_utils.py:2236] Maximum concurrency for 32,768 tokens per request: 18.96x",
    "INFO Sleep mode freed 17.28 GiB memory, 0.69 GiB memory is still in use.",
    "WARNING Sequence group 7 is preempted by PreemptionMode.RECOMPUTE mode because there is not enough KV cache space.",
    "AssertionError: Error in memory profiling. Initial free memory 20.1 GiB, current free memory 21.3 GiB. This happens when other processes sharing the same container release GPU memory while vLLM is profiling during initialization.",
    "CUDA Error: invalid argument at /workspace/csrc/cumem_allocator.cpp:145",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "RuntimeError: CUDA error: device-side assert triggered",
    "host:71:71 [0] NCCL WARN Cuda failure 1 'invalid argument'",
    "ValueError: User-specified max_model_len (65536) is greater than the derived max_model_len (max_position_embeddings=32768.0 or model_max_length=None in model's config.json).",
];

#[test]
fn a_lack_of_memory_is_known_by_every_message_of_vllm_and_cuda_and_by_no_other() {
    let config = Config::of_text(BOX).expect("a good configuration");
    let oom = &config.canary().expect("a canary").oom;
    for line in OUT_OF_MEMORY {
        assert!(oom.matches_text(line), "not known: {line}");
    }
    for line in OTHER_NEWS {
        assert!(!oom.matches_text(line), "taken for a lack of memory: {line}");
    }
}
