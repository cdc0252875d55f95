//! What a person sees on a terminal of a certain size: its cells, after everything that was sent to
//! it.

use crate::rig::Rig;
use crate::terminal::Terminal;
use crate::wait::until;
use std::num::NonZero;

/// A call of gpuctl on a terminal of its own.
pub struct Display {
    pub terminal: Terminal,
    rows: u16,
    columns: u16,
}

impl Display {
    /// Starts gpuctl on a terminal of this many rows and columns. `variables` are added to its
    /// environment, as in `"NO_COLOR=1 TERM=xterm"`; unless they say otherwise, the terminal knows
    /// colours.
    pub fn start(rig: &Rig, (rows, columns): (u16, u16), variables: &str, words: &str) -> Display {
        let script = format!(
            "stty rows {rows} cols {columns}; env TERM=xterm-256color {variables} gpuctl {words}; echo code=$?.; exec sleep 1000"
        );
        let path = rig.file("home/on-terminal", &script);
        // The shell goes on after a Ctrl-C that gpuctl handles, and stays in the end: when the
        // leader of a session ends, the kernel throws away what has not been read.
        let terminal = rig.terminal(&format!("sh -c 'trap : INT; . {}'", path.display()));
        Display { terminal, rows, columns }
    }

    /// Runs gpuctl to its end on a terminal of its own; fails the test unless gpuctl succeeds.
    #[track_caller]
    pub fn finished(rig: &Rig, size: (u16, u16), variables: &str, words: &str) -> Display {
        let display = Display::start(rig, size, variables, words);
        display.terminal.shows("code=0.");
        display
    }

    /// Gives the terminal another size, as a window does.
    pub fn resize(&mut self, (rows, columns): (u16, u16)) {
        self.terminal.resize(rows, columns);
        (self.rows, self.columns) = (rows, columns);
    }

    /// Returns the screen that results from everything that was sent.
    pub fn emulated(&self) -> vt100::Parser {
        self.emulated_from(0)
    }

    /// Returns the screen that results from what was sent, starting at byte `begin` of the
    /// terminal's text.
    pub fn emulated_from(&self, begin: usize) -> vt100::Parser {
        let [rows, columns] = [self.rows, self.columns].map(|cells| NonZero::new(cells).unwrap());
        let mut parser = vt100::Parser::new(rows, columns, 0);
        parser.process(&self.terminal.text().as_bytes()[begin..]);
        parser
    }

    /// Returns the lines on the screen, without the empty ones at the end.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.emulated())
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        until(&format!("the screen has {text:?}"), || self.lines().join("\n").contains(text));
    }
}

/// Returns the lines on a screen, without trailing spaces and without the empty lines at the end.
pub fn lines(emulated: &vt100::Parser) -> Vec<String> {
    let screen = emulated.screen();
    let text = screen.contents();
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}
