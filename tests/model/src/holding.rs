//! The steps by which the lock is held and given back: those of gpuctl, of its watchdog, and of a
//! bearer, who knows the token of a lock by hand. Each step returns whether it was possible.

use crate::client::{Phase, Process};
use crate::server::{Releaser, Renewal};
use crate::world::{Kind, Rules, TTL, World};

impl World {
    pub fn renews(&mut self, one: usize, is_heard: bool, rules: &Rules) -> bool {
        let client = self.clients[one];
        let may = client.phase == Phase::Working && client.gpuctl_acts() && client.command;
        if !may || (client.lease == TTL && !client.thawed) {
            return false;
        }
        let how = if client.lease <= 0 { Renewal::Late } else { Renewal::InTime };
        let is_ours = self.renew(one, how, rules);
        let client = &mut self.clients[one];
        match is_ours {
            _ if !is_heard => {}
            true => (client.lease, client.thawed) = (TTL, false),
            // The lock is lost, so the command is ended.
            false => (client.command, client.thawed) = (false, false),
        }
        true
    }

    /// Gives up a lock that was not renewed in time because the server cannot be reached, and ends
    /// the command.
    pub fn gives_up(&mut self, one: usize, rules: &Rules) -> bool {
        let client = &mut self.clients[one];
        let is_over = client.lease <= rules.margin && !client.thawed;
        let gives_up = match client.phase {
            Phase::Working => client.command && client.gpuctl_acts() && is_over,
            Phase::Taken => client.gpuctl_acts() && is_over,
            _ => false,
        };
        if gives_up {
            (client.phase, client.command) = (Phase::Working, false);
        }
        gives_up
    }

    pub fn releases(&mut self, one: usize, is_heard: bool, rules: &Rules) -> bool {
        let client = self.clients[one];
        if client.phase != Phase::Working || client.command || !client.gpuctl_acts() {
            return false;
        }
        match client.kind {
            Kind::Run => {
                let next = self.next_on(client.machine);
                self.release(one, Releaser::Holder, next, rules);
            }
            Kind::ByHand => self.gives_back(one, rules),
        }
        if is_heard {
            self.clients[one].ends();
        }
        true
    }

    /// Gives back a lock by hand under which nothing works any more: leaves the lock to run out
    /// while its record lasts, and releases it otherwise.
    fn gives_back(&mut self, one: usize, rules: &Rules) {
        if self.clients[one].record > 0 {
            self.renew(one, Renewal::Last, rules);
        } else {
            let next = self.next_on(self.clients[one].machine);
            self.release(one, Releaser::Holder, next, rules);
        }
    }

    /// Lets the watchdog renew the lock while gpuctl is stopped, or after all of the client was
    /// frozen; ends the command if the lock is lost.
    pub fn hold_on(&mut self, one: usize, rules: &Rules) -> bool {
        let client = self.clients[one];
        let is_silent = client.gpuctl == Process::Stopped || client.thawed;
        let is_due = client.lease <= rules.margin && client.command;
        if client.phase != Phase::Working || !client.watchdog_acts() || !is_silent || !is_due {
            return false;
        }
        let how = if client.thawed { Renewal::Late } else { Renewal::Unwanted };
        let is_ours = self.renew(one, how, rules);
        let client = &mut self.clients[one];
        client.thawed = false;
        match is_ours {
            true => client.lease = TTL,
            false => (client.command, client.watchdog) = (false, Process::None),
        }
        true
    }

    /// Lets the watchdog keep the lock for what is left in the background, and give it back once
    /// that has ended. If gpuctl has died, the watchdog gives the lock back once the command is
    /// ended.
    pub fn keep(&mut self, one: usize, rules: &Rules) -> bool {
        let client = self.clients[one];
        let is_after_gpuctl = client.phase == Phase::Working && client.gpuctl == Process::None;
        if !client.watchdog_acts() || !(client.keeps || is_after_gpuctl) {
            return false;
        }
        if client.command {
            if !client.keeps || client.lease == TTL {
                return false;
            }
            let is_ours = self.renew(one, Renewal::Late, rules);
            let client = &mut self.clients[one];
            client.lease = TTL;
            if !is_ours {
                client.command = false;
                client.ends();
            }
            return true;
        }
        match client.kind {
            Kind::Run => {
                let next = self.next_on(client.machine);
                self.release(one, Releaser::Holder, next, rules);
            }
            Kind::ByHand => self.gives_back(one, rules),
        }
        self.clients[one].ends();
        true
    }

    pub fn background(&mut self, one: usize, rules: &Rules) -> bool {
        let client = self.clients[one];
        let acts = client.phase == Phase::Working && client.command && client.gpuctl_acts();
        // A client whose time is over ends what its command has left.
        if !acts || client.thawed || client.lease <= rules.margin {
            return false;
        }
        let is_kept = rules.keeper && self.renew(one, Renewal::Late, rules);
        let client = &mut self.clients[one];
        client.command = is_kept || !rules.keeper;
        client.ends();
        client.keeps = is_kept;
        if is_kept {
            (client.watchdog, client.lease) = (Process::Runs, TTL);
        }
        true
    }

    pub fn bearer_releases(&mut self, of: usize, on: u8, rules: &Rules) -> bool {
        let client = self.clients[of];
        let is_by_hand =
            client.kind == Kind::ByHand && matches!(client.phase, Phase::Left | Phase::Working);
        if !is_by_hand {
            return false;
        }
        if on == client.machine {
            self.clients[of].record = 0;
            if client.phase == Phase::Working && client.holds_machine() {
                self.renew(of, Renewal::Late, rules);
                return true;
            }
        }
        self.release(of, Releaser::Bearer, self.next_on(on), rules);
        true
    }
}
