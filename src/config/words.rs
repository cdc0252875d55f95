//! Translates serde's messages about keys and values that it cannot accept into plain words for the
//! author of the file, with hints at what to write instead.

use crate::model::nearest;

/// Maximum number of keys that a hint lists if none of them resembles the one that was written.
const MOST_KEYS: usize = 24;

/// A problem with a key or value in plain words, with hints at what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub problem: String,
    pub hints: Vec<String>,
    /// The problem without the value that was written, if `problem` contains one.
    private: Option<String>,
}

impl Told {
    fn new(problem: impl Into<String>) -> Told {
        Told { problem: problem.into(), hints: Vec::new(), private: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Told {
        self.hints.push(hint.into());
        self
    }

    /// Returns the problem without the value that was written, and without hints that might contain
    /// it.
    pub fn without_value(self) -> Told {
        match self.private {
            Some(problem) => Told::new(problem),
            None => self,
        }
    }
}

/// Translates a message of serde. A message of any other form, such as a parser's about the syntax,
/// is passed on as it is.
pub fn told(message: &str) -> Told {
    let message = message.trim();
    let of = |kind: &str| message.strip_prefix(kind);
    if let Some(rest) = of("unknown field ").or_else(|| of("unknown variant ")) {
        return unknown(rest, message.starts_with("unknown field"));
    }
    if let Some(rest) = of("missing field ") {
        return missing(rest.trim_matches('`'));
    }
    if let Some(rest) = of("duplicate field ") {
        return Told::new(format!("the key {rest} stands here twice"));
    }
    let wrong = of("invalid type: ").or_else(|| of("invalid value: "));
    match wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => unexpected(found, expected),
        None => Told::new(message),
    }
}

/// Translates the rest of a message about an unknown key or value, such as "`a`, expected one of
/// `b`, `c`", "`a`, expected `b`" or "`a`, there are no fields".
fn unknown(rest: &str, is_key: bool) -> Told {
    let mut quoted = rest.split('`').skip(1).step_by(2);
    let word = quoted.next().unwrap_or_default();
    let known: Vec<&str> = quoted.collect();
    let listed = match known.split_last() {
        Some((last, [])) => format!("\"{last}\""),
        Some((last, others)) => format!("\"{}\" or \"{last}\"", others.join("\", \"")),
        None => "nothing".to_owned(),
    };
    let told = match is_key {
        true => Told::new("there is no such key"),
        false => Told::new(format!("must be {listed}, not \"{word}\"")),
    };
    match nearest(word, known.iter().copied()) {
        Some(nearest) => told.hint(format!("did you mean `{nearest}`?")),
        None if is_key => told
            .hint(format!("the keys here are {}", known[..known.len().min(MOST_KEYS)].join(", "))),
        None => told,
    }
}

fn missing(key: &str) -> Told {
    let told = Told::new(format!("the key `{key}` is missing"));
    match key {
        "type" => told.hint("write type = \"native\" for a command that gpuctl runs itself, \"docker\" for a container, \"compose\" for a project's, \"systemd\" for a unit"),
        "vram_mb" => told.hint(
            "write vram_mb = with the most memory that it needs, such as 20000; `gpuctl status` shows what is in use now",
        ),
        _ => told,
    }
}

/// Translates a message about a value of the wrong type, such as "integer `4`" if "a sequence" was
/// expected.
fn unexpected(found: &str, expected: &str) -> Told {
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let plain = value.trim_matches('`');
    let shown = match kind {
        "integer" => format!("the number {plain}"),
        "floating" => format!("the number {}", plain.trim_start_matches("point `")),
        "string" => format!("the text {value}"),
        "boolean" => plain.to_owned(),
        "sequence" => "a list".to_owned(),
        "map" => "a table".to_owned(),
        "unit" | "null" | "Option" => "null".to_owned(),
        _ => found.to_owned(),
    };
    let wanted = match expected {
        "a sequence" => "a list",
        "a map" | "a table of keys" => "a table",
        "a string" | "a borrowed string" => "text",
        "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or higher",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        other => other,
    };
    let told = Told {
        problem: format!("must be {wanted}, not {shown}"),
        hints: Vec::new(),
        private: Some(format!("must be {wanted}")),
    };
    let is_number = matches!(kind, "integer" | "floating");
    let unquoted = value.trim_matches('"');
    match wanted {
        "a list" if is_number => told.hint(format!("write [{plain}]")),
        "a list" if kind == "string" => told.hint(format!("write [{value}]")),
        "text" if is_number || kind == "boolean" => told.hint(format!("write \"{plain}\"")),
        "true or false" if matches!(unquoted, "true" | "false") => {
            told.hint(format!("write {unquoted}"))
        }
        _ if wanted.starts_with("a whole number")
            && unquoted.parse::<i64>().is_ok()
            && kind == "string" =>
        {
            told.hint(format!("write {unquoted}"))
        }
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_serdes_is_told_in_plain_words_with_what_to_write() {
        for (message, problem, hint) in [
            (
                "invalid type: integer `4`, expected a sequence",
                "must be a list, not the number 4",
                "write [4]",
            ),
            (
                "invalid type: string \"video\", expected a sequence",
                "must be a list, not the text \"video\"",
                "write [\"video\"]",
            ),
            (
                "invalid type: integer `4`, expected a string",
                "must be text, not the number 4",
                "write \"4\"",
            ),
            (
                "invalid type: string \"0\", expected u32",
                "must be a whole number, 0 or higher, not the text \"0\"",
                "write 0",
            ),
            (
                "invalid type: string \"true\", expected a boolean",
                "must be true or false, not the text \"true\"",
                "write true",
            ),
            ("invalid type: sequence, expected a table of keys", "must be a table, not a list", ""),
            (
                "invalid type: floating point `1.5`, expected u32",
                "must be a whole number, 0 or higher, not the number 1.5",
                "",
            ),
            (
                "unknown field `priorty`, expected `priority` or `phases`",
                "there is no such key",
                "did you mean `priority`?",
            ),
            (
                "unknown field `qqq`, expected one of `a`, `b`",
                "there is no such key",
                "the keys here are a, b",
            ),
            (
                "unknown variant `dokcer`, expected one of `native`, `docker`, `systemd`",
                "must be \"native\", \"docker\" or \"systemd\", not \"dokcer\"",
                "did you mean `docker`?",
            ),
            ("missing field `start`", "the key `start` is missing", ""),
            ("duplicate field `gpu`", "the key `gpu` stands here twice", ""),
            ("EOF while parsing an object", "EOF while parsing an object", ""),
        ] {
            let told = told(message);
            assert_eq!(
                (told.problem.as_str(), told.hints.join("\n").as_str()),
                (problem, hint),
                "{message}"
            );
        }
    }

    #[test]
    fn a_value_that_is_nobodys_business_is_left_out() {
        let told = told("invalid type: integer `12345`, expected a string").without_value();
        assert_eq!(told, Told::new("must be text"));
    }
}
