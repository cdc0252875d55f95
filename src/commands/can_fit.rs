//! `gpuctl can-fit`: answers for this moment, or with `--budget` for what is promised.

use super::Session;
use crate::cli::CanFitArgs;
use crate::error::{Failure, Result};
use crate::exit::{Answer, Code};
use crate::model::{Mb, Source};
use crate::observe::observe;
use crate::plan::{CardBudget, reading_required};
use crate::report::CanFitReport;
use crate::world::nvml::Reader;

pub fn run(arguments: &CanFitArgs, session: Session) -> Result<Answer> {
    let config = &session.config;
    let mut reader = Reader::open(&config.gpu);
    let required = match Mb::parse(&arguments.what) {
        Some(size) => size,
        None if arguments.what.starts_with(|c: char| c.is_ascii_digit()) => {
            return Err(no_size(&arguments.what));
        }
        None => config.service(&arguments.what)?.vram,
    };
    let margin = match &arguments.margin {
        Some(text) => Mb::parse(text).ok_or_else(|| no_size(text))?,
        None => config.gpu.reserve,
    };
    // For this moment the driver's word is enough; what runs matters for an estimate or a budget.
    let (vram, promised) = match reader.read() {
        Ok(vram) if !arguments.budget => (vram, Mb(0)),
        _ => {
            let snapshot = observe(config, &mut reader, &session.stop, &|_| false)?;
            let promised = match arguments.budget {
                true => CardBudget::of(config, &snapshot).unused(),
                false => Mb(0),
            };
            (snapshot.vram, promised)
        }
    };
    let free = vram.free.ok_or_else(|| reading_required(&vram))?;
    if let (Source::Estimate, Some(error)) = (vram.source, &vram.error) {
        let basis = "answering from gpu.total_mb and the declared sizes";
        session.progress.warning(&format!("{error}; {basis}"));
    }
    let available = free.saturating_sub(margin).saturating_sub(promised);
    let report = CanFitReport {
        fits: free >= required + margin + promised,
        required_mb: required,
        margin_mb: margin,
        free_mb: free,
        available_mb: available,
        promised_mb: arguments.budget.then_some(promised),
        source: vram.source,
    };
    session.conclude(&report)?;
    Ok(Answer::from(report.fits))
}

fn no_size(text: &str) -> Failure {
    Failure::new(Code::Usage, format!("\"{text}\" is not a valid size"))
        .hint("a size is a number of MB such as 20000, or has a suffix: 20000MB, 20GB, 20GiB")
}
