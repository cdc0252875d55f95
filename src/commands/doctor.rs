//! `gpuctl doctor`: checks every precondition, even if the configuration is missing or wrong.

use crate::cli::Global;
use crate::config::Environment;
use crate::doctor::examine;
use crate::error::{Failure, Result};
use crate::exit::Answer;
use crate::report::{DoctorReport, Form, print};
use crate::world::wait::Stop;

pub fn run(global: &Global, environment: &Environment) -> Result<Answer> {
    let stop =
        Stop::on_signals().map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
    let checks = examine(global.config.as_deref(), global.gpu.as_deref(), environment, &stop)?;
    let report = DoctorReport::new(checks, global.quiet);
    print(&report, &Form::new(global.json, environment))?;
    Ok(Answer::from(report.success))
}
