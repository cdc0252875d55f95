//! Text in columns of a screen: parts of it styled, wide characters counted as such, cut or broken
//! where it does not fit. Nothing in it can move the cursor.

use super::Screen;
use super::text::on_one_line;
use anstyle::Style;
use unicode_width::UnicodeWidthChar;

/// A text's lines begin in these columns: the first one, and those that follow it.
pub type Indents = [usize; 2];

/// A text of the page, with what follows set in.
pub const HANGING: Indents = [0, 2];

/// A piece of a line.
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

    pub fn then(self, text: impl AsRef<str>) -> Text {
        self.then_styled(Style::new(), text)
    }

    pub fn then_styled(mut self, style: Style, text: impl AsRef<str>) -> Text {
        self.spans.push((style, on_one_line(text.as_ref())));
        self
    }

    /// The width in columns.
    pub fn width(&self) -> usize {
        self.spans.iter().flat_map(|(_, text)| text.chars()).map(columns).sum()
    }

    /// Returns the text as it is printed on that screen.
    pub fn on(&self, screen: &Screen) -> String {
        let spans = self.spans.iter().filter(|(_, text)| !text.is_empty());
        spans.map(|(style, text)| screen.paint(*style, text)).collect()
    }

    /// So much of it as fits into so many columns, and the rest.
    fn split(&self, mut left: usize) -> (Text, Text) {
        let (mut head, mut tail) = (Text::default(), Text::default());
        for (style, text) in &self.spans {
            let mut end = 0;
            for (start, c) in text.char_indices() {
                if columns(c) > left {
                    // Nothing narrower that follows may slip in.
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

    /// Splits it so that no word is in two, if there is a space before it.
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

    /// Cuts the text where it does not fit, with a sign at its end that there was more.
    pub fn cut(&self, columns: usize, screen: &Screen) -> Text {
        if self.width() <= columns {
            return self.clone();
        }
        let more = if screen.has_unicode { "…" } else { "~" };
        self.split(columns.saturating_sub(1)).0.then(more)
    }
}

/// Returns the columns of a character by itself: what terminals make of several that combine
/// differs.
fn columns(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// The words of a text, to flow.
pub fn words(text: &str) -> impl Iterator<Item = Text> {
    text.split_whitespace().map(Text::new)
}

/// Facts, to flow as a list.
pub fn listed(mut facts: Vec<Text>) -> Vec<Text> {
    if let Some(last) = facts.pop() {
        facts = facts.into_iter().map(|fact| fact.then(",")).collect();
        facts.push(last);
    }
    facts
}

/// Lines of sentences, each wrapped between its words where a person reads them on a terminal. In
/// a file or a pipe they stay as they are, whatever `COLUMNS` says: scripts count on their lines.
pub fn prose(text: &str, screen: &Screen) -> String {
    let wrapped = |line: &str| {
        let words = line.trim_start_matches(' ');
        let indent = line.len() - words.len();
        flow([Text::new(words)], 1, HANGING.map(|column| column + indent), screen)
    };
    let plain = |line: &str| format!("{line}\n");
    text.lines().map(|line| if screen.is_terminal { wrapped(line) } else { plain(line) }).collect()
}

/// Pieces with a gap between them, on as many lines as they need.
pub fn flow(
    pieces: impl IntoIterator<Item = Text>,
    gap: usize,
    [first, rest]: Indents,
    screen: &Screen,
) -> String {
    // At least one wide character beside the indentation.
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
