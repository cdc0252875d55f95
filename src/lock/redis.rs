//! The lock in Redis: one string key that clients of the older kind respect too (`SET key NAME NX
//! EX 600`), and beside it a counter, the line of those who wait, and a list for each to be woken
//! by. Every decision is made by a script, in one step on the server.
//!
//! Layout: `KEY` the lock, `KEY:fence` the counter, `KEY:queue` waiters by arrival, `KEY:seen`
//! waiters by when they last looked, `KEY:called` whose turn it is, `KEY:wake:TOKEN` what wakes
//! one, `KEY:command` the last record that names a command, which may outlive the lock's time.

mod explain;
mod server;

pub use server::Server;

use super::claim::Claim;
use super::record::Held;
use super::{Attempt, Busy};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::redact::mask;
use crate::world::wait::{Aside, Handle, Stop, wait};
use redis::{Client, Cmd, Connection, RedisError, Value};
use std::time::{Duration, Instant};

/// A script, by its name.
macro_rules! script {
    ($name:literal) => {
        concat!(
            include_str!("redis/permitted.lua"),
            include_str!("redis/line.lua"),
            include_str!(concat!("redis/", $name, ".lua"))
        )
    };
}

/// For one question; a server that takes longer hangs.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Between two tries to reach a server that was there.
const RECONNECT: Duration = Duration::from_millis(50);

/// A client of the older kind wakes nobody when it deletes the key, nor does a key that expires.
/// Shorter than the silence that `line.lua` takes for a waiter's end.
const LOOK: Duration = Duration::from_millis(800);

/// For one question to be woken: so long it outlives a waiter that has found the lock free itself.
const LISTEN: Duration = Duration::from_secs(10);

/// In a failure's details: the server's own code.
const ERROR: &str = "redis_error";
const LOADING: &str = "LOADING";

pub struct Redis {
    client: Client,
    key: String,
    connection: Option<Connection>,
    /// The server was there, so that it may come back.
    was_reached: bool,
    /// The last question was asked more than once: it may have been carried out the first time.
    asked_again: bool,
    /// When this waiter got in line, by the server's clock.
    arrival: String,
    /// What wakes it, on a connection of its own that is kept over many looks.
    call: Option<Aside<redis::RedisResult<Value>>>,
    /// Those whose end may end the lock.
    living: Vec<Handle>,
    /// Until the next look.
    pause: Duration,
}

/// The connection, where it can be used again, whether there ever was one, and the answer.
type Exchange = (Option<Connection>, bool, redis::RedisResult<Value>);

impl Redis {
    pub fn new(url: &str, key: &str) -> Redis {
        Redis {
            client: Client::open(url).expect("the configuration has had it parsed"),
            key: key.to_owned(),
            connection: None,
            was_reached: false,
            asked_again: false,
            arrival: String::new(),
            call: None,
            living: Vec::new(),
            pause: LOOK,
        }
    }

    fn place(&self) -> String {
        mask(&self.client.get_connection_info().addr().to_string())
    }

    fn beside(&self, what: &str) -> String {
        format!("{}:{what}", self.key)
    }

    /// Runs a script, and makes an error of what keeps the key from being a lock.
    fn script<const K: usize, const A: usize>(
        &mut self,
        text: &str,
        keys: [&str; K],
        arguments: [&str; A],
        stop: &Stop,
    ) -> Result<Vec<String>> {
        let mut command = redis::cmd("EVAL");
        command.arg(text).arg(K).arg(keys.as_slice()).arg(arguments.as_slice());
        match self.ask(command, CALL_LIMIT, stop)? {
            Value::Array(items) => Ok(items.iter().map(text_of).collect()),
            single => Ok(vec![text_of(&single)]),
        }
    }

    /// One question, on a thread of its own: the library's own limits are for single reads.
    fn ask(&mut self, command: Cmd, limit: Duration, stop: &Stop) -> Result<Value> {
        let deadline = Instant::now() + limit;
        self.asked_again = false;
        let mut trouble = None;
        loop {
            stop.check()?;
            let (client, connection, command) =
                (self.client.clone(), self.connection.take(), command.clone());
            let exchange = Aside::begin(move || exchange(&client, connection, &command, limit))?;
            wait(&[exchange.ended().fd()], stop, deadline);
            // Left behind with its connection: a late answer would be taken for the next one's.
            let Some((connection, reached, answer)) = exchange.take() else {
                stop.check()?;
                return Err(match trouble {
                    Some(error) => self.explain(&error),
                    None => {
                        self.unavailable("does not answer").hint("is it stopped or overloaded?")
                    }
                });
            };
            self.connection = connection;
            self.was_reached |= reached;
            match answer {
                Ok(value) => return Ok(value),
                // Every script can be run again: it knows its own token.
                Err(e) if e.is_io_error() && self.was_reached && Instant::now() < deadline => {
                    log::debug!("Redis at {}: {e}; connecting again", self.place());
                    if !reached || self.asked_again {
                        wait(&[], stop, (Instant::now() + RECONNECT).min(deadline));
                    }
                    self.asked_again = true;
                    trouble = Some(e);
                }
                Err(e) => return Err(self.explain(&e)),
            }
        }
    }

    /// The lock that the server knows of, also where its holder is no more.
    fn stored(&mut self) -> Result<Option<Held>> {
        let key = self.key.clone();
        let command = self.beside("command");
        let script = script!("look");
        let answer = self.script(script, [&key, &command], [], &Stop::never())?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["none", _, left, value] => {
                let last = (!value.is_empty()).then(|| Held::decode(value, left_of(left)));
                Ok(last.filter(|held| !held.command_is_over()))
            }
            ["string", value, left, _] => Ok(Some(Held::decode(value, left_of(left)))),
            [kind, ..] => Err(self.wrong_type(kind)),
            [] => Err(self.unavailable("answers the lock's script with nonsense")),
        }
    }

    fn listen(&self, claim: &Claim) -> Result<Aside<redis::RedisResult<Value>>> {
        let mut command = redis::cmd("BLPOP");
        let wake = self.beside(&format!("wake:{}", claim.record.token));
        command.arg(wake).arg(LISTEN.as_secs());
        let client = self.client.clone();
        Aside::begin(move || command.query(&mut client.get_connection_with_timeout(CALL_LIMIT)?))
    }
}

fn exchange(
    client: &Client,
    connection: Option<Connection>,
    command: &Cmd,
    limit: Duration,
) -> Exchange {
    let connected = match connection {
        Some(connection) => Ok(connection),
        None => client.get_connection_with_timeout(limit).and_then(introduce),
    };
    match connected {
        Ok(mut connection) => {
            let answer = command.query(&mut connection);
            let is_usable = answer.as_ref().err().is_none_or(|e: &RedisError| !e.is_io_error());
            (is_usable.then_some(connection), true, answer)
        }
        Err(e) => (None, false, Err(e)),
    }
}

/// A server that wants a password breaks off a question as long as ours without saying why.
fn introduce(mut connection: Connection) -> redis::RedisResult<Connection> {
    match redis::cmd("PING").exec(&mut connection) {
        Err(e) if e.code() == Some("NOAUTH") => Err(e),
        _ => Ok(connection),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Int(number) => number.to_string(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}

fn is_loading(failure: &Failure) -> bool {
    failure.details.get(ERROR) == Some(&LOADING.into())
}

/// What PTTL said: -1 for no end, -2 for no key.
fn left_of(pttl: &str) -> Option<Duration> {
    match pttl {
        "-2" => Some(Duration::ZERO),
        _ => pttl.parse().ok().map(Duration::from_millis),
    }
}

impl Redis {
    /// One try to take the lock, and with `queues` a place in the line for it.
    pub fn attempt(&mut self, claim: &Claim, queues: bool, stop: &Stop) -> Result<Attempt> {
        let value = claim.record.encode(&claim.holder);
        let (before, after) = value.split_once("\"fence\":0").expect("a record not yet taken");
        let before = format!("{before}\"fence\":");
        let ttl = claim.ttl.as_millis().to_string();
        let [counter, queue, seen, called, wake, command] =
            ["fence", "queue", "seen", "called", "wake:", "command"].map(|what| self.beside(what));
        let mut over = String::new();
        loop {
            let (key, arrival) = (self.key.clone(), self.arrival.clone());
            let answer = self.script(
                script!("acquire"),
                [&key, &counter, &queue, &seen, &called, &wake, &command],
                [
                    &claim.record.token,
                    &before,
                    after,
                    &ttl,
                    if queues { "1" } else { "0" },
                    &arrival,
                    &over,
                ],
                stop,
            );
            let answer = match answer {
                Ok(answer) => answer,
                Err(failure) if is_loading(&failure) => return Ok(Attempt::Unready(failure)),
                Err(failure) => return Err(failure),
            };
            match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                ["taken", fence] => return Ok(Attempt::Taken(fence.parse().unwrap_or(0))),
                ["type", kind] => return Err(self.wrong_type(kind)),
                ["busy", value, left, ahead, arrival] => {
                    self.arrival = (*arrival).to_owned();
                    let held = Held::decode(value, left_of(left));
                    let is_over = match *left {
                        "-2" => Held::command_is_over,
                        _ => Held::is_over,
                    };
                    if over != *value && is_over(&held) {
                        over = (*value).to_owned();
                        continue;
                    }
                    (self.living, self.pause) = (held.living(), LOOK);
                    let ahead = ahead.parse().unwrap_or(0);
                    return Ok(Attempt::Busy(Box::new(Busy { held: Some(held), ahead })));
                }
                ["turn", left, ahead, arrival] => {
                    self.arrival = (*arrival).to_owned();
                    // Another's turn is short.
                    let pause = left_of(left).map(|left| left + Duration::from_millis(1));
                    (self.living, self.pause) = (Vec::new(), pause.unwrap_or(LOOK));
                    let ahead = ahead.parse().unwrap_or(0);
                    return Ok(Attempt::Busy(Box::new(Busy { held: None, ahead })));
                }
                _ => return Err(self.unavailable("answers the lock's script with nonsense")),
            }
        }
    }

    /// Sleeps until another try may have another result; after one that found the lock busy.
    pub fn wait_for_change(&mut self, claim: &Claim, stop: &Stop, deadline: Instant) -> Result<()> {
        let look = deadline.min(Instant::now() + self.pause);
        let call = match self.call.take() {
            Some(call) => call,
            None => self.listen(claim)?,
        };
        let mut watched = vec![call.ended().fd()];
        watched.extend(self.living.iter().map(Handle::fd));
        wait(&watched, stop, look);
        match call.take() {
            None => self.call = Some(call),
            Some(Ok(_)) => {}
            // What is the matter shows at the next look.
            Some(Err(e)) if e.is_io_error() || e.code() == Some(LOADING) => {
                wait(&[], stop, look);
            }
            Some(Err(e)) => return Err(self.explain(&e)),
        }
        Ok(())
    }

    /// Gives a lock that is still the claim's its full time again, and the record its new content;
    /// false where it is not the claim's any more.
    pub fn renew(&mut self, claim: &Claim) -> Result<bool> {
        let value = claim.record.encode(&claim.holder);
        let (key, ttl) = (self.key.clone(), claim.ttl.as_millis().to_string());
        let names_command = if claim.record.group.is_some() { "1" } else { "0" };
        let script = script!("renew");
        let arguments = [claim.record.token.as_str(), &value, &ttl, names_command];
        let command = self.beside("command");
        Ok(self.script(script, [&key, &command], arguments, &Stop::never())? == ["1"])
    }

    /// Gives up the lock or the place in the line; without a token whatever lock there is. Tells
    /// whether there was such a lock.
    pub fn release(&mut self, token: Option<&str>) -> Result<bool> {
        // Asked first, and as often as it takes: the answer to a release that was done and whose
        // reply was lost is the same as to one of a lock that was gone before.
        let was_held = match token.map(|token| (token, self.stored())) {
            None => true,
            Some((token, Ok(held))) => held.is_some_and(|held| held.is_of(token)),
            // What is no lock is not ours.
            Some((_, Err(failure))) if failure.code == Code::Config => false,
            Some((_, Err(failure))) => return Err(failure),
        };
        let [queue, seen, called, wake, command] =
            ["queue", "seen", "called", "wake:", "command"].map(|what| self.beside(what));
        let (key, anybody) = (self.key.clone(), if token.is_some() { "0" } else { "1" });
        let answer = self.script(
            script!("release"),
            [&key, &queue, &seen, &called, &wake, &command],
            [token.unwrap_or_default(), anybody],
            &Stop::never(),
        )?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["type", kind] if token.is_none() => Err(self.wrong_type(kind)),
            ["type", _] => Ok(false),
            [released] => Ok(*released == "1" || (was_held && self.asked_again)),
            _ => Err(self.unavailable("answers the lock's script with nonsense")),
        }
    }

    /// Who holds it; one that is proved to be over is held by nobody.
    pub fn look(&mut self) -> Result<Option<Held>> {
        Ok(self.stored()?.filter(|held| !held.is_over()))
    }
}
