//! `gpuctl release-all`: stops every managed service.

use crate::cli::ReleaseAllArgs;
use crate::error::Result;
use crate::exit::Answer;
use crate::plan;
use crate::report::Subject;
use crate::session::{Session, act::act};

pub fn run(arguments: &ReleaseAllArgs, session: Session) -> Result<Answer> {
    session.config.require_file()?;
    act(
        session,
        "release-all",
        Subject::All {},
        &arguments.acting,
        |_| false,
        |config, snapshot| plan::release_all(config, snapshot, arguments.force.force),
    )
}
