//! Text laid out in the columns of a screen: it can be styled, counts wide characters as such, and
//! is cut or wrapped if it does not fit. Nothing in it can move the cursor.

use super::Screen;
use super::text::on_one_line;
use anstyle::Style;
use unicode_width::UnicodeWidthChar;

/// Columns in which the lines of a text begin: the first line, and all lines after it.
pub type Indents = [usize; 2];

/// Indents of ordinary text: the first line begins at the left edge, and the lines after it are
/// indented.
pub const HANGING: Indents = [0, 2];

/// A piece of a line, which may have several styles. Its control characters are escaped.
#[derive(Clone, Default)]
pub struct Text {
    spans: Vec<(Style, String)>,
}

impl Text {
    pub fn new(text: impl AsRef<str>) -> Text {
        Text::styled(Style::new(), text)
    }

    pub fn styled(style: Style, text: impl AsRef<str>) -> Text {
        Text { spans: vec![(style, on_one_line(text.as_ref()))] }
    }

    /// Returns the text with unstyled text appended.
    pub fn then(self, text: impl AsRef<str>) -> Text {
        self.then_styled(Style::new(), text)
    }

    /// Returns the text with text in this style appended.
    pub fn then_styled(mut self, style: Style, text: impl AsRef<str>) -> Text {
        self.spans.push((style, on_one_line(text.as_ref())));
        self
    }

    /// Returns the width in columns.
    pub fn width(&self) -> usize {
        self.spans.iter().flat_map(|(_, text)| text.chars()).map(columns).sum()
    }

    /// Returns the text as it is printed on this screen.
    pub fn on(&self, screen: &Screen) -> String {
        let spans = self.spans.iter().filter(|(_, text)| !text.is_empty());
        spans.map(|(style, text)| screen.paint(*style, text)).collect()
    }

    /// Splits the text into the part that fits into `left` columns and the rest.
    fn split(&self, mut left: usize) -> (Text, Text) {
        let (mut head, mut tail) = (Text::default(), Text::default());
        for (style, text) in &self.spans {
            let mut end = 0;
            for (start, c) in text.char_indices() {
                if columns(c) > left {
                    // A narrower character further on must not slip in.
                    left = 0;
                    break;
                }
                left -= columns(c);
                end = start + c.len_utf8();
            }
            head.spans.push((*style, text[..end].to_owned()));
            tail.spans.push((*style, text[end..].to_owned()));
        }
        (head, tail)
    }

    /// Splits the text at the last space that leaves a head of at most `left` columns, so that no
    /// word is cut in two. Without such a space it splits within a word.
    fn split_at_word(&self, left: usize) -> (Text, Text) {
        let mut column = 0;
        let columns = self.spans.iter().flat_map(|(_, text)| text.chars()).map(|c| {
            let before = column;
            column += columns(c);
            (before, c)
        });
        let space = columns.filter(|(at, c)| *c == ' ' && (1..=left).contains(at)).last();
        match space {
            Some((at, _)) => {
                let (head, tail) = self.split(at);
                (head, tail.split(1).1)
            }
            None => self.split(left),
        }
    }

    /// Returns the text cut to a number of columns. If anything was cut off, an ellipsis (or `~`)
    /// is its last character.
    pub fn cut(&self, columns: usize, screen: &Screen) -> Text {
        if self.width() <= columns {
            return self.clone();
        }
        let more = if screen.has_unicode { "…" } else { "~" };
        self.split(columns.saturating_sub(1)).0.then(more)
    }
}

/// Returns the width of a character on its own, in columns. Terminals differ in what they make of
/// several characters that combine.
fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// Splits a text into words, as pieces for `flow`.
pub fn words(text: &str) -> impl Iterator<Item = Text> {
    text.split_whitespace().map(Text::new)
}

/// Turns facts into the pieces of a list for `flow`, with a comma after each but the last.
pub fn listed(mut facts: Vec<Text>) -> Vec<Text> {
    if let Some(last) = facts.pop() {
        facts = facts.into_iter().map(|fact| fact.then(",")).collect();
        facts.push(last);
    }
    facts
}

/// Wraps each line of a text between its words if it is printed on a terminal. In a file or a pipe
/// the lines stay as they are, whatever `COLUMNS` says, because scripts rely on them.
pub fn prose(text: &str, screen: &Screen) -> String {
    let wrapped = |line: &str| {
        let words = line.trim_start_matches(' ');
        let indent = line.len() - words.len();
        flow([Text::new(words)], 1, HANGING.map(|column| column + indent), screen)
    };
    let plain = |line: &str| format!("{line}\n");
    text.lines().map(|line| if screen.is_terminal { wrapped(line) } else { plain(line) }).collect()
}

/// Lays pieces out on as many lines as they need, with `gap` columns between them. A piece that is
/// wider than a line is split.
pub fn flow(
    pieces: impl IntoIterator<Item = Text>,
    gap: usize,
    [first, rest]: Indents,
    screen: &Screen,
) -> String {
    // Each line has room for at least one wide character after its indentation.
    let limit = screen.limit().max(first.max(rest) + 2);
    let mut text = " ".repeat(first);
    let (mut column, mut is_first) = (first, true);
    for mut piece in pieces {
        if !is_first && column + gap + piece.width() > limit {
            text.push_str(&format!("\n{}", " ".repeat(rest)));
            column = rest;
        } else if !is_first {
            text.push_str(&" ".repeat(gap));
            column += gap;
        }
        while column + piece.width() > limit {
            let (head, tail) = piece.split_at_word(limit - column);
            text.push_str(&format!("{}\n{}", head.on(screen), " ".repeat(rest)));
            (column, piece) = (rest, tail);
        }
        text.push_str(&piece.on(screen));
        column += piece.width();
        is_first = false;
    }
    text.push('\n');
    text
}
