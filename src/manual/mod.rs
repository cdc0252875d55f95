//! The manual: a page for each command, made from the clap types and from tables, and one for the
//! configuration, made from its schema.

mod command;
mod configuration;
mod facts;
mod roff;

use crate::cli::Cli;
use clap::{Command, CommandFactory};

/// Date in the footer of each page: that of the release, so that the same source always makes the
/// same pages.
const DATE: &str = "2026-11-21";

pub struct Page {
    /// File name of the page: `gpuctl-status.1`.
    pub name: String,
    pub text: String,
}

/// Returns every page, that of gpuctl itself first.
pub fn pages() -> Vec<Page> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    of_command_and_below(&[&root], &mut pages);
    pages.push(Page { name: "gpuctl.toml.5".to_owned(), text: configuration::page() });
    pages
}

/// Adds the pages of the last command of `way`, which is the path to it from the root, and of all
/// commands below it.
fn of_command_and_below(way: &[&Command], pages: &mut Vec<Page>) {
    let words: Vec<&str> = way.iter().map(|command| command.get_name()).collect();
    pages.push(Page { name: format!("{}.1", words.join("-")), text: command::page(way) });
    for below in way.last().into_iter().flat_map(|command| documented(command)) {
        of_command_and_below(&[way, &[below]].concat(), pages);
    }
}

/// Returns the commands directly below this one that have a page: all but `help` and hidden ones.
fn documented(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// Collects the calls of gpuctl in the examples of a command and of those below it, without the
    /// rest of the line that is for the shell.
    fn examples(command: &Command, found: &mut Vec<String>) {
        let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(text.starts_with("Examples:\n  "), "{} has no examples", command.get_name());
        for line in text.lines().filter(|line| !line.trim().starts_with('#')) {
            assert!(line.len() <= 75, "too long for a manual page of 80 columns: {line}");
            for call in line.split("gpuctl ").skip(1) {
                let end = call.find(['#', '|', '&', ')', ';', '>']).unwrap_or(call.len());
                found.push(call[..end].replace('"', ""));
            }
        }
        documented(command).for_each(|below| examples(below, found));
    }

    #[test]
    fn every_command_has_examples_that_can_be_typed() {
        let mut found = Vec::new();
        let mut root = Cli::command();
        root.build();
        examples(&root, &mut found);
        for call in found {
            let call = call.replace("$$", "1");
            let words = ["gpuctl"].into_iter().chain(call.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("gpuctl {call}: {error}");
            }
        }
    }
}
