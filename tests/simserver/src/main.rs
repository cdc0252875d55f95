//! `simserver`, a model server that stands in for the real ones in tests: it is a real process,
//! speaks real HTTP, and claims memory on the simulated card of `simgpu`.

mod api;
mod args;
mod health;
mod life;
mod models;
mod service;
mod work;
mod workers;

use std::error::Error;
use std::io::{self, Write};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Instant;
use std::{env, thread};

use clap::Parser;

use args::Args;
use life::Ending;
use models::Models;
use service::Service;
use workers::{Word, Workers};

fn main() -> ExitCode {
    // A mistake is printed in one piece, as servers do: if the pieces of a line come apart, podman
    // puts them in any order.
    let args = Args::try_parse().unwrap_or_else(|refused| {
        io::stderr().write_all(refused.to_string().as_bytes()).ok();
        std::process::exit(refused.exit_code())
    });
    run(&args).unwrap_or_else(|error| {
        eprintln!("{}: {error}", args.name);
        ExitCode::FAILURE
    })
}

fn run(args: &Args) -> io::Result<ExitCode> {
    let begin = Instant::now();
    if args.processes.daemonise {
        go_to_background()?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.processes.own_session {
        rustix::process::setsid()?;
    }
    let (endings, ending) = mpsc::channel();
    life::watch(args, begin, &endings)?;
    let (workers, words) = Workers::spawn(args)?;
    let own_vram = if words.is_empty() { args.memory.vram } else { 0 };
    let service = Service::new(args, Models::new(args, own_vram), endings.clone());
    if args.port != 0 && !args.late_listen {
        service.listen()?;
    }
    let service_of_end = Arc::clone(&service);
    let (starting, its_service) = (args.clone(), Arc::clone(&service));
    thread::spawn(move || {
        if let Err(error) = warm_up(&starting, begin, &its_service, words) {
            endings.send(Ending::Failed(error.to_string())).ok();
        }
    });

    match ending.recv() {
        Ok(Ending::Failed(error)) => {
            eprintln!("{}: {error}", args.name);
            Ok(ExitCode::FAILURE)
        }
        Ok(Ending::Exit(code)) => Ok(code.into()),
        Ok(Ending::Signal(signal)) => life::die_by(signal).map(|()| ExitCode::FAILURE),
        Ok(Ending::Asked) | Err(_) => {
            thread::sleep(args.term_delay);
            workers.terminate();
            service_of_end.models().end_children();
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Waits until the server and its workers hold their memory and the warm-up is over, and then
/// announces that the server is ready.
fn warm_up(
    args: &Args,
    begin: Instant,
    service: &Arc<Service>,
    words: Vec<Word>,
) -> Result<(), Box<dyn Error>> {
    service.models().start(args, begin + args.warmup)?;
    for word in words {
        word.came().then_some(()).ok_or("a worker has died")?;
    }
    if args.port != 0 && args.late_listen {
        service.listen()?;
    }
    service.is_warm_now();
    // It does not matter whether anybody reads this.
    writeln!(io::stdout(), "{}: ready", args.name).ok();
    Ok(())
}

/// Starts this program again in a session of its own, so that it does not die with the terminal.
/// The caller must exit, which leaves the new process to init.
fn go_to_background() -> io::Result<()> {
    let arguments = env::args_os().skip(1).filter(|argument| argument != "--daemonise");
    Command::new(env::current_exe()?)
        .args(arguments)
        .arg("--own-session")
        .stdin(Stdio::null())
        .spawn()
        .map(drop)
}
