//! The command line of `simserver`, as types without logic.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// A model server that stands in for ComfyUI, CosyVoice, vLLM, Ollama and llama-server.
///
/// It claims memory on the simulated card in the folder $SIMGPU_DIR, becomes healthy after a warm-up, serves HTTP and
/// ends on SIGTERM; everything else is misbehaviour on request. Sizes are MB of 1,048,576 bytes, durations are such as
/// 250ms, 2s or 1m. When warm it prints "NAME: ready" on standard output. It ends when $SIMGPU_DIR is removed.
///
/// `POST /work` takes all of --vram, as a first job does. Each API has requests that work for the `ms` of their body, with
/// a `stream` of events where that is wanted, on the card unless `off_card` is set; which jobs were taken and done is in $SIMGPU_DIR/jobs.jsonl. Any GET is the health check, if the chosen API does not know
/// its path.
#[derive(Clone, Debug, Parser)]
#[command(version, max_term_width = 110)]
pub struct Args {
    /// Name in the claims and the messages
    #[arg(long, default_value = "simserver")]
    pub name: String,

    /// Port to listen on; 0: none, it only holds its memory
    #[arg(long, default_value_t = 0)]
    pub port: u16,

    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// Time from the start until it is healthy; until then a GET is answered 503
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub warmup: Duration,

    /// Listen only when warm; until then connections are refused
    #[arg(long)]
    pub late_listen: bool,

    /// Exit code 0 this long after SIGTERM or SIGINT, the memory being held until then
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub term_delay: Duration,

    /// Write each request into this file, a line each: "GET /health"
    #[arg(long, value_name = "FILE")]
    pub requests: Option<PathBuf>,

    #[command(flatten, next_help_heading = "Memory")]
    pub memory: Memory,

    #[command(flatten, next_help_heading = "Unloading")]
    pub unload: Unload,

    #[command(flatten, next_help_heading = "Processes")]
    pub processes: Processes,

    #[command(flatten, next_help_heading = "Misbehaviour")]
    pub misbehaviour: Misbehaviour,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Memory {
    /// Memory to claim
    #[arg(long, value_name = "MB", default_value_t = 0)]
    pub vram: u64,

    /// Claim only this at the start; the first job takes the rest
    #[arg(long, value_name = "MB")]
    pub idle_vram: Option<u64>,

    /// Claim in so many equal steps, spread over the warm-up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub steps: u64,

    /// Index of the device
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: usize,

    /// Be listed as a graphics process, as the desktop is
    #[arg(long)]
    pub graphics: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Unload {
    /// Whose way of unloading models to offer
    #[arg(long, value_enum, default_value_t = Api::None)]
    pub api: Api,

    /// A model it serves, each an equal share of the memory; repeatable [default: NAME]
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,

    /// What is still held with no model loaded [default: --idle-vram, or 0]
    #[arg(long, value_name = "MB")]
    pub unload_residual: Option<u64>,

    /// Time from the answer until the memory is free
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub unload_delay: Duration,

    /// vllm: time that the call which puts it to sleep takes until it is answered
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub sleep_delay: Duration,

    /// Time that a load takes which is asked for, as by a call that wakes it
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub load_delay: Duration,

    /// Answer that it was done, and free nothing
    #[arg(long)]
    pub unload_ignored: bool,

    /// How many jobs it does at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub slots: usize,

    /// llama: forward each request to the model that it names
    #[arg(long)]
    pub router: bool,

    /// Let each loaded model be held by a child process of its own
    #[arg(long)]
    pub child_per_model: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Processes {
    /// Let N child processes, in the same process group, hold the memory in equal shares
    #[arg(long, value_name = "N", conflicts_with_all = ["idle_vram", "api"])]
    pub fork: Option<u64>,

    /// Let the memory be held by a process in a session of its own that is nobody's child and outlives the server
    /// (or by N, with --fork)
    #[arg(long, conflicts_with_all = ["idle_vram", "api"])]
    pub double_fork: bool,

    /// Name of the processes that --fork and --double-fork make [default: NAME]
    #[arg(long, value_name = "NAME")]
    pub worker_name: Option<String>,

    /// Run in the background, in a session of its own, and exit 0 in the foreground
    #[arg(long)]
    pub daemonise: bool,

    #[arg(long, hide = true)]
    pub own_session: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Misbehaviour {
    /// How GET is answered when warm
    #[arg(long, value_enum, default_value_t = Health::Ok)]
    pub health: Health,

    /// How POST /v1/completions is answered
    #[arg(long, value_enum, default_value_t = Completion::Ok)]
    pub completion: Completion,

    /// Time that a completion takes
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = humantime::parse_duration)]
    pub completion_delay: Duration,

    /// Answer no GET while a job runs, as a program whose one thread is at work
    #[arg(long)]
    pub mute_at_work: bool,

    /// Give no answer to a GET while its path stands in this file
    #[arg(long, value_name = "FILE")]
    pub mute_paths: Option<PathBuf>,

    /// Answer 503 again this long after it became healthy
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    pub unhealthy_after: Option<Duration>,

    /// Take no notice of SIGTERM and SIGINT; the workers neither
    #[arg(long)]
    pub ignore_term: bool,

    /// End this long after the start
    #[arg(long, value_name = "DUR", value_parser = humantime::parse_duration)]
    pub exit_after: Option<Duration>,

    /// Code to end with
    #[arg(long, value_name = "N", default_value_t = 0, requires = "exit_after")]
    pub exit_code: u8,

    /// Number of the signal to die by, instead of exiting (9 KILL, 11 SEGV, ..)
    #[arg(long, value_name = "NUMBER", requires = "exit_after", conflicts_with = "exit_code")]
    pub die_by: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Api {
    None,
    /// GET /api/ps; POST /api/generate with keep_alive 0 unloads, with a prompt works, else loads
    Ollama,
    /// GET and POST /prompt, POST /free
    Comfyui,
    /// POST /v1/completions, GET /metrics, POST /sleep, POST /wake_up, GET /is_sleeping
    Vllm,
    /// POST /completion, GET /slots, GET /models, POST /models/unload, POST /models/load
    Llama,
    /// POST /sdapi/v1/txt2img, GET /sdapi/v1/progress, POST /sdapi/v1/unload-checkpoint, POST /sdapi/v1/reload-checkpoint
    Sdwebui,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Health {
    /// 200
    Ok,
    /// Accept and never answer
    Hang,
    /// 500
    #[value(name = "500")]
    Error,
    /// A byte a second
    Drip,
    /// 302 to itself
    RedirectLoop,
    /// 200, and a body without end
    Endless,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Completion {
    /// 200, and a text
    Ok,
    /// 200, and no JSON
    Garbage,
    /// 200, and JSON with an empty text
    Empty,
    /// 500
    #[value(name = "500")]
    Error,
    /// 500, and CUDA's complaint on standard error
    Oom,
    /// The server ends
    Crash,
}
