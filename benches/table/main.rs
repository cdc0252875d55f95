//! Benchmarks of how much gpuctl adds to what everything around it takes, and of how it compares
//! with what it replaces. `make bench` runs everything and writes docs/benchmarks.md;
//! `cargo bench --bench table -- growth` runs one part, and writes nothing.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a measurement fails by panicking, and prints what it measured"
)]

mod calls;
mod change;
mod growth;
mod instructions;
mod line;
mod lock;
mod measure;
mod peers;
mod report;

use report::Section;
use std::process::ExitCode;
use std::thread;

/// The name of a part, and the function that measures it.
type Part = (&'static str, fn() -> Section);

const PARTS: [Part; 6] = [
    ("calls", calls::measure),
    ("change", change::measure),
    ("lock", lock::measure),
    ("line", line::measure),
    ("growth", growth::measure),
    ("instructions", instructions::measure),
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let writes = words.iter().any(|word| word == "--write");
    let is_wanted = |name: &str| writes || words.iter().any(|word| word == name);
    if words.iter().any(|word| word == "--update") {
        instructions::update();
        return ExitCode::SUCCESS;
    }
    let mut page = report::opening();
    print!("{page}");
    let (mut is_whole, mut is_slower) = (true, false);
    for (name, part) in PARTS.iter().filter(|(name, _)| words.is_empty() || is_wanted(name)) {
        // Each part has a thread of its own, because a thread that has asked for a Docker engine
        // stays in the engine's network.
        match thread::spawn(part).join() {
            Ok(section) => {
                let text = section.text();
                print!("{text}");
                page.push_str(&text);
                // The counts of instructions are the only figures that are the same on a busy
                // machine.
                is_slower |= *name == "instructions" && section.misses_a_target();
            }
            // The panic has said why.
            Err(_) => {
                eprintln!("{name} could not be measured");
                is_whole = false;
            }
        }
    }
    if writes && is_whole {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks.md"), page).unwrap();
    }
    if is_slower {
        eprintln!(
            "more instructions than the baseline allows; `make bench-baseline` where that is meant"
        );
    }
    if is_whole && !is_slower { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
