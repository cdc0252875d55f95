//! `gpuctl can-fit`: reports whether a size or a service fits now, or with `--budget` also beside
//! what running services have declared and not yet used.

use crate::cli::CanFitArgs;
use crate::error::Result;
use crate::exit::Answer;
use crate::model::{Mb, Source};
use crate::notes::Notes;
use crate::observe::{Ask, observe};
use crate::plan::{CardBudget, reading_required};
use crate::report::CanFitReport;
use crate::session::{Session, size};
use crate::world::nvml::Reader;

pub fn run(arguments: &CanFitArgs, session: Session) -> Result<Answer> {
    let config = &session.config;
    let mut reader = Reader::open(&config.gpu);
    let what = [Some(arguments.what.as_str()), arguments.unit.as_deref()];
    let what = what.into_iter().flatten().collect::<Vec<_>>().join(" ");
    let is_service = !what.starts_with(|c: char| c.is_ascii_digit())
        || config.services.iter().any(|service| service.name == what);
    let required = match Mb::parse(&what) {
        None if is_service && arguments.unit.is_none() => config.service(&what)?.vram,
        _ => size(&what)?,
    };
    let margin = match &arguments.margin {
        Some(text) => size(text)?,
        None => config.gpu.reserve,
    };
    // The driver's reading is enough to answer for now; what runs matters only for an estimate or a
    // budget.
    let (vram, promised) = match reader.read() {
        Ok(vram) if !arguments.budget => (vram, Mb(0)),
        _ => {
            let snapshot = observe(config, &mut reader, &session.stop, &|_| Ask::Nothing)?;
            Notes::keep(config, &snapshot);
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
