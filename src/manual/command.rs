//! The manual page of one command.

use super::facts::{self, Fact};
use super::roff::{Roff, bold, italic};
use super::{DATE, documented};
use crate::arguments::{exclude, is_list, may_do_without, takes_value};
use clap::builder::StyledStr;
use clap::{Arg, Command};

/// Returns in roff the page of the last command of `way`, which is the path to it from gpuctl
/// itself.
pub fn page(way: &[&Command]) -> String {
    let Some((command, above)) = way.split_last() else { return String::new() };
    let name = way.iter().map(|command| command.get_name()).collect::<Vec<_>>();
    let path = name[1..].join(" ");
    let mut page = Roff::new(&name.join("-"), 1, DATE);

    page.section("NAME");
    let about = command.get_about().map(StyledStr::to_string).unwrap_or_default();
    page.prose(&format!("{} - {}", name.join("-"), lower(&about)));

    page.section("SYNOPSIS");
    page.raw(&synopsis(&name.join(" "), command));

    page.section("DESCRIPTION");
    let about = command.get_long_about().or(command.get_about());
    let about = about.map(StyledStr::to_string).unwrap_or_default();
    page.prose(&sentence(&about));

    if documented(command).next().is_some() {
        page.section("COMMANDS");
        for below in documented(command) {
            let about = below.get_about().map(StyledStr::to_string).unwrap_or_default();
            page.item(&reference(&format!("{}-{}", name.join("-"), below.get_name()), 1), &about);
        }
    }
    options(&mut page, command);

    let concern = facts::concern(&path);
    page.section("EXIT STATUS");
    for (status, meaning) in concern.exit_statuses() {
        page.item(&bold(&status), &meaning);
    }
    for (heading, table) in [("ENVIRONMENT", facts::ENVIRONMENT), ("FILES", facts::FILES)] {
        page.section(heading);
        for Fact { names, text, .. } in table.iter().filter(|fact| concern.is_about(fact.topic)) {
            let names: Vec<String> = names.iter().map(|name| bold(name)).collect();
            page.item(&names.join(", "), text);
        }
    }
    if let Some(examples) = command.get_after_long_help() {
        page.section("EXAMPLES");
        let examples = examples.to_string();
        let lines = examples.lines().skip(1).map(|line| line.strip_prefix("  ").unwrap_or(line));
        page.code(&lines.collect::<Vec<_>>().join("\n"));
    }
    page.section("SEE ALSO");
    page.raw(&see_also(&name, above));
    page.finish()
}

/// Returns an about text with a lower-case first letter, as the NAME section has it.
fn lower(about: &str) -> String {
    let mut letters = about.chars();
    let first = letters.next().map(|first| first.to_lowercase().to_string()).unwrap_or_default();
    format!("{first}{}", letters.as_str())
}

/// Adds a full stop to the first paragraph, which is an about text without one.
fn sentence(text: &str) -> String {
    match text.split_once("\n\n") {
        Some((first, rest)) => format!("{first}.\n\n{rest}"),
        None => format!("{text}."),
    }
}

fn reference(name: &str, section: u8) -> String {
    format!("{}({section})", bold(name))
}

fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_own = |argument: &&Arg| {
        !argument.is_global_set()
            && !argument.is_hide_set()
            && !["help", "version"].contains(&argument.get_id().as_str())
    };
    command.get_arguments().filter(is_own)
}

fn synopsis(name: &str, command: &Command) -> String {
    let mut parts = vec![bold(name), format!("[{}]", italic("GLOBAL OPTION")) + "..."];
    let mut placed: Vec<&Arg> = Vec::new();
    // Options may stand first and positional arguments have to stand last, whatever the order of
    // their definition.
    let (positionals, options): (Vec<&Arg>, Vec<&Arg>) =
        own(command).partition(|argument| argument.is_positional());
    for argument in options.iter().chain(&positionals) {
        if placed.iter().any(|other| other.get_id() == argument.get_id()) {
            continue;
        }
        let is_alternative =
            |other: &&Arg| other.get_id() == argument.get_id() || exclude(command, argument, other);
        let alternatives: Vec<&Arg> = own(command).filter(is_alternative).collect();
        let forms: Vec<String> = alternatives.iter().map(|argument| form(argument)).collect();
        let forms = forms.join(" | ");
        let is_group_required = command.get_groups().any(|group| {
            group.is_required_set() && group.get_args().any(|id| id == argument.get_id())
        });
        parts.push(match argument.is_required_set() {
            true => forms,
            false if is_group_required => format!("{{{forms}}}"),
            false => format!("[{forms}]"),
        });
        placed.extend(alternatives);
    }
    if documented(command).next().is_some() {
        parts.push(format!("{} [{}]...", italic("COMMAND"), italic("ARGUMENT")));
    }
    parts.join("\n")
}

/// Returns an argument as it is typed: `--wait DUR`, `SERVICE...`.
fn form(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let names: Vec<String> = names.iter().map(|name| italic(name)).collect();
    let value = match names.join(" ") {
        _ if !takes_value(argument) => String::new(),
        name if is_list(argument) => format!("{name}..."),
        name if may_do_without(argument) => format!("[{name}]"),
        name => name,
    };
    let flag = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => {
            format!("{}, {}", bold(&format!("-{short}")), bold(&format!("--{long}")))
        }
        (Some(short), None) => bold(&format!("-{short}")),
        (None, Some(long)) => bold(&format!("--{long}")),
        (None, None) if argument.is_last_set() => bold("--"),
        (None, None) => String::new(),
    };
    format!("{flag} {value}").trim().to_owned()
}

fn options(page: &mut Roff, command: &Command) {
    let is_global = |argument: &&Arg| argument.is_global_set() && !argument.is_hide_set();
    let (positionals, options): (Vec<&Arg>, Vec<&Arg>) =
        own(command).partition(|argument| argument.is_positional());
    let global = command.get_arguments().filter(is_global).collect();
    let parts = [("ARGUMENTS", positionals), ("OPTIONS", options), ("GLOBAL OPTIONS", global)];
    for (heading, arguments) in parts.into_iter().filter(|(_, arguments)| !arguments.is_empty()) {
        page.section(heading);
        for argument in arguments {
            page.item(&form(argument), &explanation(argument));
        }
    }
}

/// Returns an argument's help text, with the values to choose from and the default.
fn explanation(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help());
    let mut text = help.map(StyledStr::to_string).unwrap_or_default();
    if !takes_value(argument) {
        return text;
    }
    let values = argument.get_possible_values();
    let values: Vec<String> = values
        .iter()
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({help})", value.get_name()),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !values.is_empty() {
        // The values go before the default, which stands in brackets.
        let at = text.find(" [").unwrap_or(text.len());
        text.insert_str(at, &format!(": {}", values.join(", ")));
    }
    if let [default] = argument.get_default_values() {
        text.push_str(&format!(" [default: {}]", default.to_string_lossy()));
    }
    text
}

/// Returns references to the pages of the command above, of the commands beside this one, and of
/// the configuration.
fn see_also(name: &[&str], above: &[&Command]) -> String {
    let mut pages = Vec::new();
    if let Some(parent) = above.last() {
        let parent_name = name[..name.len() - 1].join("-");
        pages.push(reference(&parent_name, 1));
        if above.len() > 1 {
            let beside = documented(parent).map(|command| command.get_name());
            let beside = beside.filter(|beside| Some(beside) != name.last());
            pages.extend(beside.map(|beside| reference(&format!("{parent_name}-{beside}"), 1)));
        }
    }
    pages.push(reference("gpuctl.toml", 5));
    pages.join(",\n")
}
