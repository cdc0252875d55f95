//! The screen that text is printed on: how large it is, and whether it takes colour and characters
//! beyond ASCII.

pub mod bar;
pub mod layout;
pub mod table;
pub mod text;

use crate::config::Environment;
use anstyle::{AnsiColor, Style};
use rustix::fd::AsFd;
use rustix::termios::{isatty, tcgetwinsize};
use std::fmt::Display;
use std::ops::RangeInclusive;

/// Width in columns if neither a terminal nor `COLUMNS` gives one, as in a file or a pipe.
const PLAIN_WIDTH: usize = 100;

/// Range in which the value of `COLUMNS` is believed; any other value is ignored.
const PLAUSIBLE: RangeInclusive<usize> = 1..=1000;

/// What a stream is connected to: a terminal, a file or a pipe, and what can be printed there.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// The width in columns.
    pub width: usize,
    /// The height in lines, or `None` if this is no terminal or the terminal does not report it.
    pub height: Option<usize>,
    pub is_terminal: bool,
    /// Whether a line has to fit into the width. In a file or a pipe it may be longer, unless
    /// `COLUMNS` is set.
    pub is_bounded: bool,
    pub has_colour: bool,
    pub has_unicode: bool,
    /// Whether the cursor can be moved, so that text can be drawn anywhere on the screen.
    pub has_cursor: bool,
}

impl Screen {
    /// Returns the screen that a stream is connected to. It has colour if it is a terminal whose
    /// `TERM` is set and not `dumb`, or if `CLICOLOR_FORCE` asks for it, unless `NO_COLOR` is set.
    pub fn of(stream: impl AsFd, environment: &Environment) -> Screen {
        let is_terminal = isatty(&stream);
        let is_set = |name| environment.get(name).is_some_and(|value| value != "0");
        let suits = is_terminal && environment.get("TERM").is_some_and(|term| term != "dumb");
        let (columns, lines) = if is_terminal { size(&stream) } else { (None, None) };
        // watch(1) sets `COLUMNS` and reads our output through a pipe.
        let asked = || {
            environment.get("COLUMNS")?.parse().ok().filter(|columns| PLAUSIBLE.contains(columns))
        };
        let width = columns.or_else(asked);
        Screen {
            width: width.unwrap_or(PLAIN_WIDTH),
            height: lines,
            is_terminal,
            is_bounded: is_terminal || width.is_some(),
            has_colour: environment.get("NO_COLOR").is_none()
                && (suits || is_set("CLICOLOR_FORCE")),
            has_unicode: environment.has_unicode(),
            has_cursor: suits,
        }
    }

    /// Returns the screen with its size measured again, after the terminal may have been resized.
    pub fn measured_again(self, stream: impl AsFd) -> Screen {
        let (columns, lines) = size(stream);
        Screen { width: columns.unwrap_or(self.width), height: lines.or(self.height), ..self }
    }

    /// Returns the width in columns that a line may have, or `usize::MAX` if there is no limit.
    pub fn limit(&self) -> usize {
        if self.is_bounded { self.width } else { usize::MAX }
    }

    /// Returns the text in this style, or unstyled if the screen has no colour.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        match self.has_colour {
            true => format!("{style}{text}{style:#}"),
            false => text.to_string(),
        }
    }
}

/// Returns the columns and lines of a terminal, each `None` if the terminal does not report it.
fn size(stream: impl AsFd) -> (Option<usize>, Option<usize>) {
    let told = |cells: u16| Some(usize::from(cells)).filter(|cells| *cells > 0);
    tcgetwinsize(stream).map_or((None, None), |size| (told(size.ws_col), told(size.ws_row)))
}

/// Style of what is well. All styles use the terminal's own sixteen colours, which its owner chose
/// to be legible.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Style of what deserves attention.
pub const WARNING: Style = AnsiColor::Yellow.on_default();
/// Style of what has failed.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Style of what is to stand out, such as a heading.
pub const STRONG: Style = Style::new().bold();
/// Style of what matters less than the text around it.
pub const FAINT: Style = Style::new().dimmed();
