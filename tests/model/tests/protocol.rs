//! Tests of what the lock's protocol promises, of what it does not, and that the model would notice
//! a broken promise.
//!
//! `cargo test -p model -- --nocapture` prints the number of states of each scenario, and the
//! number of steps to the farthest. If `GPUCTL_MODEL=deep` is set, the scenarios have more clients
//! and more faults.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "what a test explores is told, and how deep"
)]

use model::{Explored, Faults, Kind, Promise, Rules, Scenario, explore};
use std::time::Instant;

const NONE: Faults = Faults {
    kill: 0,
    kill_watchdog: 0,
    stop: 0,
    freeze: 0,
    lost_reply: 0,
    interrupt: 0,
    background: 0,
    release: 0,
    delete: 0,
    jump_ahead: 0,
    jump_back: 0,
    fail_over: 0,
    flush: 0,
};

/// Limit on the number of states of a scenario, which only deep scenarios may exceed.
const MOST_STATES: usize = 1_500_000;
const MOST_DEEP_STATES: usize = 40_000_000;

/// Returns `count` clients: two on one machine and one on the other or, if there are four, two on
/// each.
fn runs(count: usize) -> Vec<(Kind, u8)> {
    [0, 0, 1, 1].into_iter().take(count).map(|machine| (Kind::Run, machine)).collect()
}

fn by_hand() -> Vec<(Kind, u8)> {
    vec![(Kind::ByHand, 0), (Kind::Run, 0), (Kind::Run, 1)]
}

fn scenario(clients: Vec<(Kind, u8)>, faults: Faults) -> Scenario {
    Scenario { clients, legacy: false, faults, rules: Rules::ALL, is_timely: false }
}

fn is_deep() -> bool {
    std::env::var_os("GPUCTL_MODEL").is_some_and(|depth| depth == "deep")
}

fn explored(name: &str, scenario: &Scenario) -> Explored {
    let begun = Instant::now();
    let explored = explore(scenario, if is_deep() { MOST_DEEP_STATES } else { MOST_STATES });
    let Explored { states, depth, .. } = explored;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{name}: {states} states, {depth} steps, {seconds:.1} s");
    explored
}

/// Asserts that none of these promises is broken in any state that can be reached.
#[track_caller]
fn holds(name: &str, scenario: &Scenario, promises: &[Promise]) {
    let explored = explored(name, scenario);
    for promise in promises {
        let way = explored.broken.get(promise);
        assert!(way.is_none(), "{name}: {promise:?} is broken by {way:?}");
    }
}

/// Asserts that this promise can be broken.
#[track_caller]
fn is_broken(name: &str, scenario: &Scenario, promise: Promise) {
    let explored = explore(scenario, MOST_DEEP_STATES);
    let way = explored.broken.get(&promise);
    let way = way.unwrap_or_else(|| panic!("{name}: {promise:?} holds"));
    println!("{name}: {promise:?} is broken by {way:?}");
}

/// Promises that hold in every scenario of faults that the protocol is made for.
const ALWAYS: [Promise; 3] = [Promise::Alone, Promise::Fences, Promise::NobodyForgotten];

/// Promises that hold beside a program of the older kind.
const WITH_LEGACY: [Promise; 4] =
    [Promise::Alone, Promise::AloneWithLegacy, Promise::Fences, Promise::NobodyForgotten];

#[test]
fn where_nothing_goes_wrong_the_longest_waiting_is_next_on_any_machine() {
    let scenario = Scenario { is_timely: true, ..scenario(runs(4), NONE) };
    let all = [Promise::Order, Promise::Alone, Promise::Fences, Promise::NobodyForgotten];
    holds("four in line", &scenario, &all);
    let scenario = Scenario { legacy: true, ..scenario };
    holds("four in line and an older program", &scenario, &[&all[..], &WITH_LEGACY].concat());
}

#[test]
fn processes_may_be_killed_stopped_and_frozen() {
    let kill = if is_deep() { 2 } else { 1 };
    let dying = Faults { kill: 2, stop: 1, freeze: 1, ..NONE };
    holds("killed twice, stopped and frozen", &scenario(runs(3), dying), &ALWAYS);
    let with_legacy = |faults| Scenario { legacy: true, ..scenario(runs(3), faults) };
    let dying = Faults { kill, stop: 1, freeze: kill - 1, ..NONE };
    holds("killed and stopped, an older program", &with_legacy(dying), &WITH_LEGACY);
    let frozen = Faults { kill_watchdog: kill - 1, lost_reply: 1, freeze: 1, ..NONE };
    holds("frozen and unheard, an older program", &with_legacy(frozen), &WITH_LEGACY);
    let waiting = Faults { kill, background: 1, interrupt: 1, lost_reply: 1, ..NONE };
    holds("killed, left, interrupted and unheard", &scenario(runs(3), waiting), &ALWAYS);
}

#[test]
fn a_watchdog_may_be_killed_or_its_gpuctl() {
    let faults = Faults { kill_watchdog: 1, lost_reply: 1, freeze: 1, ..NONE };
    holds("watchdog killed, frozen and unheard", &scenario(runs(3), faults), &ALWAYS);
}

/// Asserts that the promises hold when the server suffers these faults and processes suffer theirs
/// as well.
fn with_processes(name: &str, server: Faults) {
    let dying = Faults { kill: 1, stop: 1, background: 1, ..server };
    holds(&format!("{name}, killed, stopped and left"), &scenario(runs(3), dying), &ALWAYS);
    let frozen = Faults { freeze: 1, lost_reply: 1, ..server };
    holds(&format!("{name}, frozen and unheard"), &scenario(runs(3), frozen), &ALWAYS);
    if is_deep() {
        let all = Faults { freeze: 1, ..dying };
        holds(&format!("{name}, all at once"), &scenario(runs(3), all), &ALWAYS);
        holds(
            &format!("{name}, four, killed"),
            &scenario(runs(4), Faults { kill: 1, ..server }),
            &ALWAYS,
        );
    }
}

#[test]
fn the_key_may_be_deleted() {
    with_processes("key deleted", Faults { delete: 1, ..NONE });
}

#[test]
fn an_older_program_may_delete_our_key_between_its_get_and_its_del() {
    let scenario = Scenario { legacy: true, ..scenario(runs(3), Faults { kill: 1, ..NONE }) };
    holds("killed, an older program", &scenario, &WITH_LEGACY);
}

#[test]
fn the_calendar_may_jump_ahead() {
    with_processes("calendar ahead", Faults { jump_ahead: 1, ..NONE });
}

#[test]
fn the_calendar_may_be_set_back() {
    with_processes("calendar back", Faults { jump_back: 1, ..NONE });
}

#[test]
fn a_replica_may_take_over_that_has_not_heard_of_the_last_change_or_of_any() {
    with_processes("fail-over", Faults { fail_over: 1, ..NONE });
}

#[test]
fn a_lock_by_hand_may_be_released_anywhere_while_a_command_works_under_it() {
    let faults = Faults { release: 1, kill: 1, lost_reply: 1, ..NONE };
    holds("by hand, released, killed and unheard", &scenario(by_hand(), faults), &ALWAYS);
    for (name, faults) in
        [("deleted", Faults { delete: 1, ..NONE }), ("fail-over", Faults { fail_over: 1, ..NONE })]
    {
        let faults = Faults { release: 1, ..faults };
        holds(&format!("by hand, released, {name}"), &scenario(by_hand(), faults), &ALWAYS);
    }
}

#[test]
fn what_is_not_promised_is_found() {
    let three = |faults| scenario(runs(3), faults);
    let by_hand = |faults| scenario(by_hand(), faults);
    let legacy = |faults| Scenario { legacy: true, ..scenario(runs(3), faults) };
    let alone = Promise::Alone;
    for (name, scenario, promise) in [
        ("FLUSHALL", three(Faults { flush: 1, ..NONE }), alone),
        (
            "gpuctl and its watchdog killed",
            three(Faults { kill: 1, kill_watchdog: 1, ..NONE }),
            alone,
        ),
        (
            "gpuctl stopped, its watchdog killed",
            three(Faults { stop: 1, kill_watchdog: 1, ..NONE }),
            alone,
        ),
        (
            "the keeper of the rest killed",
            three(Faults { background: 1, kill_watchdog: 1, ..NONE }),
            alone,
        ),
        (
            "key deleted, and the calendar jumps",
            three(Faults { delete: 1, jump_ahead: 1, ..NONE }),
            alone,
        ),
        ("the calendar jumps twice", three(Faults { jump_ahead: 2, ..NONE }), alone),
        (
            "released elsewhere, and the calendar jumps",
            by_hand(Faults { release: 1, jump_ahead: 1, ..NONE }),
            alone,
        ),
        (
            "FLUSHALL, and the calendar set back",
            three(Faults { flush: 1, jump_back: 1, ..NONE }),
            Promise::Fences,
        ),
        (
            "an older program after a deletion",
            legacy(Faults { delete: 1, ..NONE }),
            Promise::AloneWithLegacy,
        ),
        (
            "an older program after a fail-over",
            legacy(Faults { fail_over: 1, ..NONE }),
            Promise::AloneWithLegacy,
        ),
        ("the order of those who were stopped", three(Faults { stop: 1, ..NONE }), Promise::Order),
    ] {
        is_broken(name, &scenario, promise);
    }
}

#[test]
fn each_rule_is_needed() {
    let all = Rules::ALL;
    let three = |rules, faults| Scenario { rules, ..scenario(runs(3), faults) };
    let in_order = |rules| Scenario { rules, is_timely: true, ..scenario(runs(4), NONE) };
    let (alone, forgotten) = (Promise::Alone, Promise::NobodyForgotten);
    for (name, scenario, promise) in [
        (
            "no second record",
            three(Rules { second_record: false, ..all }, Faults { delete: 1, ..NONE }),
            alone,
        ),
        (
            "a second record by the server's clock",
            three(Rules { own_clock: false, ..all }, Faults { jump_ahead: 1, ..NONE }),
            alone,
        ),
        ("no margin", three(Rules { margin: -1, ..all }, NONE), alone),
        ("anybody takes over", three(Rules { place: false, ..all }, NONE), alone),
        (
            "who comes back does not ask who came",
            three(Rules { asks_who_came: false, ..all }, Faults { freeze: 1, delete: 1, ..NONE }),
            alone,
        ),
        (
            "a bearer takes the second record",
            Scenario {
                rules: Rules { bearer: false, ..all },
                ..scenario(by_hand(), Faults { release: 1, ..NONE })
            },
            alone,
        ),
        (
            "a server that took over is not known",
            three(Rules { server_id: false, ..all }, Faults { fail_over: 1, ..NONE }),
            alone,
        ),
        ("no watchdog", three(Rules { watchdog: false, ..all }, Faults { kill: 1, ..NONE }), alone),
        (
            "nobody keeps what is left",
            three(Rules { keeper: false, ..all }, Faults { background: 1, ..NONE }),
            alone,
        ),
        ("nobody is called", in_order(Rules { calls: false, ..all }), Promise::Order),
        ("no reservation", in_order(Rules { reservation: false, ..all }), Promise::Order),
        (
            "a call does not end",
            three(Rules { call_ends: false, ..all }, Faults { kill: 1, ..NONE }),
            forgotten,
        ),
        (
            "no counter",
            three(Rules { counter: false, ..all }, Faults { jump_back: 1, ..NONE }),
            Promise::Fences,
        ),
        (
            "no clock",
            three(Rules { clock: false, ..all }, Faults { flush: 1, ..NONE }),
            Promise::Fences,
        ),
    ] {
        is_broken(name, &scenario, promise);
    }
}
