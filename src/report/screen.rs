//! Where text goes: how wide it may be, and whether it may have colour.

use crate::config::Environment;
use anstyle::{AnsiColor, Style};
use rustix::fd::AsFd;
use rustix::termios::{isatty, tcgetwinsize};
use std::fmt::Display;

/// In a file or a pipe.
const PLAIN_WIDTH: usize = 100;

/// What a stream is connected to.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// It obeys movements of the cursor.
    pub is_terminal: bool,
    /// In columns.
    pub width: usize,
    pub has_colour: bool,
}

impl Screen {
    /// Colour on a terminal, unless `NO_COLOR` is set or it is a dumb one; elsewhere only where
    /// `CLICOLOR_FORCE` asks for it.
    pub fn of(stream: impl AsFd, environment: &Environment) -> Screen {
        let is_wired = isatty(&stream);
        let is_terminal = is_wired && environment.get("TERM").is_some_and(|term| term != "dumb");
        let is_set = |name| environment.get(name).is_some_and(|value| value != "0");
        let columns = || tcgetwinsize(&stream).ok().map(|size| usize::from(size.ws_col));
        let told = is_wired.then(columns).flatten().filter(|columns| *columns > 0);
        let asked = || environment.get("COLUMNS")?.parse().ok();
        Screen {
            is_terminal,
            width: told.or_else(asked).unwrap_or(PLAIN_WIDTH),
            has_colour: environment.get("NO_COLOR").is_none()
                && (is_terminal || is_set("CLICOLOR_FORCE")),
        }
    }

    /// The text in this style, or as it is.
    pub fn paint(&self, style: Style, text: impl Display) -> String {
        match self.has_colour {
            true => format!("{style}{text}{style:#}"),
            false => text.to_string(),
        }
    }
}

/// The styles in use: the terminal's own sixteen colours, which its owner chose to be legible.
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const WARNING: Style = AnsiColor::Yellow.on_default();
pub const BAD: Style = AnsiColor::Red.on_default();
pub const STRONG: Style = Style::new().bold();
pub const FAINT: Style = Style::new().dimmed();
