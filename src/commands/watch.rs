//! `gpuctl status --watch`: looks again and again. While a look takes long, the previous one stays
//! on the screen with its age.

use crate::error::{Failure, Result};
use crate::exit::Answer;
use crate::observe::Managers;
use crate::progress::Progress;
use crate::report::Display;
use crate::session::{Session, sight};
use crate::world::host;
use crate::world::job::stop_own_group;
use crate::world::nvml::Reader;
use crate::world::terminal::Terminal;
use crate::world::wait::{Aside, Woken, wait};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Interval at which the age of what is shown is updated while a look is under way.
const TICK: Duration = Duration::from_secs(1);

pub fn run(every: Duration, session: Session) -> Result<Answer> {
    let Session { config, stop, form, .. } = session;
    let reader = Arc::new(Mutex::new(Reader::open(&config.gpu)));
    let config = Arc::new(config);
    let begin = || {
        let (config, reader, stop) = (config.clone(), reader.clone(), stop.clone());
        Aside::begin(move || {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            // The screen belongs to the display, so nothing else may print there.
            sight(
                Managers::of_all(&config, &stop),
                &config,
                &mut reader,
                &stop,
                &Progress::silent(),
            )
        })
    };
    let terminal =
        Terminal::observed().map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
    let mut display = Display::open(form, every)?;
    let (mut looking, mut due) = (Some(begin()?), Instant::now() + every);
    loop {
        let ended = looking.as_ref().map(|look| look.ended().fd());
        let until = if ended.is_some() { Instant::now() + TICK } else { due };
        let watched: Vec<_> =
            [terminal.fd()].into_iter().chain(ended).chain(display.keys()).collect();
        let woken = wait(&watched, &stop, until);
        if let Err(signal) = stop.check() {
            // A signal is the usual end of a watch, not a failure.
            return Ok(Answer::Passed(signal.code.status()));
        }
        if display.is_quit() {
            return Ok(Answer::Yes);
        }
        if woken == Woken::TimedOut && looking.is_none() {
            (looking, due) = (Some(begin()?), Instant::now() + every);
            continue;
        }
        if terminal.is_taken_away() {
            display.step_aside(stop_own_group)?;
        }
        let is_read = match looking.as_ref().and_then(Aside::take) {
            Some(report) => {
                looking = None;
                display.show(report?, host::now())?
            }
            None => display.draw_again()?,
        };
        if !is_read {
            return Ok(Answer::Yes);
        }
    }
}
