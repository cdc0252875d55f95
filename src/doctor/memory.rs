//! Checks of the memory that services and phases declare, against what the card has and what was
//! seen.

use super::check::{Check, CheckId};
use crate::config::Config;
use crate::model::{Mb, Service, Snapshot};
use crate::notes::Notes;
use crate::plan::CardBudget;

/// Number of calls of `gpuctl run` that have to have watched a service before its peak counts as
/// all that it needs.
const ENOUGH_RUNS: u64 = 5;

/// Checks what a service declares against `peak`, the most that it was seen to hold. `runs` is the
/// number of calls of `gpuctl run` that have watched it.
fn need(service: &Service, peak: Mb, runs: u64) -> Check {
    let (name, declared) = (&service.name, service.vram);
    let fix = format!("set services.{name}.vram_mb = {}", peak.0);
    if peak > declared {
        let message = format!("has held {peak}, more than its vram_mb of {declared}");
        Check::warn(CheckId::VramPeak, message, fix)
    } else if runs >= ENOUGH_RUNS && declared.0 * 2 > peak.0 * 3 {
        let message = format!(
            "declares {declared}, and has held {peak} at most in {runs} calls of `gpuctl run`"
        );
        Check::warn(CheckId::VramPeak, message, format!("{fix}, or somewhat more"))
    } else {
        Check::pass(CheckId::VramPeak, format!("{peak} of {declared} at most, as far as was seen"))
    }
}

/// Checks the reserve, and the memory that each service and each phase declares.
pub fn judge(config: &Config, snapshot: &Snapshot) -> Vec<Check> {
    let ids = [CheckId::VramReserve, CheckId::VramService, CheckId::VramPhase];
    let Some(total) = snapshot.vram.total else {
        let why = "the card's size is not known; set gpu.total_mb for an estimate";
        return ids.map(|id| Check::skip(id, why)).into();
    };
    let reserve = config.gpu.reserve;
    if reserve >= total {
        let message = format!("the reserve of {reserve} leaves nothing of the card's {total}");
        let reserve = Check::fail(ids[0], message, "lower gpu.reserve_mb; 1024 is the default");
        let rest = [ids[1], ids[2]].map(|id| Check::skip(id, "nothing fits beside the reserve"));
        return [reserve].into_iter().chain(rest).collect();
    }
    let room = total.saturating_sub(reserve);
    let mut checks = vec![Check::pass(ids[0], format!("{reserve} of {total}"))];
    let is_too_large = |service: &&Service| service.vram > room;
    checks.extend(config.services.iter().map(|service| {
        let name = &service.name;
        let told = format!("{} of {room}", service.vram);
        match is_too_large(&service) {
            true => Check::fail(
                CheckId::VramService,
                format!("needs {}, but the card has only {room} beside the reserve", service.vram),
                format!("set services.{name}.vram_mb to what it really takes, lower gpu.reserve_mb, or give the service another card"),
            ),
            false => Check::pass(CheckId::VramService, told),
        }
        .of(name)
    }));
    let notes = Notes::read(config);
    checks.extend(config.services.iter().filter_map(|service| {
        let peak = notes.peak(&service.name)?;
        Some(need(service, peak, notes.runs(&service.name)).of(&service.name))
    }));
    // Memory that processes of no service hold now is not available.
    let now = CardBudget::of(config, snapshot).capacity.unwrap_or(room);
    for (number, title) in &config.phases {
        let members: Vec<&Service> =
            config.services.iter().filter(|service| service.phases.contains(number)).collect();
        if members.is_empty() {
            continue;
        }
        let needed: Mb = members.iter().map(|service| service.vram).sum();
        let names: Vec<&str> = members.iter().map(|service| service.name.as_str()).collect();
        let names = names.join(", ");
        let check = if members.iter().any(is_too_large) {
            Check::skip(CheckId::VramPhase, "one of its services is too large by itself")
        } else if needed > room {
            Check::fail(
                CheckId::VramPhase,
                format!(
                    "{names} need {needed} together, but the card has only {room} beside the reserve"
                ),
                "move one of them to another phase, or lower their vram_mb or gpu.reserve_mb",
            )
        } else if needed > now {
            Check::warn(
                CheckId::VramPhase,
                format!(
                    "{names} need {needed}, but processes that belong to no service leave only {now} at the moment"
                ),
                "`gpuctl status` names the processes that hold the rest; stop those",
            )
        } else {
            Check::pass(CheckId::VramPhase, format!("{names}: {needed} of {room}"))
        };
        checks.push(check.of(match title {
            Some(title) => format!("{number} ({title})"),
            None => number.to_string(),
        }));
    }
    checks
}
