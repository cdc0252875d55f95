//! Writes a manual page in the macros of man(7), which groff and mandoc read alike.

/// A page that is being written. Text may hold `code` in backticks, which comes out bold.
pub struct Roff {
    text: String,
}

/// Longest line of source in bytes; longer ones are bad style to mandoc.
const WIDTH: usize = 78;

impl Roff {
    pub fn new(title: &str, section: u8, date: &str) -> Roff {
        let title = escaped(&title.to_uppercase());
        let version = env!("CARGO_PKG_VERSION");
        Roff {
            text: format!(
                ".\\\" Made by `gpuctl man`. Do not edit it.\n\
                 .TH {title} {section} {date} \"gpuctl {version}\" \"gpuctl manual\"\n\
                 .nh\n.ad l\n"
            ),
        }
    }

    pub fn section(&mut self, heading: &str) {
        self.text.push_str(&format!(".SH {}\n", escaped(heading)));
    }

    /// Adds a line of roff as it is.
    pub fn raw(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// Adds text that is filled; blank lines part its paragraphs.
    pub fn prose(&mut self, text: &str) {
        for (index, paragraph) in text.trim().split("\n\n").enumerate() {
            if index > 0 {
                self.raw(".PP");
            }
            self.fill(paragraph);
        }
    }

    /// Adds an entry of a list; `term` is roff already.
    pub fn item(&mut self, term: &str, text: &str) {
        self.raw(".TP");
        self.raw(term);
        self.fill(text);
    }

    /// Adds text that is shown as it is, line by line.
    pub fn code(&mut self, text: &str) {
        self.raw(".EX");
        for line in text.lines() {
            self.raw(&guarded(escaped(line)));
        }
        self.raw(".EE");
    }

    pub fn finish(self) -> String {
        self.text
    }

    fn fill(&mut self, text: &str) {
        let mut length = 0;
        for word in marked(text).split_whitespace() {
            // Each sentence begins a new line, as the tools for manuals like it.
            let is_end =
                self.text.ends_with('.') && length > 0 && word.starts_with(char::is_uppercase);
            if length > 0 && (is_end || length + 1 + word.len() > WIDTH) {
                self.text.push('\n');
                length = 0;
            } else if length > 0 {
                self.text.push(' ');
            }
            let word = guarded(word.to_owned());
            self.text.push_str(&word);
            length += 1 + word.len();
        }
        self.text.push('\n');
    }
}

pub fn bold(text: &str) -> String {
    format!("\\fB{}\\fP", escaped(text))
}

pub fn italic(text: &str) -> String {
    format!("\\fI{}\\fP", escaped(text))
}

/// Escapes text, and sets `code` in backticks in bold.
fn marked(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts.map(|(index, part)| if index % 2 == 1 { bold(part) } else { escaped(part) }).collect()
}

/// Keeps the beginning of a line from being taken for a roff request.
fn guarded(line: String) -> String {
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

/// Escapes text so that every character is shown as itself, wherever it stands.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\e"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '"' => escaped.push_str("\\(dq"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '`' => escaped.push_str("\\(ga"),
            c if c.is_ascii() => escaped.push(c),
            c => escaped.push_str(&format!("\\[u{:04X}]", c as u32)),
        }
    }
    escaped
}
