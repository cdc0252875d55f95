//! `gpuctl can-fit`: answers for this moment, or with `--budget` for what is promised.

use super::Session;
use crate::cli::CanFit;
use crate::error::Failure;
use crate::exit::{Answer, Code};
use crate::model::{Mb, Source};
use crate::observe::observe;
use crate::plan::{Budget, reading_required};
use crate::report::{CanFitReport, print};
use anyhow::{Result, bail};

pub fn run(arguments: &CanFit, mut session: Session) -> Result<Answer> {
    let config = &session.config;
    let required = match Mb::parse(&arguments.what) {
        Some(size) => size,
        None if arguments.what.starts_with(|c: char| c.is_ascii_digit()) => {
            bail!(no_size(&arguments.what));
        }
        None => config.service(&arguments.what)?.vram,
    };
    let margin = match &arguments.margin {
        Some(text) => Mb::parse(text).ok_or_else(|| no_size(text))?,
        None => config.gpu.reserve,
    };
    let snapshot = observe(config, &mut session.reader, &session.stop)?;
    let free = snapshot.vram.free.ok_or_else(|| reading_required(&snapshot.vram))?;
    if let (Source::Estimate, Some(error)) = (snapshot.vram.source, &snapshot.vram.error) {
        session
            .progress
            .warning(&format!("{error}; answering from gpu.total_mb and the declared sizes"));
    }
    let mut available = free.saturating_sub(margin);
    if arguments.budget {
        available = available.saturating_sub(Budget::of(config, &snapshot).unused());
    }
    let report = CanFitReport {
        fits: available >= required,
        required_mb: required,
        margin_mb: margin,
        free_mb: free,
        available_mb: available,
        source: snapshot.vram.source,
    };
    print(&report, session.json)?;
    Ok(Answer::from(report.fits))
}

fn no_size(text: &str) -> Failure {
    Failure::new(Code::Usage, format!("\"{text}\" is no memory size"))
        .hint("a size is a number of MB such as 20000, or has a suffix: 20000MB, 20GB, 20GiB")
}
