//! The faults that clients and the server suffer, and the steps of a program of the older kind.

use crate::client::{Phase, Process};
use crate::server::{Releaser, Value};
use crate::steps::Step;
use crate::world::{Kind, Legacy, Rules, TTL, World};

impl World {
    pub fn suffers(&mut self, step: Step, rules: &Rules) -> bool {
        match step {
            Step::KillGpuctl(one) => self.kill_gpuctl(one),
            Step::KillWatchdog(one) => {
                let client = &mut self.clients[one];
                let is_there = client.watchdog != Process::None;
                client.watchdog = Process::None;
                let is_over = client.gpuctl == Process::None && !client.command;
                if is_there && is_over && client.phase == Phase::Working {
                    client.ends();
                }
                client.keeps &= !is_there;
                is_there
            }
            Step::Stop(one) => {
                let client = &mut self.clients[one];
                let stops = client.gpuctl == Process::Runs;
                if stops {
                    client.gpuctl = Process::Stopped;
                }
                stops
            }
            Step::Continue(one) => {
                let client = &mut self.clients[one];
                let continues = client.gpuctl == Process::Stopped;
                if continues {
                    client.gpuctl = Process::Runs;
                }
                continues
            }
            Step::Freeze(one) => {
                let client = &mut self.clients[one];
                let freezes =
                    client.kind == Kind::Run && client.phase == Phase::Working && !client.frozen;
                client.frozen |= freezes;
                freezes
            }
            Step::Thaw(one) => {
                let client = &mut self.clients[one];
                let thaws = client.frozen;
                if thaws {
                    client.frozen = false;
                    client.thawed = client.command && client.lease <= 0;
                }
                thaws
            }
            Step::Interrupt(one) => {
                let is_waiting = self.clients[one].waits_in_line();
                if is_waiting {
                    self.release(one, Releaser::Holder, None, rules);
                    self.clients[one].ends();
                }
                is_waiting
            }
            Step::LegacySets => {
                let sets = self.legacy == Legacy::Idle && self.server.data.key.is_none();
                if sets {
                    self.server.data.key = Some((Value::Legacy, TTL));
                    self.legacy = Legacy::Works;
                }
                sets
            }
            Step::LegacyGets => {
                let gets = self.legacy == Legacy::Works;
                if gets {
                    let is_its = matches!(self.server.data.key, Some((Value::Legacy, _)));
                    self.legacy = if is_its { Legacy::Deletes } else { Legacy::Done };
                }
                gets
            }
            Step::LegacyDeletes => {
                let deletes = self.legacy == Legacy::Deletes;
                if deletes {
                    self.server.data.key = None;
                    self.legacy = Legacy::Done;
                }
                deletes
            }
            Step::Delete => self.server.data.key.take().is_some(),
            Step::Flush => {
                self.server.flush();
                true
            }
            Step::JumpAhead => {
                self.server.jump(true);
                true
            }
            Step::JumpBack => {
                self.server.jump(false);
                true
            }
            Step::FailOver { to_empty } => {
                self.server.fail_over(to_empty);
                true
            }
            _ => false,
        }
    }

    fn kill_gpuctl(&mut self, one: usize) -> bool {
        let client = &mut self.clients[one];
        if client.gpuctl == Process::None {
            return false;
        }
        client.gpuctl = Process::None;
        let is_over = client.watchdog == Process::None && !client.command;
        if is_over || matches!(client.phase, Phase::Waiting | Phase::Asked | Phase::Taken) {
            client.ends();
        }
        true
    }
}
