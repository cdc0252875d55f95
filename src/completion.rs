//! What a shell may offer at the end of a command line, by the clap types and the names in the
//! configuration, which is the only file that is read. clap_complete's engine is not used, since it
//! knows neither what contradicts the words before, nor the file that `--config` names, nor a
//! command after `--`.

use crate::arguments::{exclude, is_list, may_do_without, takes_value};
use crate::config::{Bound, Config, Environment, Selector};
use crate::model::Service;
use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command, ValueHint};
use std::path::Path;

/// What may come next on the command line.
pub enum Offer {
    Values(Vec<Suggestion>),
    /// Any path; the shell knows how to offer paths.
    Files,
    /// A command line of its own, after `--`.
    Command,
}

/// A value that a shell offers.
pub struct Suggestion {
    pub value: String,
    /// What the value is, in a few words.
    pub about: String,
}

impl Suggestion {
    fn new(value: impl Into<String>, about: impl Into<String>) -> Suggestion {
        Suggestion { value: value.into(), about: about.into() }
    }
}

/// Returns what may stand at the cursor. `words` are the command line up to there, the program's
/// name first, the word that is being typed last.
pub fn offer(mut root: Command, words: &[String], environment: &Environment) -> Offer {
    root.build();
    let Some((word, before)) = words.split_last() else { return Offer::Values(Vec::new()) };
    let line = Line::read(&root, before);
    let is_option = word.starts_with('-') && !line.is_escaped;
    let assigned = word.split_once('=').filter(|_| is_option);
    let assigned = assigned.and_then(|(name, _)| Some((format!("{name}="), line.option(name)?)));
    // A word that begins with `-` ends a list, or follows an option whose value was left out.
    let next = line.awaiting.filter(|option| !(is_option && line.has(option)));
    let (prefix, argument) = match (next, assigned) {
        (None, Some((prefix, option))) => (prefix, Some(option)),
        (next, _) => (String::new(), next),
    };
    let offer = match argument {
        Some(argument) => line.values(argument, environment),
        None if is_option => Offer::Values(line.options()),
        None => line.next(environment),
    };
    let Offer::Values(mut candidates) = offer else { return offer };
    if candidates.is_empty() && word.is_empty() && argument.is_none() && !line.is_escaped {
        candidates = line.options();
    }
    for candidate in &mut candidates {
        candidate.value.insert_str(0, &prefix);
    }
    let can_be_typed = |value: &str| !value.contains(char::is_control);
    candidates.retain(|candidate| {
        candidate.value.starts_with(word.as_str()) && can_be_typed(&candidate.value)
    });
    Offer::Values(candidates)
}

/// The command line before the cursor, as far as it can be understood.
struct Line<'a> {
    command: &'a Command,
    /// The arguments with their values, in the order in which they were typed.
    arguments: Vec<(&'a Arg, &'a str)>,
    /// The option whose value comes next.
    awaiting: Option<&'a Arg>,
    /// Whether the word at the cursor stands after `--`.
    is_escaped: bool,
}

impl<'a> Line<'a> {
    fn read(root: &'a Command, words: &'a [String]) -> Line<'a> {
        let mut line =
            Line { command: root, arguments: Vec::new(), awaiting: None, is_escaped: false };
        for word in words.iter().skip(1) {
            line.take(word);
        }
        line
    }

    fn take(&mut self, word: &'a str) {
        let is_option = !self.is_escaped && word.len() > 1 && word.starts_with('-');
        match self.awaiting {
            Some(option) if !is_option => {
                self.arguments.push((option, word));
                self.awaiting = is_list(option).then_some(option);
            }
            _ if self.is_escaped => self.take_positional(word),
            _ if word == "--" => (self.is_escaped, self.awaiting) = (true, None),
            _ if is_option => {
                let (name, value) = word.split_once('=').unwrap_or((word, ""));
                let option = self.option(name);
                self.awaiting = option.filter(|option| takes_value(option) && name == word);
                let is_complete = |option: &&Arg| self.awaiting.is_none() || may_do_without(option);
                self.arguments.extend(option.filter(is_complete).map(|option| (option, value)));
            }
            _ => match self.command.find_subcommand(word) {
                Some(command) => self.command = command,
                None => self.take_positional(word),
            },
        }
    }

    fn take_positional(&mut self, word: &'a str) {
        self.arguments.extend(self.positional().map(|argument| (argument, word)));
    }

    /// Finds the option `--name`, or the one of the last letter in `-abc`.
    fn option(&self, name: &str) -> Option<&'a Arg> {
        let command: &'a Command = self.command;
        command.get_arguments().find(|argument| match name.strip_prefix("--") {
            Some(long) => argument.get_long() == Some(long),
            None => argument.get_short().is_some_and(|short| name.ends_with(short)),
        })
    }

    /// Returns the positional argument whose turn it is.
    fn positional(&self) -> Option<&'a Arg> {
        let command: &'a Command = self.command;
        let open =
            |argument: &&Arg| (is_list(argument) || !self.has(argument)) && self.suits(argument);
        let last = command.get_positionals().find(|argument| argument.is_last_set());
        last.filter(|_| self.is_escaped).or_else(|| command.get_positionals().find(open))
    }

    fn has(&self, argument: &Arg) -> bool {
        self.arguments.iter().any(|(typed, _)| typed.get_id() == argument.get_id())
    }

    /// Reports whether an argument does not contradict what was typed.
    fn suits(&self, argument: &Arg) -> bool {
        !self.arguments.iter().any(|(typed, _)| exclude(self.command, typed, argument))
    }

    /// Offers the commands, and the values of the positional argument whose turn it is.
    fn next(&self, environment: &Environment) -> Offer {
        let commands = self.command.get_subcommands().filter(|command| !command.is_hide_set());
        let mut candidates: Vec<Suggestion> = commands
            .map(|command| Suggestion::new(command.get_name(), about(command.get_about())))
            .collect();
        match self.positional().map(|argument| self.values(argument, environment)) {
            Some(Offer::Values(values)) => candidates.extend(values),
            Some(Offer::Command) if !self.is_escaped => {
                candidates.push(Suggestion::new("--", "the command follows"));
            }
            Some(other) => return other,
            None => {}
        }
        Offer::Values(candidates)
    }

    /// Offers the options that may still be given, the command's own before the global ones.
    fn options(&self) -> Vec<Suggestion> {
        let repeats =
            |argument: &Arg| matches!(argument.get_action(), ArgAction::Append | ArgAction::Count);
        let (global, own): (Vec<&Arg>, Vec<&Arg>) =
            self.command.get_arguments().partition(|argument| argument.is_global_set());
        own.into_iter()
            .chain(global)
            .filter(|argument| !argument.is_hide_set())
            .filter(|argument| (repeats(argument) || !self.has(argument)) && self.suits(argument))
            .filter_map(|argument| {
                let long = argument.get_long()?;
                Some(Suggestion::new(format!("--{long}"), about(argument.get_help())))
            })
            .collect()
    }

    /// Offers the values of an argument. Their kind is known by what the value is called in the
    /// help.
    fn values(&self, argument: &Arg, environment: &Environment) -> Offer {
        if argument.is_last_set() {
            return Offer::Command;
        }
        if matches!(argument.get_value_hint(), ValueHint::AnyPath) {
            return Offer::Files;
        }
        let possible = argument.get_possible_values();
        if !possible.is_empty() {
            let named = possible.iter().filter(|value| !value.is_hide_set());
            return Offer::Values(
                named
                    .map(|value| Suggestion::new(value.get_name(), about(value.get_help())))
                    .collect(),
            );
        }
        let name =
            argument.get_value_names().and_then(<[_]>::first).map_or("", |name| name.as_str());
        let names: fn(&Config) -> Vec<Suggestion> = match name {
            "SERVICE" | "SIZE|SERVICE" => services,
            "PHASE" => phases,
            "INDEX|UUID" => cards,
            "KEY=VALUE" => parameters,
            _ => return Offer::Values(Vec::new()),
        };
        // If the configuration is broken, there is nothing to offer, and no place to complain.
        let mut candidates = self.config(environment).as_ref().map(names).unwrap_or_default();
        candidates.retain(|candidate| {
            !self.arguments.iter().any(|(typed, value)| {
                typed.get_id() == argument.get_id() && *value == candidate.value
            })
        });
        Offer::Values(candidates)
    }

    fn config(&self, environment: &Environment) -> Option<Config> {
        let named = self.arguments.iter().find(|(argument, _)| argument.get_id() == "config");
        // `~` and variables are replaced here, since the shell has not replaced anything yet.
        let path = named.map(|(_, path)| environment.expand(path).unwrap_or((*path).to_owned()));
        Config::load(path.as_deref().map(Path::new), None, environment).ok()
    }
}

/// Returns a help text on one line, up to the default in it.
fn about(help: Option<&StyledStr>) -> String {
    let help = help.map(|help| help.to_string().replace('\n', " ")).unwrap_or_default();
    help.split(" [default").next().unwrap_or_default().to_owned()
}

fn services(config: &Config) -> Vec<Suggestion> {
    let about = |service: &Service| format!("{}, {}", service.manager.type_name(), service.vram);
    config.services.iter().map(|service| Suggestion::new(&service.name, about(service))).collect()
}

/// Offers the phases by name and by number.
fn phases(config: &Config) -> Vec<Suggestion> {
    let needs = |phase: u32| {
        let needed = config.services.iter().filter(|service| service.phases.contains(&phase));
        let needed: Vec<&str> = needed.map(|service| service.name.as_str()).collect();
        if needed.is_empty() { "no service".to_owned() } else { needed.join(", ") }
    };
    let named = config.phases.iter().filter_map(|(number, name)| {
        let name = name.as_ref()?;
        Some(Suggestion::new(name, format!("phase {number}: {}", needs(*number))))
    });
    let numbered = config.phases.iter().map(|(number, name)| {
        let name = name.as_deref().unwrap_or("phase");
        Suggestion::new(number.to_string(), format!("{name}: {}", needs(*number)))
    });
    named.chain(numbered).collect()
}

/// Offers the cards that the configuration names: to list all, the driver would have to be asked.
fn cards(config: &Config) -> Vec<Suggestion> {
    let about = match config.gpu.selector {
        Selector::Index(_) => "gpu.index",
        Selector::Uuid(_) => "gpu.uuid",
    };
    let mut cards = vec![Suggestion::new(config.gpu.selector.to_string(), about)];
    let spare = config.canary().ok().and_then(|canary| canary.spare_gpu);
    cards.extend(spare.map(|spare| Suggestion::new(spare.to_string(), "canary.spare_gpu")));
    cards
}

/// Offers the parameters of a candidate with their bounds.
fn parameters(config: &Config) -> Vec<Suggestion> {
    let bounds = config.canary().map(|canary| canary.bounds.iter());
    bounds
        .into_iter()
        .flatten()
        .flat_map(|(name, bound)| match bound {
            Bound::Range { min, max } => {
                vec![Suggestion::new(format!("{name}="), format!("{min} to {max}"))]
            }
            Bound::OneOf { one_of } => {
                one_of.iter().map(|value| Suggestion::new(format!("{name}={value}"), "")).collect()
            }
        })
        .collect()
}
