//! `gpuctl history`: what earlier calls did.

use super::{Session, duration};
use crate::cli::History;
use crate::exit::Answer;
use crate::history::read;
use crate::report::{HistoryReport, print};
use crate::world::host;
use anyhow::Result;

pub fn run(arguments: &History, session: &Session) -> Result<Answer> {
    let since = arguments.since.as_deref().map(|text| duration("--since", text)).transpose()?;
    let oldest = since.and_then(|since| host::now().checked_sub(since).ok());
    let mut runs = read(session.config.state_dir()?)?;
    runs.retain(|run| oldest.is_none_or(|oldest| run.began >= oldest));
    runs.drain(..runs.len().saturating_sub(arguments.lines));
    print(&HistoryReport { runs }, &session.form)?;
    Ok(Answer::Yes)
}
