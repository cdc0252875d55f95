//! What a trial has to know of the world before it begins: the card as it is, the other card, and
//! whether production is well.

use super::candidate::Candidate;
use super::limits::Path;
use super::restore::Hands;
use super::verdict::{Card, Verdict, judge};
use crate::config::{Canary, Config, Gpu, Selector};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Mb, Source, State, Vram};
use crate::observe::observe;
use crate::plan::reading_required;
use crate::world::nvml::Reader;
use crate::world::ports::Listeners;
use crate::world::wait::Stop;
use std::sync::PoisonError;

/// The verdict by arithmetic over the live card.
pub fn predict(
    candidate: &std::result::Result<Candidate, String>,
    config: &Config,
    canary: &Canary,
    reader: &mut Reader,
    stop: &Stop,
) -> Result<Verdict> {
    let snapshot = observe(config, reader, stop, &|_| false)?;
    let vram = &snapshot.vram;
    let (Some(total), Some(used)) = (vram.total, vram.used) else {
        return Err(reading_required(vram));
    };
    let production = snapshot.service(&canary.service);
    let own = match vram.source {
        Source::Nvml => production.used,
        Source::Estimate => Some(match production.may_run() {
            true => config.service(&canary.service)?.vram,
            false => Mb(0),
        }),
    };
    let own = own.ok_or_else(|| {
        Failure::new(Code::Unavailable, format!("what {} holds cannot be told", canary.service))
            .hint("`gpuctl status` says why")
    })?;
    Ok(judge(candidate, canary, Card { total, persistent: used.saturating_sub(own) }))
}

/// Whether that card is another than production's, and has room for the candidate: for what it
/// takes of production's card, and for the share that it takes of this one.
pub fn has_room(device: u32, candidate: &Candidate, verdict: &Verdict, hands: &Hands) -> bool {
    let mut own = hands.reader.lock().unwrap_or_else(PoisonError::into_inner);
    let own = own.read().ok().and_then(|vram| vram.device);
    let other = Gpu { selector: Selector::Index(device), ..hands.config.gpu.clone() };
    let other = Reader::open(&other).read().ok();
    let (Some(own), Some(Vram { total: Some(total), used: Some(used), free: Some(free), .. })) =
        (own, other)
    else {
        return false;
    };
    let there = judge(&Ok(candidate.clone()), hands.canary, Card { total, persistent: used });
    let fits = verdict.allocation.is_some_and(|needed| free >= needed);
    own.index != device && there.passed && fits
}

/// A trial needs production to be well, and its own port to be free.
pub fn refuse_unready(hands: &Hands, stop: &Stop, path: Path) -> Result<()> {
    let canary = hands.canary;
    let listeners = Listeners::read();
    if listeners.is_taken(canary.port) {
        let message = format!("something listens on the canary's port {}", canary.port);
        return Err(
            Failure::new(Code::StartFailed, message).hint("end it, or choose another canary.port")
        );
    }
    if path == Path::Spare {
        return Ok(());
    }
    let snapshot = hands.observe(stop)?;
    match snapshot.service(&canary.service).state {
        State::Ready => Ok(()),
        state => Err(Failure::new(
            Code::Unavailable,
            format!("{} is {state}: there is no production to be tried against", canary.service),
        )
        .hint(format!("`gpuctl start {}` first", canary.service))),
    }
}
