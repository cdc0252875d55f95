//! The server and the scripts that run on it: `acquire`, `renew` and `release`, modelled after the
//! files of those names.

use crate::world::{CLIENTS, Promise, Rules, TTL, World};

/// Time to live that stands for "long": neither a tick nor a jump of the calendar changes it.
const FOR_LONG: i8 = 100;

/// The owner of the token that the lock's key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    Legacy,
    Of(u8),
}

/// The owner that the second record names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second {
    Of(u8),
    /// A holder that may have come in before the server with this number took over.
    Unknown(u8),
}

/// The client, or the machine, whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Called {
    /// This client.
    Client(u8),
    /// The client that is next on this machine.
    Place(u8),
}

/// The data that a server holds. Times are ticks until a record expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Data {
    pub key: Option<(Value, i8)>,
    pub second: Option<(Second, i8)>,
    /// Clients that wait, as a bit set; their arrival gives the order.
    pub queue: u8,
    pub called: Option<Called>,
    /// The last fence that was given, above which the next one lies.
    pub fence: u8,
    /// Number of the server that gave the lock last.
    pub known: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Server {
    pub id: u8,
    pub data: Data,
    /// Data of the replica, which has not heard of the last change.
    pub replica: Data,
    pub calendar: i8,
}

/// The way in which a lock is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The key has not expired as far as the holder knows.
    InTime,
    /// The key may have expired, and is set again if nobody came meanwhile.
    Late,
    /// The lock is renewed only if nobody waits for it.
    Unwanted,
    /// The lock is left to its time, without a second record.
    Last,
}

/// The party that releases the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releaser {
    Holder,
    /// A program that knows the token, while something else may work under it.
    Bearer,
}

/// The answer to a client that asks for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    Busy,
    /// The lock is free, but it is the turn of another client.
    Turn,
}

impl Data {
    const EMPTY: Data =
        Data { key: None, second: None, queue: 0, called: None, fence: 0, known: None };
}

impl Server {
    pub fn new() -> Server {
        Server { id: 0, data: Data::EMPTY, replica: Data::EMPTY, calendar: 1 }
    }

    /// Makes a replica the server: one that lacks the last change, or one that is empty.
    pub fn fail_over(&mut self, is_empty: bool) {
        let data = if is_empty { Data::EMPTY } else { self.replica };
        *self = Server { id: self.id + 1, data, replica: data, ..*self };
    }

    pub fn flush(&mut self) {
        self.data = Data::EMPTY;
    }

    pub fn tick(&mut self) {
        for left in self.data.times().chain(self.replica.times()) {
            if *left < FOR_LONG {
                *left -= 1;
            }
        }
        self.expire();
        self.data.called = None;
        self.replica.called = None;
    }

    pub fn jump(&mut self, is_ahead: bool) {
        for left in self.data.times().chain(self.replica.times()) {
            *left = match is_ahead {
                true if *left < FOR_LONG => 0,
                false if *left < FOR_LONG => (*left + TTL).min(2 * TTL),
                _ => *left,
            };
        }
        self.calendar += if is_ahead { 20 } else { -20 };
        self.expire();
    }

    fn expire(&mut self) {
        for data in [&mut self.data, &mut self.replica] {
            data.key = data.key.filter(|(_, left)| *left > 0);
            data.second = data.second.filter(|(_, left)| *left > 0);
        }
    }
}

impl Data {
    fn times(&mut self) -> impl Iterator<Item = &mut i8> {
        let key = self.key.iter_mut().map(|(_, left)| left);
        key.chain(self.second.iter_mut().map(|(_, left)| left))
    }
}

impl World {
    /// Leaves the replica with the data from before a change, since it does not hear of changes at
    /// once.
    fn changes(&mut self) {
        if self.faults.fail_over > 0 {
            self.server.replica = self.server.data;
        }
    }

    pub fn acquire(&mut self, client: usize, rules: &Rules) -> Answer {
        self.changes();
        let me = client as u8;
        let place = self.clients[client].machine;
        let id = self.server.id;
        if rules.server_id && self.is_other_server() {
            self.server.data.second = Some((Second::Unknown(id), TTL));
            self.server.data.known = Some(id);
            self.second_is_another();
        }
        let data = &mut self.server.data;
        if let Some((Value::Of(holder), left)) = &mut data.key
            && *holder == me
        {
            *left = TTL;
            if self.clients[client].is_renewed() {
                self.renew_second(client, rules);
            }
            return Answer::Taken;
        }
        let clients = self.clients;
        let was_here = |of: u8| !rules.place || clients[of as usize].machine == place;
        if let Some((Value::Of(holder), _)) = data.key
            && was_here(holder)
        {
            data.key = None;
        }
        let over = self.clients[client].watched_for.is_some_and(|ticks| ticks >= TTL);
        if let Some((second, _)) = data.second
            && (over || matches!(second, Second::Of(holder) if was_here(holder)))
        {
            data.second = None;
        }
        let mut is_busy = data.key.is_some();
        if !is_busy && let Some((_, left)) = &mut data.second {
            *left = (*left).min(TTL);
            is_busy = true;
        }
        self.drop_silent();
        self.server.data.queue |= 1 << me;
        if is_busy {
            self.server.data.called = None;
            return Answer::Busy;
        }
        let first = self.first_in_queue();
        let data = &mut self.server.data;
        let is_turn =
            data.called == Some(Called::Client(me)) || data.called == Some(Called::Place(place));
        if rules.calls && !is_turn && (data.called.is_some() || first != Some(client)) {
            if data.called.is_none() {
                self.call_first(None, rules);
            }
            return Answer::Turn;
        }
        let now = if rules.clock { self.server.calendar.max(0) as u8 } else { 0 };
        let last = if rules.counter { data.fence } else { 0 };
        let fence = (last + 1).max(now);
        data.fence = fence;
        data.known = Some(self.server.id);
        data.key = Some((Value::Of(me), TTL));
        data.queue &= !(1 << me);
        data.called = None;
        self.server.calendar += 1;
        if self.clients[client].is_renewed() {
            self.renew_second(client, rules);
        }
        self.granted(client, fence);
        Answer::Taken
    }

    pub fn renew(&mut self, client: usize, how: Renewal, rules: &Rules) -> bool {
        self.changes();
        let me = client as u8;
        let ours = Some(Second::Of(me));
        let has_second = self.server.data.second.map(|(second, _)| second) == ours;
        if has_second && how == Renewal::Last {
            self.server.data.second = None;
        }
        if how == Renewal::Unwanted {
            self.drop_silent();
            if self.server.data.queue != 0 || self.server.data.called.is_some() {
                return false;
            }
        }
        let is_other = rules.server_id && self.is_other_server();
        let data = &mut self.server.data;
        let nobody_came = (has_second && !is_other) || !rules.asks_who_came;
        if data.key.is_none() && how == Renewal::Late && nobody_came {
            data.key = Some((Value::Of(me), TTL));
        }
        match &mut data.key {
            Some((Value::Of(holder), left)) if *holder == me => {
                if how != Renewal::Last {
                    *left = (*left).max(TTL);
                }
            }
            _ => return false,
        }
        if how != Renewal::Last {
            self.renew_second(client, rules);
        }
        true
    }

    /// Gives up the client's lock or its place in the queue and, if the lock is free then, calls
    /// the next client. `next` is the client that waits next on the releasing machine.
    pub fn release(&mut self, client: usize, by: Releaser, next: Option<usize>, rules: &Rules) {
        self.changes();
        let me = client as u8;
        let data = &mut self.server.data;
        if matches!(data.key, Some((Value::Of(holder), _)) if holder == me) {
            data.key = None;
        }
        let is_second = matches!(data.second, Some((Second::Of(holder), _)) if holder == me);
        if is_second && (by == Releaser::Holder || !rules.bearer) {
            data.second = None;
        }
        data.queue &= !(1 << me);
        if data.called == Some(Called::Client(me)) {
            data.called = None;
        }
        if data.key.is_none() && data.called.is_none() {
            self.drop_silent();
            self.call_first(next.filter(|_| rules.reservation), rules);
        }
    }

    fn drop_silent(&mut self) {
        let is_silent = |one: &usize| !self.clients[*one].waits_in_line();
        let silent = (0..CLIENTS).filter(is_silent).fold(0, |bits, one| bits | 1 << one);
        self.server.data.queue &= !silent;
    }

    fn first_in_queue(&self) -> Option<usize> {
        let is_in = |one: &usize| self.server.data.queue & (1 << *one) != 0;
        (0..CLIENTS).filter(is_in).min_by_key(|one| self.clients[*one].arrival)
    }

    fn call_first(&mut self, next: Option<usize>, rules: &Rules) {
        let first = self.first_in_queue();
        let arrival = |one: usize| self.clients[one].arrival;
        if let Some(next) = next
            && first.is_none_or(|first| arrival(next) < arrival(first))
        {
            self.server.data.called = Some(Called::Place(self.clients[next].machine));
            return;
        }
        if let Some(first) = first.filter(|_| rules.calls) {
            self.server.data.queue &= !(1 << first);
            self.server.data.called = Some(Called::Client(first as u8));
        }
    }

    /// Checks what is promised whenever the lock is taken: that fences rise, and that nobody in
    /// line has waited longer.
    fn granted(&mut self, client: usize, fence: u8) {
        if fence <= self.fence {
            self.breaks(Promise::Fences);
        }
        self.fence = self.fence.max(fence);
        let mine = self.clients[client].arrival;
        if self.clients.iter().any(|other| other.waits_in_line() && other.arrival < mine) {
            self.breaks(Promise::Order);
        }
    }

    /// Reports whether a fail-over has put another server in the place of the one that gave the
    /// lock last.
    fn is_other_server(&self) -> bool {
        let Server { id, data, .. } = self.server;
        data.known.map_or(id > 0, |known| known != id)
    }

    fn renew_second(&mut self, client: usize, rules: &Rules) {
        if rules.second_record {
            let left = if rules.own_clock { FOR_LONG } else { TTL };
            self.server.data.second = Some((Second::Of(client as u8), left));
            self.second_is_another();
        }
    }

    /// Makes all waiters watch the second record from the start, since it has changed.
    fn second_is_another(&mut self) {
        self.clients.iter_mut().for_each(|client| client.watched_for = None);
    }
}
