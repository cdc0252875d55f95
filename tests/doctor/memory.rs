//! Tests that the doctor finds services and phases that do not fit on the card, alone or beside
//! what strangers hold.

use super::{Machine, finds};
use rig::until;

#[test]
fn what_does_not_fit_on_the_card_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.set("services.vidi.vram_mb", 23552);
    let together = "vidi, voice need 26552 MB together, but the card has only 23552 MB";
    let phase = ("fail", "vram.phase 2", together, "to another phase");
    finds(machine.doctor(), &[phase]);
    rig.set("phases.2", "analysis");
    finds(machine.doctor(), &[("fail", "vram.phase 2 (analysis)", together, "vram_mb")]);

    rig.set("services.vidi.vram_mb", 23553);
    let service = ("fail", "vram.service vidi", "needs 23553 MB", "services.vidi.vram_mb");
    finds(machine.doctor(), &[service]);
    rig.set("gpu.reserve_mb", 0);
    rig.set("services.voice.phases", Vec::<i64>::new());
    finds(machine.doctor(), &[]);

    rig.set("gpu.reserve_mb", 24576);
    let reserve =
        ("fail", "vram.reserve", "leaves nothing of the card's 24576 MB", "lower gpu.reserve_mb");
    finds(machine.doctor(), &[reserve]);
}

#[test]
fn what_strangers_hold_of_a_phases_memory_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let program = machine.vidi.command().split(' ').next().unwrap().to_owned();
    let stranger = format!("{program} --name {} --vram 12000", rig.mark("stranger"));
    let _stranger = rig.by_hand(&stranger);
    until("it holds its memory", || rig.card.used_mb() == 12000);
    let message = "vllm need 12000 MB, but processes that belong to no service leave only 11552 MB at the moment";
    finds(machine.doctor(), &[("warn", "vram.phase 4", message, "gpuctl status")]);
}
