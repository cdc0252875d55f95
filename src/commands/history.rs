//! `gpuctl history`: shows what earlier calls did.

use crate::cli::HistoryArgs;
use crate::config::Span;
use crate::error::Result;
use crate::exit::Answer;
use crate::history::read;
use crate::report::{HistoryReport, print};
use crate::session::{Session, no_duration};
use crate::world::host;

pub fn run(arguments: &HistoryArgs, session: &Session) -> Result<Answer> {
    let span = |text| Span::of_any_length(text).ok_or_else(|| no_duration("--since", text, ""));
    let since = arguments.since.as_deref().map(span).transpose()?;
    // If the time lies before any that can be expressed, every call is later.
    let oldest = since.and_then(|since| host::now().checked_sub(since.0).ok());
    let mut runs = read(session.config.state_dir()?)?;
    let earlier = runs.len();
    runs.retain(|run| oldest.is_none_or(|oldest| run.began >= oldest));
    runs.drain(..runs.len().saturating_sub(arguments.lines));
    let left_out = earlier - runs.len();
    print(&HistoryReport { runs, left_out }, &session.form)?;
    Ok(Answer::Yes)
}
