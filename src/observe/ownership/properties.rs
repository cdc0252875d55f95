//! Checks what holds of every decision, whatever runs, on random process tables in which any
//! process may show anything.

use super::worlds::{GPUCTL, World, start_of};
use super::*;
use crate::properties::settings;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const SERVICES: usize = 3;
const FIRST: Pid = 100;
const NAMES: [&str; 6] = ["python", "python", "python", "bash", "tmux: server", "gpuctl"];

#[derive(Clone, Debug)]
struct Member {
    parent: Index,
    place: Kinship,
    is_orphan: bool,
    is_gone: bool,
    name: &'static str,
    shown: Option<Shown>,
}

/// How the group and session of a process relate to those of its parent.
#[derive(Clone, Copy, Debug)]
enum Kinship {
    OfItsParent,
    OwnGroup,
    OwnSession,
}

#[derive(Clone, Debug)]
struct Shown {
    is_bystander: bool,
    is_contained: bool,
    control_group: Vec<usize>,
    log: Vec<usize>,
    mark: Option<usize>,
    matches: Vec<usize>,
    is_on_card: bool,
    listens: Option<usize>,
}

#[derive(Clone, Debug)]
struct Bid {
    is_native: bool,
    has_port: bool,
    container: Option<Index>,
    /// The recorded processes, and whether the number belonged to another process at that time.
    recorded: Vec<(Index, bool)>,
}

fn members() -> impl Strategy<Value = Member> {
    let place = select(&[Kinship::OfItsParent, Kinship::OwnGroup, Kinship::OwnSession][..]);
    let odds = prop::bool::weighted;
    (any::<Index>(), place, odds(0.3), odds(0.1), select(&NAMES[..]), shown()).prop_map(
        |(parent, place, is_orphan, is_gone, name, shown)| Member {
            parent,
            place,
            is_orphan,
            is_gone,
            name,
            shown,
        },
    )
}

fn shown() -> impl Strategy<Value = Option<Shown>> {
    let odds = prop::bool::weighted;
    let service = || 0..SERVICES;
    let few = || prop::sample::subsequence(vec![0, 1, 2], 0..=SERVICES);
    let seldom = move || prop_oneof![4 => Just(Vec::new()), 1 => few()];
    let shown = (
        odds(0.1),
        odds(0.1),
        seldom(),
        seldom(),
        prop::option::weighted(0.2, service()),
        prop_oneof![Just(Vec::new()), few()],
        any::<bool>(),
        prop::option::weighted(0.3, service()),
    );
    let shown = shown.prop_map(
        |(is_bystander, is_contained, control_group, log, mark, matches, is_on_card, listens)| {
            Shown {
                is_bystander,
                is_contained,
                control_group,
                log,
                mark,
                matches,
                is_on_card,
                listens,
            }
        },
    );
    prop::option::weighted(0.5, shown)
}

fn bids() -> impl Strategy<Value = Bid> {
    let recorded = vec((any::<Index>(), prop::bool::weighted(0.2)), 0..=2);
    let container = prop::option::weighted(0.3, any::<Index>());
    (any::<bool>(), any::<bool>(), container, recorded).prop_map(
        |(is_native, has_port, container, recorded)| Bid {
            is_native,
            has_port,
            container: container.filter(|_| !is_native),
            recorded: if is_native { recorded } else { Vec::new() },
        },
    )
}

/// A world, and the process in it that stands for gpuctl: the one below the login's shell, or any
/// other.
#[derive(Clone, Debug)]
struct Case {
    members: Vec<Member>,
    bids: Vec<Bid>,
    caller: Option<Index>,
}

fn cases() -> impl Strategy<Value = Case> {
    let caller = prop::option::weighted(0.3, any::<Index>());
    (vec(members(), 1..=16), vec(bids(), SERVICES), caller)
        .prop_map(|(members, bids, caller)| Case { members, bids, caller })
}

impl Case {
    fn world(&self) -> (World, Pid) {
        let mut world = World::new(SERVICES);
        let pid_of = |at: usize| FIRST + at as Pid;
        let mut places: Vec<(Pid, Pid)> = Vec::new();
        for (at, member) in self.members.iter().enumerate() {
            let pid = pid_of(at);
            let parent = (at > 0).then(|| member.parent.index(at));
            let of_parent = parent.map_or((pid, pid), |parent| places[parent]);
            let (group, session) = match member.place {
                Kinship::OfItsParent => of_parent,
                Kinship::OwnGroup => (pid, of_parent.1),
                Kinship::OwnSession => (pid, pid),
            };
            places.push((group, session));
            if member.is_gone {
                continue;
            }
            let parent = parent.filter(|at| !member.is_orphan && !self.members[*at].is_gone);
            world.add(pid, parent.map_or(1, pid_of), group, session, member.name);
            let Some(shown) = &member.shown else { continue };
            *world.shows(pid) = Evidence {
                is_bystander: shown.is_bystander,
                is_contained: shown.is_contained,
                control_group: shown.control_group.clone(),
                log: shown.log.clone(),
                mark: shown.mark,
                matches: shown.matches.clone(),
                is_on_card: shown.is_on_card,
            };
            if let Some(service) = shown.listens {
                world.listens(pid, port_of(service));
            }
        }
        let pid = |index: &Index| pid_of(index.index(self.members.len()));
        for (service, bid) in self.bids.iter().enumerate() {
            let claim = world.claim(service);
            claim.is_native = bid.is_native;
            claim.port = bid.has_port.then(|| port_of(service));
            claim.containers = bid.container.iter().map(pid).collect();
            claim.recorded = bid
                .recorded
                .iter()
                .map(|(at, was_another)| Id {
                    pid: pid(at),
                    start: start_of(pid(at)) - u64::from(*was_another),
                })
                .collect();
        }
        let is_there = |at: &usize| !self.members[*at].is_gone;
        let caller = self.caller.map(|at| at.index(self.members.len())).filter(is_there);
        (world, caller.map_or(GPUCTL, pid_of))
    }

    /// Returns what a process shows that may prove something, and the services that have recorded
    /// the process or the maker of its group or session, or whose container's main process it is.
    fn proofs(&self, process: &Process) -> (Option<&Shown>, BTreeSet<usize>) {
        let at = usize::try_from(process.pid - FIRST).ok();
        let shown = at.and_then(|at| self.members.get(at)?.shown.as_ref());
        let own = [process.pid, process.group, process.session];
        let is_one = |index: &Index, of: &[Pid]| {
            of.contains(&(FIRST + index.index(self.members.len()) as Pid))
        };
        let of_it = |bid: &Bid| {
            bid.recorded.iter().any(|(at, _)| is_one(at, &own))
                || bid.container.iter().any(|at| is_one(at, &own[..1]))
        };
        let bids = self.bids.iter().enumerate().filter(|(_, bid)| of_it(bid));
        (shown, bids.map(|(service, _)| service).collect())
    }
}

fn port_of(service: usize) -> u16 {
    8000 + service as u16
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn no_process_has_two_owners(case in cases()) {
        let (world, me) = case.world();
        let ownership = world.decide(me);
        let mut owned = HashSet::new();
        for pid in (0..SERVICES).flat_map(|service| ownership.members(service)) {
            prop_assert!(owned.insert(pid), "{} has two owners", pid);
        }
        let doubtful = ownership.disputes.iter().map(|dispute| dispute.pid);
        for pid in doubtful.chain(ownership.unproven.iter().map(|(_, pid)| *pid)) {
            prop_assert!(!owned.contains(&pid), "{} is owned and in doubt", pid);
        }
        prop_assert!(ownership.disputes.iter().all(|dispute| dispute.services.len() > 1));
    }

    #[test]
    fn what_is_never_part_of_a_service_has_no_owner(case in cases()) {
        let (world, me) = case.world();
        let (ownership, table) = (world.decide(me), world.table(me));
        let callers = table.callers();
        for process in table.iter() {
            let is_never = process.pid == 1
                || ["gpuctl", "tmux: server"].contains(&process.name.as_str())
                || callers.contains(&process.pid);
            let told = || ownership.disputes.iter().any(|dispute| dispute.pid == process.pid)
                || ownership.unproven.iter().any(|(_, pid)| *pid == process.pid);
            prop_assert!(!is_never || (ownership.of(process.pid).is_none() && !told()), "{:?}", process);
        }
    }

    #[test]
    fn nothing_of_a_container_is_a_native_services(case in cases()) {
        let (world, me) = case.world();
        let (ownership, table) = (world.decide(me), world.table(me));
        for process in table.iter() {
            let is_contained = case.proofs(process).0.is_some_and(|shown| shown.is_contained);
            let owner = ownership.of(process.pid);
            prop_assert!(!is_contained || owner.is_none_or(|owner| !case.bids[owner.service].is_native));
        }
    }

    /// A process that shows nothing itself has an ancestor, or a leader of its group or session,
    /// that belongs to the same owner.
    #[test]
    fn a_stranger_is_never_owned(case in cases()) {
        let (world, me) = case.world();
        let (ownership, table) = (world.decide(me), world.table(me));
        for process in table.iter() {
            let Some(owner) = ownership.of(process.pid) else { continue };
            let (shown, bids) = case.proofs(process);
            let shows = shown.is_some_and(|shown| {
                shown.control_group.contains(&owner.service)
                    || shown.log.contains(&owner.service)
                    || shown.mark == Some(owner.service)
                    || shown.matches.contains(&owner.service)
            });
            let mut related =
                table.ancestors(process.pid).chain([process.group, process.session]);
            let is_of_it = |pid: Pid| ownership.of(pid).is_some_and(|it| it.service == owner.service);
            prop_assert!(
                shows || bids.contains(&owner.service) || related.any(is_of_it),
                "{:?} is owned by {:?}", process, owner
            );
        }
    }

    /// A process may set its title, clear its environment and leave its session.
    #[test]
    fn what_comes_of_a_recorded_start_and_shows_nothing_is_owned_by_it(case in cases()) {
        let (world, me) = case.world();
        let (ownership, table) = (world.decide(me), world.table(me));
        let callers = table.callers();
        let is_barrier = |pid: Pid| pid == 1 || callers.contains(&pid)
            || table.get(pid).is_none_or(|it| ["gpuctl", "tmux: server"].contains(&it.name.as_str()));
        for process in table.iter() {
            let mut line = vec![process.pid];
            line.extend(table.ancestors(process.pid).take_while(|pid| !is_barrier(*pid)));
            if is_barrier(process.pid) {
                continue;
            }
            let mut owners = BTreeSet::new();
            for pid in &line {
                let (shown, bids) = case.proofs(table.get(*pid).expect("one of the table"));
                let shows_nothing = shown.is_none_or(|it| {
                    it.control_group.is_empty() && it.log.is_empty() && !it.is_contained
                });
                if !shows_nothing {
                    owners.clear();
                    break;
                }
                owners.extend(bids);
            }
            let is_recorded = |service: usize| line.iter().any(|pid| {
                let known = |(at, was_another): &(Index, bool)| {
                    !was_another && FIRST + at.index(case.members.len()) as Pid == *pid
                };
                case.bids[service].recorded.iter().any(known)
            });
            if let (1, Some(service)) = (owners.len(), owners.first())
                && is_recorded(*service)
            {
                let owner = ownership.of(process.pid);
                prop_assert!(
                    owner.is_some_and(|it| it.service == *service || it.proof < Proof::Start),
                    "{:?} is owned by {:?}, not {}", process, owner, service
                );
            }
        }
    }
}
