//! `gpuctl completions`, and the hidden command that the completion scripts call.

use crate::cli::{Cli, CompleteArgs, CompletionsArgs, Shell};
use crate::completion::{Offer, offer};
use crate::config::Environment;
use crate::error::Result;
use crate::exit::Answer;
use crate::report::print_text;
use clap::CommandFactory;

pub fn run(arguments: &CompletionsArgs) -> Result<Answer> {
    print_text(match arguments.shell {
        Shell::Bash => include_str!("../../completions/gpuctl.bash"),
        Shell::Zsh => include_str!("../../completions/_gpuctl"),
        Shell::Fish => include_str!("../../completions/gpuctl.fish"),
    })
    .map(|()| Answer::Yes)
}

/// Prints what may come next on a command line. The first line is `files`, `command` for a command
/// after `--`, or `values`; values follow one per line, each with a tab and a description.
pub fn complete(arguments: &CompleteArgs, environment: &Environment) -> Result<Answer> {
    let words: Vec<String> =
        arguments.words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let lines = match offer(Cli::command(), &words, environment) {
        Offer::Files => "files\n".to_owned(),
        Offer::Command => "command\n".to_owned(),
        Offer::Values(candidates) => {
            let lines = candidates.iter().map(|candidate| {
                let line = format!("{}\t{}", candidate.value, candidate.about);
                format!("{}\n", line.trim_end())
            });
            ["values\n".to_owned()].into_iter().chain(lines).collect()
        }
    };
    print_text(&lines).map(|()| Answer::Yes)
}
