//! The display of `status --watch`. On a terminal each status is drawn over the one before, on the
//! alternate screen, so that the earlier contents come back. Each is drawn in one write that clears
//! nothing without drawing it again at once. Elsewhere the statuses are printed one after another.

use super::{Form, Report, StatusReport, print_part};
use crate::config::Span;
use crate::error::{Failure, Result};
use crate::screen::layout::{HANGING, Text, flow, listed};
use crate::screen::{FAINT, Screen, WARNING};
use crate::world::terminal::Keys;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fd::BorrowedFd;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Escape sequences that switch to an empty alternate screen, hide the cursor, and make the
/// terminal cut long lines instead of wrapping them.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Escape sequences that move the cursor to the top left and make a terminal that supports it show
/// nothing new until `END`.
const BEGIN: &str = "\x1b[?2026h\x1b[H";
const END: &str = "\x1b[J\x1b[?2026l";
const CLEAR_REST: &str = "\x1b[K";

/// How late the next status may be before the display shows the age of the last one.
const GRACE: Duration = Duration::from_secs(1);

/// The key that ends `status --watch`.
const QUIT: u8 = b'q';

/// Shows one status after another, drawn on a terminal or printed as text or lines of JSON.
pub struct Display {
    form: Form,
    every: Duration,
    page: Option<AlternateScreen>,
    last: Option<Seen>,
}

struct Seen {
    report: StatusReport,
    at: Timestamp,
    since: Instant,
}

/// One line of JSON: a status and the time at which it was taken.
#[derive(Serialize)]
struct Sample<'a> {
    time: String,
    #[serde(flatten)]
    report: &'a StatusReport,
}

impl Display {
    /// Opens the display. On a terminal that can be drawn on, this switches to the alternate
    /// screen.
    pub fn open(form: Form, every: Duration) -> Result<Display> {
        let page = match &form {
            Form::Text(screen) if screen.has_cursor => Some(AlternateScreen::enter()?),
            _ => None,
        };
        Ok(Display { form, every, page, last: None })
    }

    /// Shows a new status, which was taken at the time `at`. Returns false if the reader has gone
    /// away.
    pub fn show(&mut self, report: StatusReport, at: Timestamp) -> Result<bool> {
        let is_first = self.last.is_none();
        let seen = self.last.insert(Seen { report, at, since: Instant::now() });
        match &self.form {
            Form::Json | Form::Http(_) => {
                let time = at.strftime("%FT%TZ").to_string();
                let sample = Sample { time, report: &seen.report };
                print_part(&format!("{}\n", serde_json::to_string(&sample).map_err(Failure::bug)?))
            }
            Form::Text(screen) if self.page.is_none() => {
                let gap = if is_first { "" } else { "\n" };
                let time = at.to_zoned(TimeZone::system()).strftime("%F %T %:z");
                print_part(&format!("{gap}{time}\n{}", seen.report.text(screen)))
            }
            Form::Text(_) => self.draw_again(),
        }
    }

    /// Draws the last status again, because the terminal may have been resized and the status has
    /// grown older. Does nothing if statuses are printed, not drawn. Returns false if the reader
    /// has gone away.
    pub fn draw_again(&self) -> Result<bool> {
        let (Form::Text(screen), Some(page)) = (&self.form, &self.page) else { return Ok(true) };
        let screen = screen.measured_again(rustix::stdio::stdout());
        // The last column stays empty. If a line reached it, clearing the rest of that line would
        // erase its last character.
        let screen = Screen { width: screen.width.saturating_sub(1).max(1), ..screen };
        let Some(seen) = &self.last else { return draw("looking...", &screen) };
        let time = seen.at.to_zoned(TimeZone::system()).strftime("%F %T").to_string();
        let mut heading = vec![
            Text::styled(FAINT, time),
            Text::styled(FAINT, format!("every {}", Span(self.every))),
            Text::styled(FAINT, if page.keys.is_some() { "q ends" } else { "Ctrl-C ends" }),
        ];
        let age = seen.since.elapsed();
        if age > self.every + GRACE {
            let late = format!("{} old: something is not answering", Span::seconds(age.as_secs()));
            heading.insert(1, Text::styled(WARNING, late));
        }
        let heading = flow(listed(heading), 1, HANGING, &screen);
        let room = screen.height.unwrap_or(usize::MAX).saturating_sub(heading.lines().count());
        draw(&format!("{heading}{}", seen.report.fitted(&screen, room)), &screen)
    }

    /// Returns the descriptor that becomes readable when a key is pressed, or `None` if the display
    /// reads no keys or gpuctl is in the background.
    pub fn keys(&self) -> Option<BorrowedFd<'static>> {
        self.page.as_ref()?.keys.as_ref()?.fd()
    }

    /// Reports whether the key that ends `status --watch` was pressed.
    pub fn is_quit(&self) -> bool {
        let keys = self.page.as_ref().and_then(|page| page.keys.as_ref());
        keys.is_some_and(|keys| keys.have(QUIT))
    }

    /// Gives the terminal back while `stopped` runs, which suspends gpuctl until it is continued,
    /// and takes it again afterwards.
    pub fn step_aside(&mut self, stopped: impl FnOnce()) -> Result<()> {
        let had_page = self.page.take().is_some();
        stopped();
        if had_page {
            self.page = Some(AlternateScreen::enter()?);
        }
        Ok(())
    }
}

fn draw(text: &str, screen: &Screen) -> Result<bool> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let height = screen.height.unwrap_or(usize::MAX);
    if lines.len() > height {
        let left = lines.len() - (height - 1);
        let note = Text::styled(WARNING, format!("{left} more lines: the window is too small"));
        lines.truncate(height - 1);
        lines.push(note.cut(screen.width, screen).on(screen));
    }
    let lines: Vec<String> = lines.iter().map(|line| format!("{line}{CLEAR_REST}")).collect();
    print_part(&format!("{BEGIN}{}{END}", lines.join("\n")))
}

/// The terminal's alternate screen and, if gpuctl may read them, its keys. Both are given back when
/// this is dropped.
struct AlternateScreen {
    keys: Option<Keys>,
}

impl AlternateScreen {
    fn enter() -> Result<AlternateScreen> {
        print_part(ENTER)?;
        Ok(AlternateScreen { keys: Keys::take() })
    }
}

impl Drop for AlternateScreen {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to put back.
        let _ = print_part(LEAVE);
    }
}
