//! Checks of the canary: whether a restore is owed, and whether a trial could be run at all.

use super::check::{Check, CheckId};
use super::state::folder;
use super::{Examined, native};
use crate::canary::debt;
use crate::canary::ledger::{Ledger, owed};
use crate::config::{Canary, Config, Gpu, Mode, Selector, Span};
use crate::world::host;
use crate::world::nvml::Reader;
use std::path::Path;

pub fn examine(case: &Examined) -> Vec<Check> {
    let Some((config, canary)) =
        case.config.as_ref().and_then(|config| Some((config, config.canary().ok()?)))
    else {
        return vec![Check::skip(CheckId::CanaryRestore, "no [canary] section")];
    };
    let seen = || case.looked().expect("there is a configuration").snapshot.clone();
    let settled = debt::settle_by(config, &case.stop, seen);
    let mut checks = ledger(config, canary, settled);
    checks.push(budget(canary));
    let path = case.path.as_deref();
    checks.push(native::command(CheckId::CanaryStart, "canary.start", &canary.start, None, path));
    checks.extend(canary.spare_gpu.map(|index| spare(index, &case.gpu)));
    checks.extend(canary.maintenance_lock.as_deref().map(|path| {
        let fix = "create that folder, or correct canary.maintenance_lock";
        let parent = path.parent().unwrap_or(Path::new("/"));
        match parent.is_dir() {
            true => Check::pass(CheckId::CanaryMaintenanceLock, path.display().to_string()),
            false => Check::fail(
                CheckId::CanaryMaintenanceLock,
                format!("there is no folder {}", parent.display()),
                fix,
            ),
        }
    }));
    checks
}

/// Checks the ledger, and whether a restore is owed. `settled` describes the debt that this call
/// has just settled, if there was one.
fn ledger(config: &Config, canary: &Canary, settled: Option<String>) -> Vec<Check> {
    let ledger = match Ledger::open(config) {
        Ok(ledger) => ledger,
        Err(failure) => {
            return vec![Check::failure(CheckId::CanaryLedger, &failure, "set canary.state_dir")];
        }
    };
    let fix = "make it yours alone (chown, chmod go-w), or choose another canary.state_dir";
    let place = canary.state_dir.as_deref().unwrap_or(Path::new("/"));
    let kept = folder(CheckId::CanaryLedger, place, fix);
    if kept.fix.is_some() {
        return vec![Check::skip(CheckId::CanaryRestore, "the ledger cannot be read"), kept];
    }
    let restore = match ledger.journal() {
        Ok(None) => {
            let told = settled.unwrap_or_else(|| "none is owed".to_owned());
            Check::pass(CheckId::CanaryRestore, told)
        }
        Ok(Some(journal)) if journal.is_orphaned() => {
            Check::failure(CheckId::CanaryRestore, &owed(&journal), "`gpuctl canary recover`")
        }
        Ok(Some(journal)) => Check::pass(
            CheckId::CanaryRestore,
            format!("a trial is under way (run {})", journal.run_id),
        ),
        Err(failure) => Check::failure(CheckId::CanaryRestore, &failure, "repair it"),
    };
    let limits = &canary.limits;
    let kept = match ledger.history(limits.window.night(host::now()), limits.cooldown) {
        Ok(_) => kept,
        Err(failure) => Check::failure(CheckId::CanaryLedger, &failure, "repair it"),
    };
    vec![restore, kept]
}

/// Checks whether the downtime that is allowed in a night is enough for one trial in production's
/// place.
fn budget(canary: &Canary) -> Check {
    let (needed, had) = (canary.limits.reserve, canary.limits.max_downtime);
    let told = format!("a trial may take {}, and {} are allowed a night", Span(needed), Span(had));
    match needed > had {
        false => Check::pass(CheckId::CanaryBudget, told),
        true => {
            let fix = "raise canary.max_downtime, or lower canary.timeout or canary.restore_sla";
            match canary.mode {
                Mode::Canary => Check::fail(CheckId::CanaryBudget, told, fix),
                Mode::Predictive => Check::warn(CheckId::CanaryBudget, told, fix),
            }
        }
    }
}

fn spare(index: u32, own: &Gpu) -> Check {
    let id = CheckId::CanarySpareGpu;
    let fix = "correct canary.spare_gpu, or set allow_spare_gpu = false";
    let gpu = Gpu { selector: Selector::Index(index), ..own.clone() };
    match Reader::open(&gpu).read() {
        Ok(vram) if vram.no_such_gpu => Check::fail(id, vram.error.unwrap_or_default(), fix),
        Ok(_) if own.selector == gpu.selector => {
            Check::fail(id, format!("GPU {index} is production's own card"), fix)
        }
        Ok(_) => Check::pass(id, format!("GPU {index} is present")),
        Err(_) => Check::skip(id, "NVML cannot be queried"),
    }
}
