//! Tests that the doctor finds faults of health checks and ports, and services that are not well.

use super::{Machine, finds};
use rig::until;
use std::net::TcpStream;

#[test]
fn a_stranger_on_a_services_port_is_found_whether_it_passes_for_healthy_or_not() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let disguised = machine.vidi.command().replace(machine.vidi.mark(), &rig.mark("stranger"));
    let stranger = rig.by_hand(&disguised);
    until("the stranger answers", || machine.vidi.is_healthy());
    let named = format!("process {} (simserver) answers on port", stranger.pid());
    finds(machine.doctor(), &[("fail", "service.port vidi", &named, "give vidi another port")]);
    drop(stranger);

    let unwell = rig.by_hand(&format!("{disguised} --health 500"));
    let address = machine.vidi.url("").replace("http://", "");
    until("the stranger listens", || TcpStream::connect(&address).is_ok());
    let named = format!("process {} (simserver) is listening on port", unwell.pid());
    finds(machine.doctor(), &[("fail", "service.port vidi", &named, "stop that one")]);
}

#[test]
fn services_that_share_a_port_are_found_and_it_is_a_fault_in_one_phase_only() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.set("services.voice.health", machine.vidi.url("/elsewhere"));
    let fix = "give one of them another port";
    let both = ("fail", "service.shared voice", "as vidi, and phase 2 needs both at once", fix);
    finds(machine.doctor(), &[both]);
    rig.set("services.voice.phases", vec![3]);
    let one_at_a_time =
        ("warn", "service.shared voice", "only one of the two can run at a time", fix);
    finds(machine.doctor(), &[one_at_a_time]);
    // A service that runs is no stranger to the one that shares its port.
    rig.gpuctl("start vidi --quiet").run().succeeds();
    rig.set("services.voice.health", machine.vidi.url("/health"));
    finds(machine.doctor(), &[one_at_a_time]);
}

#[test]
fn a_canary_on_a_services_port_is_found() {
    let machine = Machine::new();
    let port: i64 = machine.vidi.url("").rsplit(':').next().unwrap().parse().unwrap();
    machine.rig.set("canary.port", port);
    let fault = ("fail", "service.shared vidi", "uses the canary's port", "another canary.port");
    finds(machine.doctor(), &[fault]);
}

#[test]
fn a_health_check_or_an_unload_call_of_another_server_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.set("services.vidi.unload.url", machine.vidi.url("/free"));
    finds(machine.doctor(), &[]);
    rig.set("services.vidi.unload.url", "http://127.0.0.1:1");
    let unload = ("warn", "service.unload vidi", "is not the server", "services.vidi.unload.url");
    finds(machine.doctor(), &[unload]);
    rig.set("services.voice.health", "tcp://gpuctl.invalid:80");
    let health = ("warn", "service.health voice", "is not on localhost", "services.voice.health");
    finds(machine.doctor(), &[unload, health]);
}

#[test]
fn a_service_that_is_not_healthy_in_its_time_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let _server = rig.by_hand(&format!("{} --health 500", machine.vidi.command()));
    until("it listens", || {
        let status = rig.gpuctl("status --json").run().succeeds().json();
        status["services"]["vidi"].to_string().contains("answers 500")
    });
    finds(machine.doctor(), &[]);
    rig.set("services.vidi.start_timeout", "1ms");
    until("it has been there for longer than that", || {
        let status = rig.gpuctl("status --json").run().succeeds().json();
        status["services"]["vidi"]["state"] == "error"
    });
    let fault =
        ("fail", "service.state vidi", "answers 500", "whether services.vidi.health is right");
    finds(machine.doctor(), &[fault]);
}
