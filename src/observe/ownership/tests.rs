//! Decides who owns the processes of small worlds: each proof, which proof is the stronger, and
//! what is never part of a service.

use super::worlds::{GPUCTL, SHELL, SSHD, SYSTEMD, World, start_of};
use super::*;

const NONE: [Pid; 0] = [];
const ALL: [Proof; 5] =
    [Proof::ControlGroup, Proof::Container, Proof::Start, Proof::Mark, Proof::Match];

#[test]
fn each_proof_gives_a_process_and_its_descendants_to_the_service() {
    for proof in ALL {
        let mut world = World::new(1);
        world.leader(100, SYSTEMD, "python");
        world.job(101, 100, "worker");
        world.leader(102, 101, "worker");
        world.leader(200, SYSTEMD, "python");
        world.proves(100, 0, proof);
        let ownership = world.decide(GPUCTL);
        assert_eq!(ownership.members(0), [100, 101, 102], "{proof:?}");
        assert_eq!(ownership.of(100), Some(Owner { service: 0, proof }));
        assert!(ownership.unproven.is_empty() && ownership.disputes.is_empty(), "{proof:?}");
    }
}

#[test]
fn the_stronger_of_two_proofs_decides() {
    for (at, strong) in ALL.into_iter().enumerate() {
        for weak in ALL.into_iter().skip(at + 1) {
            let mut world = World::new(2);
            world.leader(100, SYSTEMD, "python");
            world.child(101, 100, "worker");
            world.proves(100, 0, strong);
            world.proves(100, 1, weak);
            let ownership = world.decide(GPUCTL);
            let owner = Some(Owner { service: 0, proof: strong });
            assert_eq!(ownership.of(100), owner, "{strong:?} against {weak:?}");
            assert_eq!(ownership.of(101), owner, "{strong:?} against {weak:?}");
            assert!(ownership.disputes.is_empty() && ownership.unproven.is_empty());
        }
    }
}

/// `Proof::Mark` is left out, because a mark names only one service.
#[test]
fn two_proofs_of_the_same_strength_are_disputed_and_nobodys() {
    for proof in ALL.into_iter().filter(|proof| *proof != Proof::Mark) {
        let mut world = World::new(3);
        world.leader(100, SYSTEMD, "python");
        world.proves(100, 0, proof);
        world.proves(100, 2, proof);
        let ownership = world.decide(GPUCTL);
        let disputes = [Dispute { pid: 100, services: BTreeSet::from([0, 2]) }];
        assert_eq!(ownership.disputes, disputes, "{proof:?}");
        assert_eq!(ownership.of(100), None, "{proof:?}");
        assert!(ownership.unproven.is_empty(), "{proof:?}: {:?}", ownership.unproven);
    }
}

/// A process inherits a proof that is as strong as its parent's own.
#[test]
fn a_descendant_is_not_taken_by_a_weaker_proof_of_its_own() {
    for (at, strong) in ALL.into_iter().enumerate() {
        for weak in ALL.into_iter().skip(at + 1) {
            let mut world = World::new(2);
            world.leader(100, SYSTEMD, "python");
            world.leader(101, 100, "python");
            world.proves(100, 0, strong);
            world.proves(101, 1, weak);
            let ownership = world.decide(GPUCTL);
            assert_eq!(ownership.members(0), [100, 101], "{strong:?} above {weak:?}");
        }
    }
}

#[test]
fn a_match_alone_and_a_match_on_the_card_beside_a_port_prove_nothing() {
    for (port, is_on_card) in [(None, false), (Some(8188), false), (Some(8188), true)] {
        let mut world = World::new(1);
        world.claim(0).port = port;
        world.leader(100, SYSTEMD, "python");
        world.shows(100).matches.push(0);
        world.shows(100).is_on_card = is_on_card;
        assert_eq!(world.first(), (vec![], vec![100]), "{port:?} {is_on_card}");
    }
}

#[test]
fn of_two_families_that_match_the_one_that_listens_is_the_services() {
    let mut world = World::new(1);
    for parent in [100, 200] {
        world.leader(parent, SYSTEMD, "sh");
        world.child(parent + 1, parent, "python");
        world.child(parent + 2, parent + 1, "worker");
        world.shows(parent + 1).matches.push(0);
        world.shows(parent + 1).is_on_card = true;
    }
    world.claim(0).port = Some(8188);
    world.listens(102, 8188);
    assert_eq!(world.first(), (vec![101, 102], vec![201]));
}

#[test]
fn without_a_port_the_only_matching_family_on_the_card_is_the_services() {
    let mut world = World::new(1);
    for pid in [100, 200] {
        world.leader(pid, SYSTEMD, "python");
        world.shows(pid).matches.push(0);
    }
    world.shows(100).is_on_card = true;
    assert_eq!(world.first(), (vec![100], vec![200]));
    world.shows(200).is_on_card = true;
    assert_eq!(world.first(), (vec![], vec![100, 200]), "either may be a stranger");
}

#[test]
fn who_listens_in_its_place_is_named_and_left_alone() {
    let mut world = World::new(1);
    world.claim(0).port = Some(8188);
    world.leader(100, SYSTEMD, "python");
    world.listens(100, 8188);
    world.leader(200, SYSTEMD, "worker");
    world.listens(200, 8188);
    assert_eq!(world.first(), (vec![], vec![100, 200]));
    world.leader(300, SYSTEMD, "python");
    world.record(0, 300);
    assert_eq!(world.first(), (vec![300], vec![]), "it is somebody else's port after all");
}

#[test]
fn a_viewer_that_matches_is_neither_the_services_nor_named() {
    let mut world = World::new(1);
    world.job(100, SHELL, "tail");
    world.shows(100).matches.push(0);
    world.shows(100).is_bystander = true;
    world.shows(100).is_on_card = true;
    assert_eq!(world.first(), (vec![], vec![]));
}

#[test]
fn a_careless_pattern_takes_no_more_than_the_job_that_listens() {
    for is_ours in [true, false] {
        let mut world = World::new(1);
        world.leader(20, SSHD, "sshd");
        world.leader(21, 20, "bash");
        world.job(22, 21, "training");
        world.claim(0).port = Some(8188);
        let shell = if is_ours { SHELL } else { 21 };
        world.job(100, shell, "sh");
        world.child(101, 100, "python");
        world.child(102, 101, "worker");
        world.job(200, shell, "vim");
        world.listens(102, 8188);
        let matching = [SYSTEMD, SSHD, SHELL, GPUCTL, 20, 21, 22, 100, 101, 102, 200];
        matching.into_iter().for_each(|pid| world.shows(pid).matches.push(0));
        let (members, unproven) = world.first();
        assert_eq!(members, [100, 101, 102], "{is_ours}");
        assert_eq!(unproven, [20, 21, 22, 200], "{is_ours}");
    }
}

#[test]
fn in_the_callers_group_a_match_takes_the_server_and_not_what_runs_beside_it() {
    let mut world = World::new(1);
    world.claim(0).port = Some(8188);
    // Process 20 runs a script without job control, which has called gpuctl.
    world.end(GPUCTL);
    world.job(20, SHELL, "sh");
    world.child(GPUCTL, 20, "gpuctl");
    world.child(100, 20, "python");
    world.child(101, 100, "worker");
    world.child(102, 20, "training");
    world.listens(100, 8188);
    [20, 100, 102].into_iter().for_each(|pid| world.shows(pid).matches.push(0));
    assert_eq!(world.first(), (vec![100, 101], vec![102]));
}

#[test]
fn a_recorded_start_owns_its_session_its_group_and_all_that_comes_of_them() {
    let mut world = World::new(1);
    world.leader(100, SYSTEMD, "sh");
    world.child(101, 100, "python");
    world.job(102, 101, "retitled");
    world.leader(103, 102, "renamed");
    world.leader(104, SYSTEMD, "stranger");
    world.record(0, 100);
    world.end(101);
    assert_eq!(world.first().0, [100, 102, 103], "the parent of 102 is gone, its session is not");
    world.end(100);
    assert_eq!(world.first().0, [102, 103], "so has the first one");
    world.end(102);
    assert_eq!(world.first().0, NONE, "nothing ties 103 to the start but its output");
    world.shows(103).log.push(0);
    assert_eq!(world.first().0, [103]);
}

#[test]
fn a_number_that_was_given_again_proves_nothing() {
    let mut world = World::new(1);
    world.leader(100, SYSTEMD, "stranger");
    world.child(101, 100, "stranger");
    world.claim(0).recorded.push(Id { pid: 100, start: start_of(100) - 1 });
    assert_eq!(world.first().0, NONE);
}

#[test]
fn a_session_older_than_the_recorded_process_is_not_of_its_making() {
    let mut world = World::new(1);
    world.add(90, SYSTEMD, 100, 100, "stranger");
    world.record(0, 100);
    assert_eq!(world.first().0, NONE);
}

#[test]
fn who_only_looks_at_the_log_is_no_part_of_the_start() {
    let mut world = World::new(1);
    world.leader(100, SYSTEMD, "python");
    world.job(101, SHELL, "tail");
    for pid in [100, 101] {
        world.shows(pid).log.push(0);
    }
    world.shows(101).is_bystander = true;
    assert_eq!(world.first().0, [100]);
}

/// An adopted process was started by hand in the session of the caller, which calls gpuctl from the
/// same group.
#[test]
fn in_the_callers_own_session_a_recorded_process_owns_its_descendants_alone() {
    let mut world = World::new(1);
    world.child(100, SHELL, "python");
    world.child(101, 100, "worker");
    world.child(102, SHELL, "vim");
    world.record(0, 100);
    assert_eq!(world.first().0, [100, 101]);
    world.record(0, SHELL);
    assert_eq!(world.first().0, [100, 101], "nobody is shot from the chair he sits on");
}

#[test]
fn gpuctl_its_callers_and_the_first_process_belong_to_nobody_and_hand_nothing_on() {
    for proof in ALL {
        let mut world = World::new(1);
        world.job(13, SHELL, "gpuctl");
        for pid in [SYSTEMD, SSHD, SHELL, GPUCTL, 13] {
            world.proves(pid, 0, proof);
        }
        world.job(100, SHELL, "training");
        world.leader(101, SYSTEMD, "cron");
        assert_eq!(world.first(), (vec![], vec![]), "{proof:?}");
    }
}

/// tmux hands what the first start gave it to everything that anybody opens in it.
#[test]
fn of_a_multiplexer_with_the_services_marks_only_the_pane_that_serves_is_the_services() {
    for (name, proof) in [
        ("tmux: server", Proof::Mark),
        ("screen", Proof::Mark),
        ("SCREEN", Proof::ControlGroup),
        ("zellij", Proof::ControlGroup),
    ] {
        let mut world = World::new(1);
        let port = world.port(0);
        world.leader(100, SYSTEMD, name);
        world.leader(101, 100, "bash");
        world.child(102, 101, "python");
        world.leader(200, 100, "bash");
        world.child(201, 200, "training");
        for pid in [100, 101, 102, 200, 201] {
            world.proves(pid, 0, proof);
        }
        assert_eq!(world.first().0, NONE, "{name}: nobody listens yet");
        world.listens(102, port);
        assert_eq!(world.first().0, [101, 102], "{name}");
    }
}

#[test]
fn a_multiplexer_in_a_recorded_start_is_not_the_services_and_its_recorded_pane_is() {
    let mut world = World::new(1);
    world.leader(100, SYSTEMD, "sh");
    world.child(101, 100, "tmux: server");
    world.leader(102, 101, "python");
    world.leader(103, 101, "training");
    world.record(0, 100);
    world.record(0, 102);
    assert_eq!(world.first().0, [100, 102]);
}

#[test]
fn what_is_in_a_container_is_part_of_no_native_service() {
    for proof in ALL.into_iter().filter(|proof| *proof != Proof::Container) {
        let mut world = World::new(1);
        world.leader(100, SYSTEMD, "python");
        world.leader(101, SYSTEMD, "python");
        world.child(102, 101, "python");
        world.shows(100).is_contained = true;
        world.shows(102).is_contained = true;
        world.proves(100, 0, proof);
        world.proves(101, 0, proof);
        assert_eq!(world.first(), (vec![101], vec![]), "{proof:?}");
    }
}

#[test]
fn a_container_owns_what_descends_from_its_main_process_whatever_it_shows() {
    let mut world = World::new(2);
    world.leader(100, SYSTEMD, "containerd-shim");
    world.leader(101, 100, "python");
    world.leader(102, 101, "worker");
    world.leader(103, 100, "another container's");
    for pid in [101, 102, 103] {
        world.shows(pid).is_contained = true;
    }
    world.proves(101, 0, Proof::Container);
    world.proves(102, 1, Proof::Mark);
    world.proves(102, 1, Proof::Match);
    let ownership = world.decide(GPUCTL);
    assert_eq!(ownership.members(0), [101, 102]);
    assert_eq!(ownership.members(1), NONE);
    assert_eq!(ownership.of(103), None);
}

#[test]
fn what_is_proven_for_one_service_is_not_named_for_another_that_matches_it() {
    let mut world = World::new(2);
    world.leader(100, SYSTEMD, "python");
    world.proves(100, 1, Proof::Mark);
    world.shows(100).matches.push(0);
    world.shows(100).is_on_card = true;
    let ownership = world.decide(GPUCTL);
    assert_eq!((ownership.members(0), ownership.members(1)), (vec![], vec![100]));
    assert!(ownership.unproven.is_empty(), "{:?}", ownership.unproven);
}

#[test]
fn panes_that_a_start_has_made_are_told_from_older_ones_and_from_strangers() {
    let mut world = World::new(1);
    world.leader(100, SYSTEMD, "tmux: server");
    world.leader(101, 100, "bash");
    let panes = |world: &World| {
        let ownership = world.decide(GPUCTL);
        panes_since(&world.table(GPUCTL), &world.evidence, &ownership, 0, start_of(150))
    };
    assert!(!panes(&world).may_come, "an older pane");
    world.leader(200, 100, "bash");
    world.child(201, 200, "conda");
    assert!(panes(&world).may_come && panes(&world).marked.is_empty());
    world.shows(200).mark = Some(0);
    world.shows(201).mark = Some(0);
    assert_eq!(panes(&world).marked, [Id { pid: 200, start: start_of(200) }]);
    world.record(0, 200);
    assert!(!panes(&world).may_come && panes(&world).marked.is_empty(), "it is known already");
}
