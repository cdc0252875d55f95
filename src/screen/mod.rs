//! Where text goes: how large it may be, and whether it may have colour and signs beyond ASCII.

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

/// Lines in a file or a pipe are this wide.
const PLAIN_WIDTH: usize = 100;

/// `COLUMNS` is believed in this range.
const PLAUSIBLE: RangeInclusive<usize> = 1..=1000;

/// It tells what a stream is connected to.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// The width in columns.
    pub width: usize,
    /// The height in lines, where a terminal tells it.
    pub height: Option<usize>,
    pub is_terminal: bool,
    /// Whether a line has to fit into the width; in a file or a pipe it may be longer.
    pub is_bounded: bool,
    pub has_colour: bool,
    pub has_unicode: bool,
    /// Whether it can be drawn on in any place.
    pub has_cursor: bool,
}

impl Screen {
    /// Colour on a terminal, unless `NO_COLOR` is set or it is a dumb one; elsewhere only where
    /// `CLICOLOR_FORCE` asks for it.
    pub fn of(stream: impl AsFd, environment: &Environment) -> Screen {
        let is_terminal = isatty(&stream);
        let is_set = |name| environment.get(name).is_some_and(|value| value != "0");
        let suits = is_terminal && environment.get("TERM").is_some_and(|term| term != "dumb");
        let (columns, lines) = if is_terminal { size(&stream) } else { (None, None) };
        // As `watch` has it, which reads us through a pipe.
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

    /// Measures the screen again, after the terminal may have been resized.
    pub fn measured_again(self, stream: impl AsFd) -> Screen {
        let (columns, lines) = size(stream);
        Screen { width: columns.unwrap_or(self.width), height: lines.or(self.height), ..self }
    }

    /// Returns how long a line may be.
    pub fn limit(&self) -> usize {
        if self.is_bounded { self.width } else { usize::MAX }
    }

    /// The text in this style, or as it is.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        match self.has_colour {
            true => format!("{style}{text}{style:#}"),
            false => text.to_string(),
        }
    }
}

/// Columns and lines, as far as the terminal tells.
fn size(stream: impl AsFd) -> (Option<usize>, Option<usize>) {
    let told = |cells: u16| Some(usize::from(cells)).filter(|cells| *cells > 0);
    tcgetwinsize(stream).map_or((None, None), |size| (told(size.ws_col), told(size.ws_row)))
}

/// The styles in use: the terminal's own sixteen colours, which its owner chose to be legible.
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const WARNING: Style = AnsiColor::Yellow.on_default();
pub const BAD: Style = AnsiColor::Red.on_default();
pub const STRONG: Style = Style::new().bold();
pub const FAINT: Style = Style::new().dimmed();
