//! Turns clap's error about a bad command line into a `Failure` like any other, which says what is
//! wrong and what to write instead.

use super::Cli;
use crate::error::Failure;
use crate::exit::Code;
use crate::model::nearest;
use crate::redact::mask;
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::num::ParseIntError;

/// A bad command line, as far as clap describes it.
struct Misuse<'a> {
    error: &'a clap::Error,
    /// Name of the command that was called, such as "lock acquire". Empty for gpuctl itself.
    command: String,
    /// Usage of the command, such as "gpuctl lock acquire [OPTIONS] [HOLDER]". Empty if clap gives
    /// none.
    usage: String,
}

/// Returns the failure for `words`, the command line that clap has refused with `error`.
pub fn mistake(error: &clap::Error, words: &[String]) -> Failure {
    let misuse = Misuse::of(error, words);
    let (problem, hints) = misuse.told(words);
    let failure = Failure::new(Code::Usage, mask(&problem));
    let hints = hints.into_iter().chain([misuse.advice()]);
    hints.fold(failure, |failure, hint| failure.hint(mask(&hint)))
}

impl<'a> Misuse<'a> {
    fn of(error: &'a clap::Error, words: &[String]) -> Misuse<'a> {
        let usage = error.get(ContextKind::Usage).map(ToString::to_string).unwrap_or_default();
        let usage = usage.trim().trim_start_matches("Usage: ").lines().next().unwrap_or_default();
        let is_plain = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
        let command: Vec<&str> = usage.split_whitespace().skip(1).take_while(is_plain).collect();
        // For a wrong value, clap does not say which command it belongs to.
        let command = if usage.is_empty() { called(words) } else { command.join(" ") };
        Misuse { error, command, usage: usage.to_owned() }
    }

    /// Returns the texts that clap gives for this kind of context.
    fn texts(&self, kind: ContextKind) -> Vec<String> {
        let texts = match self.error.get(kind) {
            Some(ContextValue::String(text)) => vec![text.clone()],
            Some(ContextValue::Strings(texts)) => texts.clone(),
            _ => Vec::new(),
        };
        let is_repeatable = |text: &String| text.starts_with('-') && !text.contains('<');
        let plain = |text: String| match is_repeatable(&text) {
            true => text.trim_end_matches("...").to_owned(),
            false => text,
        };
        texts.into_iter().map(plain).collect()
    }

    fn text(&self, kind: ContextKind) -> String {
        self.texts(kind).join(", ")
    }

    /// Returns the last hint, which says how the command is called.
    fn advice(&self) -> String {
        let help = ["gpuctl", &self.command, "--help"].join(" ").replace("  ", " ");
        match self.usage.is_empty() {
            true => format!("see `{help}`"),
            false => format!("usage: {}; see `{help}`", self.usage),
        }
    }

    fn told(&self, words: &[String]) -> (String, Vec<String>) {
        use ContextKind::{
            InvalidArg, InvalidSubcommand, InvalidValue, PriorArg, SuggestedSubcommand,
            SuggestedValue, ValidValue,
        };
        let argument = self.text(InvalidArg);
        let value = self.text(InvalidValue);
        let meant = |kind| {
            let suggestions = self.texts(kind);
            let word = self.texts(InvalidSubcommand).pop().unwrap_or_else(|| value.clone());
            nearest(&word, suggestions.iter().map(String::as_str))
                .map(|nearest| format!("did you mean \"{nearest}\"?"))
        };
        let (problem, hint) = match self.error.kind() {
            ErrorKind::UnknownArgument => return self.unknown(&argument, words),
            ErrorKind::InvalidSubcommand => (
                format!("there is no command \"{}\"", self.text(InvalidSubcommand)),
                meant(SuggestedSubcommand),
            ),
            ErrorKind::MissingRequiredArgument => {
                (format!("{} needs {argument}", self.name()), None)
            }
            ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                ("a command is missing".to_owned(), None)
            }
            ErrorKind::InvalidValue if value.is_empty() => {
                (format!("{argument} needs a value"), None)
            }
            ErrorKind::InvalidValue => {
                let known = self.texts(ValidValue).join(", ");
                let problem = format!("{argument}: \"{value}\" is none of {known}");
                (problem, meant(SuggestedValue))
            }
            ErrorKind::ValueValidation => {
                let why = match std::error::Error::source(self.error) {
                    Some(error) if error.is::<ParseIntError>() => "not a whole number".to_owned(),
                    Some(error) => error.to_string(),
                    None => "not valid".to_owned(),
                };
                (format!("{argument}: \"{value}\" is {why}"), None)
            }
            ErrorKind::ArgumentConflict => {
                let other = self.text(PriorArg);
                let problem = match other == argument {
                    true => format!("{argument} may be given once only"),
                    false => format!("{argument} and {other} cannot be used together"),
                };
                (problem, None)
            }
            ErrorKind::InvalidUtf8 => {
                ("a word of the command line is not UTF-8 text".to_owned(), None)
            }
            _ => {
                let told = self.error.to_string();
                let first = told.lines().next().unwrap_or_default();
                (first.trim_start_matches("error: ").to_owned(), None)
            }
        };
        (problem, hint.into_iter().collect())
    }

    /// Returns the name of the command in backticks, such as "`lock acquire`", or "`gpuctl`".
    fn name(&self) -> String {
        format!("`{}`", if self.command.is_empty() { "gpuctl" } else { &self.command })
    }

    /// Describes a word or an option that the command does not take, with hints if it is known what
    /// was meant.
    fn unknown(&self, word: &str, words: &[String]) -> (String, Vec<String>) {
        let name = self.name();
        let own = words.iter().take_while(|own| *own != "--");
        if word.starts_with('-') && own.into_iter().any(|own| own.starts_with(word)) {
            let nearest = self.texts(ContextKind::SuggestedArg);
            let hint = nearest.first().map(|nearest| format!("did you mean \"{nearest}\"?"));
            return (format!("{name} has no option {word}"), hint.into_iter().collect());
        }
        let place = words.iter().rposition(|own| own == word);
        match (self.command.as_str(), place) {
            ("run", Some(place)) => {
                let more = if place + 1 < words.len() { " …" } else { "" };
                let own = words[1.min(place)..place].join(" ");
                (
                    "the command that is to run has to follow \"--\"".to_owned(),
                    vec![format!("write: gpuctl {own} -- {word}{more}")],
                )
            }
            ("status", _) => (
                format!(
                    "`status` shows all services and takes no name; \"{word}\" is one word too many"
                ),
                vec![
                    format!("whether it is ready, by the exit code: gpuctl status --check {word}"),
                    format!("its log: gpuctl logs {word}"),
                ],
            ),
            _ => (format!("{name} takes no more words; \"{word}\" is one too many"), Vec::new()),
        }
    }
}

/// Returns the name of the command that `words` call, such as "config init". Empty if they name
/// none.
fn called(words: &[String]) -> String {
    let (mut command, mut names) = (Cli::command(), Vec::new());
    for word in words.iter().skip(1).take_while(|word| *word != "--") {
        if let Some(below) = command.find_subcommand(word).cloned() {
            (command, names) = (below, [names, vec![word.as_str()]].concat());
        }
    }
    names.join(" ")
}
