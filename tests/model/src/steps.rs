//! The steps that can happen next: those of clients, modelled after `src/lock`, and faults.

use crate::client::{Phase, Process};
use crate::server::{Answer, Called, Renewal, Value};
use crate::world::{CLIENTS, Faults, Kind, Legacy, Rules, TTL, World};

/// A step, named after the code that takes it. Numbers of clients are indices into
/// `World::clients`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    QueueUp(usize),
    Attempt(usize),
    AttemptUnheard(usize),
    Begin(usize),
    Leave(usize),
    Join(usize),
    Renew(usize),
    RenewUnheard(usize),
    GiveUp(usize),
    CommandEnds(usize),
    Release(usize),
    ReleaseUnheard(usize),
    EndCommand(usize),
    HoldOn(usize),
    Keep(usize),
    Background(usize),
    KillGpuctl(usize),
    KillWatchdog(usize),
    Stop(usize),
    Continue(usize),
    Freeze(usize),
    Thaw(usize),
    Interrupt(usize),
    BearerReleases { of: usize, on: u8 },
    LegacySets,
    LegacyGets,
    LegacyDeletes,
    Delete,
    Flush,
    JumpAhead,
    JumpBack,
    FailOver { to_empty: bool },
    CallEnds,
    Tick,
}

const EACH: [fn(usize) -> Step; 21] = [
    Step::Continue,
    Step::Thaw,
    Step::Begin,
    Step::Leave,
    Step::CommandEnds,
    Step::EndCommand,
    Step::Release,
    Step::Keep,
    Step::Attempt,
    Step::QueueUp,
    Step::Join,
    Step::Renew,
    Step::GiveUp,
    Step::HoldOn,
    Step::Background,
    Step::KillGpuctl,
    Step::KillWatchdog,
    Step::Stop,
    Step::Freeze,
    Step::Interrupt,
    Step::AttemptUnheard,
];

/// Returns every step there is, possible or not, in the order in which steps are tried.
pub fn all() -> impl Iterator<Item = Step> {
    let rest = [Step::RenewUnheard, Step::ReleaseUnheard];
    let of_clients = EACH.into_iter().chain(rest).flat_map(|step| (0..CLIENTS).map(step));
    let bearers =
        (0..CLIENTS).flat_map(|of| [0, 1].map(|on| Step::BearerReleases { of, on }).into_iter());
    of_clients.chain(bearers).chain([
        Step::LegacySets,
        Step::LegacyGets,
        Step::LegacyDeletes,
        Step::CallEnds,
        Step::Tick,
        Step::Delete,
        Step::Flush,
        Step::JumpAhead,
        Step::JumpBack,
        Step::FailOver { to_empty: false },
        Step::FailOver { to_empty: true },
    ])
}

impl Faults {
    /// Returns how often a step may still happen if it is a fault, or `None` if it is not.
    fn of(&mut self, step: Step) -> Option<&mut u8> {
        Some(match step {
            Step::KillGpuctl(_) => &mut self.kill,
            Step::KillWatchdog(_) => &mut self.kill_watchdog,
            Step::Stop(_) => &mut self.stop,
            Step::Freeze(_) => &mut self.freeze,
            Step::AttemptUnheard(_) | Step::RenewUnheard(_) | Step::ReleaseUnheard(_) => {
                &mut self.lost_reply
            }
            Step::Interrupt(_) => &mut self.interrupt,
            Step::Background(_) => &mut self.background,
            Step::BearerReleases { .. } => &mut self.release,
            Step::Delete => &mut self.delete,
            Step::JumpAhead => &mut self.jump_ahead,
            Step::JumpBack => &mut self.jump_back,
            Step::FailOver { .. } => &mut self.fail_over,
            Step::Flush => &mut self.flush,
            _ => return None,
        })
    }
}

impl World {
    /// Returns the world after a step, or `None` if the step is not possible.
    pub fn after(&self, step: Step, rules: &Rules) -> Option<World> {
        let mut next = *self;
        if let Some(left) = next.faults.of(step) {
            *left = left.checked_sub(1)?;
        }
        next.takes(step, rules).then(|| {
            next.look();
            next
        })
    }

    fn takes(&mut self, step: Step, rules: &Rules) -> bool {
        match step {
            Step::QueueUp(one) => self.queue_up(one, rules),
            Step::Attempt(one) => self.attempt(one, true, rules),
            Step::AttemptUnheard(one) => self.attempt(one, false, rules),
            Step::Begin(one) => self.begin(one, rules),
            Step::Leave(one) => self.leave(one, rules),
            Step::Join(one) => self.join(one, rules),
            Step::Renew(one) => self.renews(one, true, rules),
            Step::RenewUnheard(one) => self.renews(one, false, rules),
            Step::GiveUp(one) => self.gives_up(one, rules),
            Step::CommandEnds(one) => {
                let client = &mut self.clients[one];
                let ends = client.command && !client.frozen;
                client.command &= !ends;
                // A client without gpuctl and watchdog is over once its command has ended.
                let is_alone = client.gpuctl == Process::None && client.watchdog == Process::None;
                if ends && is_alone {
                    client.ends();
                }
                ends
            }
            Step::Release(one) => self.releases(one, true, rules),
            Step::ReleaseUnheard(one) => self.releases(one, false, rules),
            Step::EndCommand(one) => {
                let client = &mut self.clients[one];
                let is_orphan = client.phase == Phase::Working && client.gpuctl == Process::None;
                let ends = is_orphan && client.command && client.watchdog_acts();
                client.command &= !ends;
                client.thawed &= !ends;
                ends
            }
            Step::HoldOn(one) => self.hold_on(one, rules),
            Step::Keep(one) => self.keep(one, rules),
            Step::Background(one) => self.background(one, rules),
            Step::BearerReleases { of, on } => self.bearer_releases(of, on, rules),
            Step::CallEnds => self.call_ends(rules),
            Step::Tick => self.tick(rules),
            _ => self.suffers(step, rules),
        }
    }

    pub fn may_attempt(&self, one: usize) -> bool {
        let client = &self.clients[one];
        match client.phase {
            Phase::Asked => client.gpuctl_acts(),
            Phase::Waiting => {
                self.next_on(client.machine) == Some(one) && !self.machine_is_held_beside(one)
            }
            _ => false,
        }
    }

    fn queue_up(&mut self, one: usize, rules: &Rules) -> bool {
        if self.clients[one].phase != Phase::Idle {
            return false;
        }
        self.arrivals += 1;
        let client = &mut self.clients[one];
        client.arrival = self.arrivals;
        (client.phase, client.gpuctl) = (Phase::Waiting, Process::Runs);
        self.attempt(one, true, rules);
        true
    }

    fn attempt(&mut self, one: usize, is_heard: bool, rules: &Rules) -> bool {
        if !self.may_attempt(one) {
            return false;
        }
        let answer = self.acquire(one, rules);
        let has_second = self.server.data.second.is_some();
        let client = &mut self.clients[one];
        match answer {
            _ if !is_heard => client.phase = Phase::Asked,
            Answer::Taken => (client.phase, client.lease) = (Phase::Taken, TTL),
            Answer::Busy => {
                client.phase = Phase::Waiting;
                client.watched_for = has_second.then(|| client.watched_for.unwrap_or(0));
            }
            Answer::Turn => client.phase = Phase::Waiting,
        }
        true
    }

    fn begin(&mut self, one: usize, rules: &Rules) -> bool {
        let client = &mut self.clients[one];
        let is_possible = client.phase == Phase::Taken
            && client.kind == Kind::Run
            && client.gpuctl_acts()
            && client.lease > rules.margin;
        if is_possible {
            (client.phase, client.command) = (Phase::Working, true);
            client.watchdog = if rules.watchdog { Process::Runs } else { Process::None };
        }
        is_possible
    }

    fn leave(&mut self, one: usize, rules: &Rules) -> bool {
        let client = self.clients[one];
        if client.phase != Phase::Taken || client.kind != Kind::ByHand || !client.gpuctl_acts() {
            return false;
        }
        let is_ours = self.renew(one, Renewal::Last, rules);
        let client = &mut self.clients[one];
        client.gpuctl = Process::None;
        (client.phase, client.record) = if is_ours { (Phase::Left, TTL) } else { (Phase::Done, 0) };
        true
    }

    fn join(&mut self, one: usize, rules: &Rules) -> bool {
        let client = self.clients[one];
        let is_left = client.phase == Phase::Left && client.record > 0 && !client.has_joined;
        if !is_left || !self.renew(one, Renewal::InTime, rules) {
            return false;
        }
        let client = &mut self.clients[one];
        (client.gpuctl, client.watchdog) = (Process::Runs, Process::Runs);
        (client.phase, client.command, client.has_joined) = (Phase::Working, true, true);
        client.lease = TTL;
        true
    }

    /// Reports whether the client that is called can take the lock at once, as it then does.
    pub fn is_followed(&self) -> bool {
        match self.server.data.called {
            Some(Called::Client(one)) => self.may_attempt(one as usize),
            Some(Called::Place(place)) => {
                self.next_on(place).is_some_and(|next| self.may_attempt(next))
            }
            None => false,
        }
    }

    /// Reports whether a step has to wait for clients that could look at the lock now, because it
    /// takes longer than their look.
    pub fn waits_for_lookers(&self, step: Step) -> bool {
        let takes_long = matches!(
            step,
            Step::QueueUp(_)
                | Step::CommandEnds(_)
                | Step::GiveUp(_)
                | Step::LegacySets
                | Step::CallEnds
                | Step::Tick
        );
        let is_in_queue = |one: usize| self.server.data.queue & (1 << one) != 0;
        let looks = |one: usize| self.may_attempt(one) && !is_in_queue(one);
        takes_long && (self.is_followed() || (0..CLIENTS).any(looks))
    }

    fn call_ends(&mut self, rules: &Rules) -> bool {
        let ends = rules.call_ends && self.server.data.called.is_some() && !self.is_followed();
        if ends {
            self.server.data.called = None;
        }
        ends
    }

    fn tick(&mut self, rules: &Rules) -> bool {
        let is_overdue = self.clients.iter().any(|client| client.is_overdue(rules.margin));
        let legacy_ends = matches!(self.server.data.key, Some((Value::Legacy, 1)));
        if is_overdue || self.is_followed() || (self.legacy == Legacy::Works && legacy_ends) {
            return false;
        }
        let called = self.server.data.called;
        self.server.tick();
        if !rules.call_ends {
            self.server.data.called = called;
        }
        self.clients.iter_mut().for_each(|client| client.tick());
        true
    }
}
