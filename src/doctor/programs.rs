//! Finds the program that a shell command begins with, as far as its text shows that: only the
//! shell itself understands every command.

/// Words that only run the command that follows them.
const PREFIXES: [&str; 4] = ["exec", "nohup", "setsid", "env"];

/// Words that the shell carries out itself, separated by spaces.
const SHELL: &str = "! . : [ [[ ( { alias bg break case cd command continue echo eval exit export false fg for \
    function getopts hash if jobs kill local printf pwd read readonly return set shift source test time times trap \
    true type ulimit umask unalias unset until wait while";

/// Returns the first program of a command, or `None` if the text does not show it.
pub fn first(command: &str) -> Option<String> {
    let mut words = Words(command);
    loop {
        let word = words.next()??;
        let name = word.split_once('=').map(|(name, _)| name);
        let is_assignment = name.is_some_and(|name| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        });
        if is_assignment || word.starts_with('-') || PREFIXES.contains(&word.as_str()) {
            continue;
        }
        return (!SHELL.split_whitespace().any(|own| own == word)).then_some(word);
    }
}

/// Words of a command line up to the first operator, such as `;`. A word that the shell would
/// change, for example by replacing a variable, is `None`.
struct Words<'a>(&'a str);

impl Iterator for Words<'_> {
    type Item = Option<String>;

    fn next(&mut self) -> Option<Option<String>> {
        let text = self.0.trim_start();
        let mut word = String::new();
        let mut quote = None;
        for (at, c) in text.char_indices() {
            match (quote, c) {
                (Some(open), c) if c == open => quote = None,
                (None, '\'' | '"') => quote = Some(c),
                (None, c) if c.is_whitespace() || ";&|<>()".contains(c) => {
                    self.0 = &text[at..];
                    return (at > 0).then_some(Some(word));
                }
                (None | Some('"'), '$' | '`' | '\\') | (None, '*' | '?' | '~' | '#') => {
                    return Some(None);
                }
                (_, c) => word.push(c),
            }
        }
        self.0 = "";
        match quote {
            Some(_) => Some(None),
            None => (!text.is_empty()).then_some(Some(word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::first;

    #[test]
    fn the_program_of_a_command_is_told_where_the_text_tells_it() {
        for (command, program) in [
            ("/opt/start.sh", Some("/opt/start.sh")),
            ("  python3 -m vllm --port 8000", Some("python3")),
            ("exec nohup ./run >log 2>&1 &", Some("./run")),
            ("A=1 B='x y' env -i C=2 server --x", Some("server")),
            ("'/opt/my models/start' now", Some("/opt/my models/start")),
            ("server&", Some("server")),
            ("cd /opt && ./run", None),
            ("$HOME/run", None),
            ("\"$X\"", None),
            ("for x in 1 2; do run; done", None),
            ("(run)", None),
            ("'unended", None),
            ("", None),
        ] {
            assert_eq!(first(command).as_deref(), program, "{command:?}");
        }
    }
}
