//! Decides by arithmetic alone whether a candidate can work. Pure: the card's memory is a
//! parameter.

use super::candidate::Candidate;
use crate::config::Canary;
use crate::model::Mb;
use serde::Serialize;

/// Name of the parameter that sets the candidate's share of the whole card, as vLLM takes it.
const SHARE: &str = "vllm_memory_util";

/// Tolerance in MB against rounding: in floating point, 10000 * 0.69 is a little less than 6900.
const BLUR: f64 = 1e-6;

/// How a candidate was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Pass,
    Fail,
    /// The parameters are not a candidate at all: one is unknown or out of bounds, or one that is
    /// needed is missing.
    Invalid,
}

/// A verdict and the figures that it rests on.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    pub status: Status,
    #[serde(rename = "validation_passed")]
    pub passed: bool,
    #[serde(rename = "validation_reason")]
    pub reason: String,
    #[serde(rename = "allocation_mb")]
    pub allocation: Option<Mb>,
    #[serde(rename = "model_mb")]
    pub model: Mb,
    #[serde(rename = "kv_cache_mb")]
    pub kv_cache: Option<Mb>,
    /// Memory that all processes but production's hold.
    #[serde(rename = "persistent_mb")]
    pub persistent: Option<Mb>,
    #[serde(rename = "available_mb")]
    pub available: Option<Mb>,
}

/// The memory of a card, as far as a verdict needs it.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    pub total: Mb,
    /// Memory that all processes but production's hold.
    pub persistent: Mb,
}

/// Judges a candidate. An `Err` is the reason why the parameters are not a candidate at all, and
/// leads to `Status::Invalid`.
pub fn judge(candidate: &Result<Candidate, String>, canary: &Canary, card: Card) -> Prediction {
    let available = card.total.saturating_sub(card.persistent);
    let verdict = |status, reason, allocation: Option<Mb>| Prediction {
        status,
        passed: status == Status::Pass,
        reason,
        allocation,
        model: canary.model_mb,
        kv_cache: allocation.map(|allocation| allocation.saturating_sub(canary.model_mb)),
        persistent: Some(card.persistent),
        available: Some(available),
    };
    let candidate = match candidate {
        Ok(candidate) => candidate,
        Err(problem) => return verdict(Status::Invalid, problem.clone(), None),
    };
    let Some(share) = candidate.number(SHARE) else {
        return verdict(Status::Invalid, format!("the candidate does not set {SHARE}"), None);
    };
    let exact = card.total.0 as f64 * share + BLUR;
    let allocation = Mb(exact as u64);
    let extra: Mb = canary
        .extra
        .iter()
        .filter_map(|(parameter, choices)| choices.get(&candidate.text(parameter)?).copied())
        .sum();
    let least = canary.model_mb + canary.kv_cache_min;
    if exact < least.0 as f64 {
        let reason = format!(
            "an allocation of {allocation} is less than the model ({}) and its smallest cache ({}) need",
            canary.model_mb, canary.kv_cache_min
        );
        return verdict(Status::Fail, reason, Some(allocation));
    }
    if exact - 2.0 * BLUR > available.saturating_sub(extra).0 as f64 {
        let with_extra = if extra == Mb(0) { String::new() } else { format!(" and {extra} more") };
        let reason = format!(
            "an allocation of {allocation}{with_extra} does not fit into {available}: {} of {} is held by others",
            card.persistent, card.total
        );
        return verdict(Status::Fail, reason, Some(allocation));
    }
    let reason = format!("an allocation of {allocation} fits into {available}");
    verdict(Status::Pass, reason, Some(allocation))
}
