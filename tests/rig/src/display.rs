//! What a person sees on a terminal of a certain size: its cells, after all that was sent to it.

use crate::rig::Rig;
use crate::terminal::Terminal;
use crate::wait::until;
use std::num::NonZero;

/// gpuctl on a terminal of its own.
pub struct Display {
    pub terminal: Terminal,
    rows: u16,
    columns: u16,
}

impl Display {
    /// `variables`: `"NO_COLOR=1 TERM=xterm"`; the terminal is one that knows colours unless they say otherwise.
    pub fn start(rig: &Rig, (rows, columns): (u16, u16), variables: &str, words: &str) -> Display {
        let script = format!(
            "stty rows {rows} cols {columns}; env TERM=xterm-256color {variables} gpuctl {words}; echo code=$?.; exec sleep 1000"
        );
        let path = rig.file("home/on-terminal", &script);
        // The shell goes on after a Ctrl-C that gpuctl handles. In the end it stays: with the end of a session's leader the
        // kernel throws away what has not been read.
        let terminal = rig.terminal(&format!("sh -c 'trap : INT; . {}'", path.display()));
        Display { terminal, rows, columns }
    }

    /// Runs a command to its end, which is to be a success; gives what was sent.
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

    pub fn emulated(&self) -> vt100::Parser {
        self.emulated_from(0)
    }

    /// After what was sent from a place of its text on.
    pub fn emulated_from(&self, begin: usize) -> vt100::Parser {
        let [rows, columns] = [self.rows, self.columns].map(|cells| NonZero::new(cells).unwrap());
        let mut parser = vt100::Parser::new(rows, columns, 0);
        parser.process(&self.terminal.text().as_bytes()[begin..]);
        parser
    }

    /// Its lines, without those at the end that are empty.
    pub fn lines(&self) -> Vec<String> {
        lines(&self.emulated())
    }

    /// Waits until the screen has a text.
    #[track_caller]
    pub fn shows(&self, text: &str) {
        until(&format!("the screen has {text:?}"), || self.lines().join("\n").contains(text));
    }
}

pub fn lines(emulated: &vt100::Parser) -> Vec<String> {
    let screen = emulated.screen();
    let text = screen.contents();
    text.lines().map(|line| line.trim_end().to_owned()).collect()
}
