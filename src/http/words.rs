//! Turns a request into the command line that it stands for: query parameters and the fields of a
//! JSON body are the command's options, by their own names.

use super::Rejection;
use super::endpoint::Endpoint;
use super::request::no_nul;
use crate::arguments::{is_list, takes_value};
use crate::cli::{Cli, mistake};
use crate::model::nearest;
use clap::{Arg, CommandFactory, Parser};
use serde_json::Value;

/// Returns the options and arguments that an endpoint's command takes besides those in the path,
/// without global ones and those that the endpoint leaves out.
pub fn parameters(endpoint: &Endpoint) -> Vec<Arg> {
    let mut command = Cli::command();
    command.build();
    let command = endpoint.command.iter().try_fold(&command, |it, word| it.find_subcommand(word));
    let in_path = endpoint.names().count();
    let Some(command) = command.filter(|_| !endpoint.command.is_empty()) else { return vec![] };
    let rest = command.get_positionals().skip(in_path);
    let is_meant = |argument: &&Arg| {
        let id = argument.get_id().as_str();
        !argument.is_global_set() && !["help", "version"].contains(&id)
    };
    let options = command.get_opts().chain(command.get_arguments().filter(|it| is_flag(it)));
    let mut all: Vec<Arg> = options.chain(rest).filter(is_meant).cloned().collect();
    all.retain(|argument| !endpoint.without.contains(&name(argument).as_str()));
    all
}

fn is_flag(argument: &Arg) -> bool {
    !argument.is_positional() && !takes_value(argument)
}

/// Returns the name of an option as a parameter, such as `dry_run`.
pub fn name(argument: &Arg) -> String {
    argument.get_long().unwrap_or(argument.get_id().as_str()).replace('-', "_")
}

/// Parses the command line of an endpoint from the arguments in the path and the parameters that
/// were given besides. Unknown and invalid ones are refused.
pub fn command(
    endpoint: &Endpoint,
    arguments: Vec<String>,
    given: Vec<(String, String)>,
) -> Result<Cli, Rejection> {
    let known = parameters(endpoint);
    let mut words = vec!["gpuctl".to_owned(), "--json".to_owned()];
    words.extend(endpoint.command.iter().map(|word| (*word).to_owned()));
    let mut last = arguments;
    for (key, value) in given {
        no_nul(&value)?;
        let key = key.replace('-', "_");
        let option = known.iter().find(|option| name(option) == key);
        let option = option.ok_or_else(|| unknown(&key, &known))?;
        match (option.get_long(), takes_value(option)) {
            (Some(long), true) => words.push(format!("--{long}={value}")),
            (Some(long), false) if is_yes(&key, &value)? => words.push(format!("--{long}")),
            (Some(_), false) => {}
            (None, _) => last.push(value),
        }
    }
    words.push("--".to_owned());
    words.extend(last);
    Cli::try_parse_from(&words).map_err(|error| Rejection {
        status: 400,
        allowed: None,
        failure: mistake(&error, &words),
    })
}

fn is_yes(key: &str, value: &str) -> Result<bool, Rejection> {
    match value.to_ascii_lowercase().as_str() {
        "" | "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Rejection::malformed(format!("{key} is \"{value}\", neither true nor false"))),
    }
}

fn unknown(key: &str, known: &[Arg]) -> Rejection {
    let names: Vec<String> = known.iter().map(name).collect();
    let rejection = Rejection::malformed(format!("there is no parameter \"{key}\" here"));
    match nearest(key, names.iter().map(String::as_str)) {
        Some(nearest) => rejection.hint(format!("did you mean \"{nearest}\"?")),
        None if names.is_empty() => rejection.hint("there is none at all"),
        None => rejection.hint(format!("its parameters: {}", names.join(", "))),
    }
}

/// Returns the fields of a body, which has to be a JSON object or empty, with their values as text.
pub fn fields(body: &[u8]) -> Result<Vec<(String, String)>, Rejection> {
    if body.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let wrong = || Rejection::malformed("its body is not a JSON object");
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Err(wrong()) };
    let mut given = Vec::new();
    for (name, value) in fields {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text,
            // JSON has only one kind of number, so 5.0 is 5.
            Value::Number(number) => number
                .as_f64()
                .filter(|whole| whole.fract() == 0.0)
                .map_or(number.to_string(), |whole| format!("{whole:.0}")),
            Value::Bool(yes) => yes.to_string(),
            _ => {
                let what = format!("{name} is neither text nor number, true or false");
                return Err(Rejection::malformed(what));
            }
        };
        given.push((name, text));
    }
    Ok(given)
}

/// Returns the JSON Schema of a parameter.
pub fn schema(argument: &Arg) -> Value {
    let value = serde_json::json!({"type": ["string", "integer"]});
    match (takes_value(argument), is_list(argument) || is_repeated(argument)) {
        (false, _) => serde_json::json!({"type": "boolean"}),
        (true, false) => value,
        (true, true) => serde_json::json!({"type": "array", "items": value}),
    }
}

fn is_repeated(argument: &Arg) -> bool {
    matches!(argument.get_action(), clap::ArgAction::Append)
}

/// Returns the description of a parameter, in the words of the command's help.
pub fn help(argument: &Arg) -> String {
    let names = argument.get_value_names().filter(|_| takes_value(argument));
    let names = names.into_iter().flatten().map(|name| name.to_string()).collect::<Vec<_>>();
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    match names.is_empty() {
        true => help,
        false => format!("{}: {help}", names.join(" ")),
    }
}
