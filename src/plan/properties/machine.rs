//! Makes random machines, each a small card with some services on it, in every state, and works out
//! what a plan makes of them.

use crate::config::Config;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{
    GpuProcess, Mb, Observed, Presence, Running, Snapshot, Source, State, Trouble, Vram,
};
use crate::plan::{self, EvictHow, Plan, StartHow};
use proptest::collection::vec;
use proptest::prelude::*;
use std::fmt;
use std::sync::Arc;

/// Unit of all sizes, in MB. It leaves so few sizes that ties and exact fits are common, and what a
/// context keeps is only a part of a service.
const UNIT: u64 = 512;

/// A machine with one card and some services. All sizes are in MB.
#[derive(Clone)]
pub struct Computer {
    total: u64,
    reserve: u64,
    /// Memory held by others than services.
    desktop: u64,
    reading: Reading,
    pub members: Vec<Tenant>,
    config: Arc<Config>,
}

/// What is known of the card.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    Measured,
    /// There is no NVML, but `gpu.total_mb` is set.
    Estimated,
    Nothing,
}

#[derive(Clone)]
pub struct Tenant {
    pub name: String,
    pub vram: u64,
    pub priority: i64,
    pub phases: Vec<u32>,
    pub unloads: bool,
    pub shape: Shape,
    /// Memory that the service really holds.
    used: u64,
    /// Whether the service's processes are missing from the driver's list.
    hidden: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    Ready,
    Starting,
    Failing,
    Paused,
    Down,
    Stopping,
    Missing,
    Dead,
    /// The service's manager cannot be asked.
    Unknown,
}

#[derive(Clone, Debug)]
pub enum Call {
    Prepare { phase: u32, lazy: bool },
    Start { service: String, preempt: bool },
    Stop { services: Vec<String>, force: bool },
    ReleaseAll { force: bool },
}

pub fn machines() -> impl Strategy<Value = Computer> {
    let reading = prop_oneof![
        6 => Just(Reading::Measured),
        1 => Just(Reading::Estimated),
        1 => Just(Reading::Nothing),
    ];
    (8_u64..=24, 0_u64..=3, 0_u64..=6, reading, vec(members(), 2..=7)).prop_map(
        |(total, reserve, desktop, reading, mut members)| {
            let [total, reserve, desktop] = [total, reserve, desktop].map(|size| size * UNIT);
            // All services together hold no more than the card has.
            let mut room = total - desktop;
            for (member, name) in members.iter_mut().zip('a'..) {
                member.name = name.to_string();
                member.used = member.used.min(room);
                member.hidden &= member.used == member.vram && member.used > 0;
                room -= member.used;
            }
            let config = Arc::new(config(reserve, &members));
            Computer { total, reserve, desktop, reading, members, config }
        },
    )
}

fn members() -> impl Strategy<Value = Tenant> {
    use Shape::*;
    let shape = prop_oneof![
        6 => Just(Ready),
        4 => Just(Down),
        1 => prop::sample::select(&[Starting, Failing, Paused, Stopping, Missing, Dead, Unknown][..]),
    ];
    let held = prop_oneof![Just(None), (0_u64..=14).prop_map(Some)];
    let phases = prop::sample::subsequence(vec![1, 2], 0..=2);
    let odds = prop::bool::weighted;
    (0_u64..=12, 0_i64..=3, phases, odds(0.25), shape, held, odds(0.1)).prop_map(
        |(vram, priority, phases, unloads, shape, held, hidden)| Tenant {
            name: String::new(),
            vram: vram * UNIT,
            priority,
            phases,
            unloads,
            shape,
            used: match shape {
                Down | Missing | Dead => 0,
                _ => held.unwrap_or(vram) * UNIT,
            },
            hidden: hidden && matches!(shape, Ready | Starting | Failing),
        },
    )
}

fn config(reserve: u64, members: &[Tenant]) -> Config {
    let entry = |member: &Tenant| {
        let Tenant { name, vram, priority, phases, unloads, .. } = member;
        let evict = match unloads {
            true => "evict = 'unload'\nunload = { url = 'http://localhost:1' }\n",
            false => "",
        };
        format!(
            "[services.{name}]\ntype = 'native'\nstart = 'x'\nvram_mb = {vram}\n\
             priority = {priority}\nphases = {phases:?}\n{evict}"
        )
    };
    let entries: String = members.iter().map(entry).collect();
    let text = format!("gpu.reserve_mb = {reserve}\nphases.3 = 'crawl'\n{entries}");
    Config::of_text(&text).expect("a good configuration")
}

impl Tenant {
    pub fn is_alive(&self) -> bool {
        use Shape::*;
        matches!(self.shape, Ready | Starting | Failing | Paused)
    }

    pub fn can_be_stopped(&self) -> bool {
        self.is_alive() || self.shape == Shape::Stopping
    }

    pub fn may_run(&self) -> bool {
        self.is_alive() || self.shape == Shape::Unknown
    }

    fn observed(&self, reading: Reading) -> Observed {
        let failure = |code| Failure::new(code, format!("{:?}", self.shape));
        let up = |trouble| Presence::Up(Running { trouble, ..Running::default() });
        let (presence, state) = match self.shape {
            Shape::Ready => (up(None), State::Ready),
            Shape::Starting => (up(None), State::Starting),
            Shape::Failing => (up(None), State::Error),
            Shape::Paused => (up(Some(Trouble::Paused)), State::Error),
            Shape::Down => (Presence::Down(None), State::Stopped),
            Shape::Stopping => (Presence::Stopping(String::new()), State::Stopping),
            Shape::Missing => (Presence::Missing(failure(Code::NotFound)), State::Stopped),
            Shape::Dead => (Presence::Dead(failure(Code::StartFailed)), State::Error),
            Shape::Unknown => (Presence::Unknown(failure(Code::Unavailable)), State::Unknown),
        };
        Observed {
            name: self.name.clone(),
            presence,
            state,
            detail: None,
            health: None,
            answered_by: None,
            used: self.known_use(reading),
            jobs: None,
            jobs_unknown: None,
            works_silently: false,
            peak: None,
            kept: None,
            has_unloaded_before: false,
            idle: None,
            unproven: Vec::new(),
        }
    }

    fn known_use(&self, reading: Reading) -> Option<Mb> {
        let is_told = reading == Reading::Measured && !self.hidden && self.shape != Shape::Unknown;
        is_told.then_some(Mb(self.used))
    }
}

impl Computer {
    /// Returns commands of every kind that can be given on this machine.
    pub fn commands(&self) -> Vec<Call> {
        let mut commands = Vec::new();
        for phase in 1..=3 {
            commands.extend([false, true].map(|lazy| Call::Prepare { phase, lazy }));
        }
        for service in self.names() {
            let start = |preempt| Call::Start { service: service.clone(), preempt };
            commands.extend([false, true].map(start));
        }
        for force in [false, true] {
            let services = self.names().into_iter().step_by(2).collect();
            commands.extend([Call::Stop { services, force }, Call::ReleaseAll { force }]);
        }
        commands
    }

    pub fn plan(&self, command: &Call) -> Result<Plan> {
        let (config, snapshot) = (&self.config, self.snapshot());
        match command {
            Call::Prepare { phase, lazy } => plan::prepare_phase(config, &snapshot, *phase, *lazy),
            Call::Start { service, preempt } => {
                let service = config.service(service).expect("one of the machine's");
                plan::start(config, &snapshot, service, *preempt)
            }
            Call::Stop { services, force } => plan::stop(config, &snapshot, services, *force),
            Call::ReleaseAll { force } => plan::release_all(config, &snapshot, *force),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let services: Vec<_> = self.members.iter().map(|one| one.observed(self.reading)).collect();
        let size = |figure: u64| (self.reading != Reading::Nothing).then_some(Mb(figure));
        let desktop = GpuProcess {
            pid: 7,
            name: "Xorg".to_owned(),
            command: None,
            memory: Some(Mb(self.desktop)),
            service: None,
            is_ending: false,
            works: None,
            peak: None,
        };
        let is_measured = self.is_measured();
        let vram = Vram {
            source: if is_measured { Source::Nvml } else { Source::Estimate },
            total: size(self.total),
            used: size(self.in_use()),
            free: size(self.total.saturating_sub(self.in_use())),
            processes: is_measured.then(|| vec![desktop]),
            error: (!is_measured).then(|| "no driver".to_owned()),
            ..Vram::default()
        };
        Snapshot { vram, services, managed: Vec::new() }
    }

    /// Returns the memory in use, as far as it is known.
    pub fn in_use(&self) -> u64 {
        match self.is_measured() {
            true => self.held_by_all(),
            false => self.members.iter().filter(|one| one.may_run()).map(|one| one.vram).sum(),
        }
    }

    fn held_by_all(&self) -> u64 {
        self.desktop + self.members.iter().map(|one| one.used).sum::<u64>()
    }

    pub fn is_measured(&self) -> bool {
        self.reading == Reading::Measured
    }

    /// Returns the memory that services and others may take of the card together, or `None` if the
    /// card's size is not known.
    pub fn size(&self) -> Option<u64> {
        (self.reading != Reading::Nothing).then_some(self.total.saturating_sub(self.reserve))
    }

    /// Returns the memory that a service holds or, if that is not known, has to be presumed to
    /// hold.
    pub fn held(&self, member: &Tenant) -> u64 {
        let presumed = if member.may_run() { member.vram } else { 0 };
        member.known_use(self.reading).map_or(presumed, |used| used.0)
    }

    /// Reports whether it is known what a service holds.
    pub fn is_told(&self, member: &Tenant) -> bool {
        member.known_use(self.reading).is_some()
    }

    /// Returns the memory that is really free, beside the reserve.
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.held_by_all()).saturating_sub(self.reserve)
    }

    /// Returns the memory that all services together may really commit.
    pub fn capacity(&self) -> u64 {
        self.total.saturating_sub(self.reserve).saturating_sub(self.desktop)
    }

    /// Returns the memory that all services together really commit.
    pub fn committed(&self) -> u64 {
        let commits = |one: &Tenant| match one.is_alive() && !one.unloads {
            true => one.used.max(one.vram),
            false => one.used,
        };
        self.members.iter().map(commits).sum()
    }

    pub fn after_evictions(&self, plan: &Plan) -> Computer {
        let mut after = self.clone();
        for eviction in &plan.evict {
            let member = after.member_mut(&eviction.service);
            (member.used, member.hidden) = (0, false);
            if eviction.how != EvictHow::Unload {
                member.shape = Shape::Down;
            }
        }
        after
    }

    /// Returns the machine after the starts: each started service takes all that it has declared,
    /// as far as the card goes.
    pub fn after_starts(&self, plan: &Plan) -> Computer {
        let mut after = self.clone();
        for start in &plan.start {
            let left = after.total.saturating_sub(after.held_by_all());
            let member = after.member_mut(&start.service);
            member.shape = Shape::Ready;
            member.used += member.vram.saturating_sub(member.used).min(left);
            member.hidden &= start.how != StartHow::Start;
        }
        after
    }

    pub fn names(&self) -> Vec<String> {
        self.members.iter().map(|member| member.name.clone()).collect()
    }

    pub fn priority(&self, name: &str) -> i64 {
        self.member(name).priority
    }

    pub fn is_alive(&self, name: &str) -> bool {
        self.member(name).is_alive()
    }

    pub fn is_stopping(&self, name: &str) -> bool {
        self.member(name).shape == Shape::Stopping
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.member(name).shape == Shape::Ready
    }

    fn member(&self, name: &str) -> &Tenant {
        self.members.iter().find(|member| member.name == name).expect("one of the machine's")
    }

    fn member_mut(&mut self, name: &str) -> &mut Tenant {
        self.members.iter_mut().find(|member| member.name == name).expect("one of the machine's")
    }
}

impl fmt::Debug for Computer {
    /// Writes the card on the first line, and each service on a line of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Computer { total, reserve, desktop, reading, members, .. } = self;
        writeln!(f, "a card of {total}, reserve {reserve}, desktop {desktop} ({reading:?})")?;
        members.iter().try_for_each(|member| writeln!(f, "  {member:?}"))
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tenant { name, vram, priority, phases, unloads, shape, used, hidden } = self;
        write!(f, "{name}: {vram} MB, priority {priority}, phases {phases:?}")?;
        f.write_str(if *unloads { ", unloads" } else { "" })?;
        write!(f, "; {shape:?}, holds {used}")?;
        f.write_str(if *hidden { ", hidden" } else { "" })
    }
}
