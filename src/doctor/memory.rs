//! The memory that services and phases declare against what the card has. Pure.

use super::check::{Check, CheckId};
use crate::config::Config;
use crate::model::{Mb, Service, Snapshot};
use crate::plan::CardBudget;

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
    // What others than services hold now is not to be had.
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
