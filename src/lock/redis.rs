//! The lock in Redis: one string key that older clients respect too (`SET key NAME NX EX 600`), and
//! beside it a counter, the line of the waiters, and a list for each of them by which it is woken.
//! Every decision is made by a script, in one step on the server.
//!
//! Layout: `KEY` is the lock, `KEY:fence` the counter, `KEY:queue` the waiters by their arrival,
//! `KEY:seen` the waiters by the time of their last look, `KEY:called` the one whose turn it is,
//! `KEY:wake:TOKEN` the list that wakes a waiter. `KEY:second` is the second record of a holder
//! that renews its lock: the number of renewals and the value. The second record outlives the key,
//! whatever becomes of that, until its holder has given the lock back, or has not renewed it for
//! its whole time by the clock of a waiter. `KEY:server` is the replication ID of the server that
//! gave the lock last.

mod explain;
mod server;

pub use server::ServerFacts;

use super::claim::{Claim, Releaser, Renewal, TTL};
use super::line::NextHere;
use super::record::Held;
use super::{Attempt, Busy};
use crate::config::{Place, UrlSource};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::redact::mask;
use crate::world::clock::SinceBoot;
use crate::world::wait::{Aside, Stop, wait};
use explain::is_interruption;
use redis::{Client, Cmd, Connection, RedisError, Value};
use std::time::{Duration, Instant};

/// Text of the script with this name, behind the functions of `line.lua`.
macro_rules! script {
    ($name:literal) => {
        concat!(include_str!("redis/line.lua"), include_str!(concat!("redis/", $name, ".lua")))
    };
}

/// Time limit of a question to the server; a server that takes longer counts as hanging.
const CALL_LIMIT: Duration = Duration::from_secs(3);

/// Time limit of a renewal, so short that there is time for another one.
pub const RENEWAL_LIMIT: Duration = Duration::from_secs(2);

/// Pause between two tries to reach a server that was reached before.
const RECONNECT: Duration = Duration::from_millis(50);

/// Longest pause of a waiter between two looks at the lock: an older client that deletes the key
/// wakes nobody, nor does a key that expires. The pause is shorter than the silence after which
/// `line.lua` takes a waiter for gone.
const LOOK: Duration = Duration::from_millis(800);

/// Time limit of the blocking call that wakes a waiter, and so the longest time for which that call
/// outlives a waiter that has found the lock free by itself.
const LISTEN: Duration = Duration::from_secs(10);

/// Key of the server's own error code in the details of a failure.
const ERROR: &str = "redis_error";
const LOADING: &str = "LOADING";

/// A client of the lock in Redis.
pub struct Redis {
    client: Client,
    key: String,
    /// The place where the server's URL is configured.
    source: UrlSource,
    connection: Option<Connection>,
    /// Whether the server was reached before, so that it may come back.
    was_reached: bool,
    /// Whether the last question was asked more than once, so that it may have been carried out the
    /// first time.
    asked_again: bool,
    /// Time at which this waiter got in line, in microseconds by the server's clock; empty until
    /// the server has given it.
    arrival: String,
    /// The call that wakes this waiter, on a connection of its own that is kept over many looks.
    call: Option<Aside<redis::RedisResult<Value>>>,
    /// Whether the server has answered a try to take the lock; from then on, its absence is waited
    /// out.
    has_answered: bool,
    /// The second record of the lock's holder, and the time since boot since which it has not
    /// changed.
    second: (String, SinceBoot),
    /// Pause until the next look.
    pause: Duration,
}

/// Result of a call: the connection if it can be used again, whether there was a connection at all,
/// and the answer.
type Exchange = (Option<Connection>, bool, redis::RedisResult<Value>);

impl Redis {
    /// Creates a client for the lock at `place`, without connecting. Returns `None` if no Redis is
    /// configured.
    pub fn at(place: &Place, key: &str) -> Option<Redis> {
        let url = place.redis.as_deref()?;
        Some(Redis {
            client: Client::open(url).expect("the configuration has had it parsed"),
            key: key.to_owned(),
            source: place.source,
            connection: None,
            was_reached: false,
            asked_again: false,
            arrival: String::new(),
            call: None,
            has_answered: false,
            second: (String::new(), SinceBoot::default()),
            pause: LOOK,
        })
    }

    /// Returns the server's address and its source, such as `127.0.0.1:6379 (from $REDIS_URL)`.
    fn place(&self) -> String {
        let address = mask(&self.client.get_connection_info().addr().to_string());
        format!("{address} (from {})", self.source)
    }

    fn beside(&self, what: &str) -> String {
        format!("{}:{what}", self.key)
    }

    /// Runs a script on the server and returns the items of its answer as text.
    fn script<const K: usize, const A: usize>(
        &mut self,
        text: &str,
        keys: [&str; K],
        arguments: [&str; A],
        (limit, stop): (Duration, &Stop),
    ) -> Result<Vec<String>> {
        let mut command = redis::cmd("EVAL");
        command.arg(text).arg(K).arg(keys.as_slice()).arg(arguments.as_slice());
        match self.ask(command, limit, stop)? {
            Value::Array(items) => Ok(items.iter().map(text_of).collect()),
            single => Ok(vec![text_of(&single)]),
        }
    }

    /// Sends a command and returns the answer, within `limit`. The command is sent from a thread of
    /// its own, because the library's own limits are for single reads, and again if the connection
    /// to a server that was reached before breaks.
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
            // The thread is left behind with its connection: a late answer would be taken for that
            // to the next question.
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
                // Every script can be run again, as it knows its own token.
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

    /// Returns who holds the lock, or `None` if nobody does; a holder whose key is gone is known by
    /// its second record.
    pub fn look(&mut self) -> Result<Option<Held>> {
        let (key, second) = (self.key.clone(), self.beside("second"));
        let answer =
            self.script(script!("look"), [&key, &second], [], (CALL_LIMIT, &Stop::never()))?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["none", _, left, second] => {
                let value = second.split_once(' ').map(|(_, value)| value);
                Ok(value.map(|value| Held::decode(value, left_of(left))))
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
        Aside::begin(move || command.query(&mut connect(&client, CALL_LIMIT)?))
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
        None => connect(client, limit).and_then(introduce),
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

/// Connects to the server, and tries again if a signal interrupts that. Once this process has been
/// stopped and continued, the kernel interrupts each read that has a limit, see signal(7), which
/// the library takes for the connection's end while it sets a connection up. All tries share the
/// one `limit`: the caller does not wait any longer, and a question that nobody waits for is not to
/// be asked.
fn connect(client: &Client, limit: Duration) -> redis::RedisResult<Connection> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client.get_connection_with_timeout(left) {
            Err(e) if is_interruption(&e) && Instant::now() < deadline => {}
            connected => return connected,
        }
    }
}

/// Sends a short PING over a new connection and fails if the server wants a password: such a server
/// breaks off a command as long as a script without saying why.
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

/// Parses an answer to PTTL, in milliseconds: `None` for -1 (the key has no end), zero for -2
/// (there is no key).
fn left_of(pttl: &str) -> Option<Duration> {
    match pttl {
        "-2" => Some(Duration::ZERO),
        _ => pttl.parse().ok().map(Duration::from_millis),
    }
}

impl Redis {
    /// Tries once to take the lock, for a process that has the machine's lock. With `queues`, the
    /// process gets a place in the line if the lock cannot be taken.
    pub fn attempt(&mut self, claim: &Claim, queues: bool, stop: &Stop) -> Result<Attempt> {
        match self.try_once(claim, queues, stop) {
            Err(failure) if is_loading(&failure) => Ok(Attempt::Unready(failure)),
            Err(failure) if failure.code == Code::Unavailable && self.has_answered && queues => {
                Ok(Attempt::Unready(failure))
            }
            attempt => attempt.inspect(|_| self.has_answered = true),
        }
    }

    fn try_once(&mut self, claim: &Claim, queues: bool, stop: &Stop) -> Result<Attempt> {
        let value = claim.record.encode(&claim.holder);
        let (before, after) = value.split_once("\"fence\":0").expect("a record not yet taken");
        let before = format!("{before}\"fence\":");
        let (ttl, wait) = (claim.ttl.as_millis().to_string(), TTL.as_millis().to_string());
        let [counter, queue, seen, called, wake, second, server] =
            ["fence", "queue", "seen", "called", "wake:", "second", "server"]
                .map(|what| self.beside(what));
        let (key, arrival) = (self.key.clone(), self.arrival.clone());
        let (watched, since) = self.second.clone();
        let over = if (since + TTL).has_come() { watched.as_str() } else { "" };
        let flag = |is_set| if is_set { "1" } else { "0" };
        let answer = self.script(
            script!("acquire"),
            [&key, &counter, &queue, &seen, &called, &wake, &second, &server],
            [
                &claim.record.token,
                &before,
                after,
                &ttl,
                flag(queues),
                &arrival,
                &claim.record.place,
                over,
                &wait,
                flag(claim.record.renewed),
                &claim.since.elapsed().as_micros().to_string(),
            ],
            (CALL_LIMIT, stop),
        )?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["taken", fence] => Ok(Attempt::Taken(fence.parse().unwrap_or(0))),
            ["type", kind] => Err(self.wrong_type(kind)),
            ["busy", value, left, ahead, arrival, second] => {
                self.arrival = (*arrival).to_owned();
                if self.second.0 != *second {
                    self.second = ((*second).to_owned(), SinceBoot::now());
                }
                let is_over = (self.second.1 + TTL).left();
                self.pause = if is_over.is_zero() { LOOK } else { LOOK.min(is_over) };
                let held = Some(Held::decode(value, left_of(left)));
                Ok(Attempt::Busy(Box::new(Busy {
                    held,
                    ahead: ahead.parse().unwrap_or(0),
                    is_elsewhere: true,
                })))
            }
            ["turn", left, ahead, arrival] => {
                self.arrival = (*arrival).to_owned();
                // The turn of another waiter is short.
                let pause = left_of(left).map(|left| left + Duration::from_millis(1));
                self.pause = pause.unwrap_or(LOOK);
                let ahead = ahead.parse().unwrap_or(0);
                Ok(Attempt::Busy(Box::new(Busy { held: None, ahead, is_elsewhere: true })))
            }
            _ => Err(self.unavailable("answers the lock's script with nonsense")),
        }
    }

    /// Sleeps until another try may succeed; to be called after a try that found the lock busy.
    pub fn wait_for_change(&mut self, claim: &Claim, stop: &Stop, deadline: Instant) -> Result<()> {
        let look = deadline.min(Instant::now() + self.pause);
        let call = match self.call.take() {
            Some(call) => call,
            None => self.listen(claim)?,
        };
        wait(&[call.ended().fd()], stop, look);
        match call.take() {
            None => self.call = Some(call),
            Some(Ok(_)) => {}
            // The next look shows what is the matter.
            Some(Err(_)) => drop(wait(&[], stop, look)),
        }
        Ok(())
    }

    /// Renews the lock of that token, so that it lives for another `ttl` at least. Returns `false`
    /// if the lock is not the token's any more, or may not be renewed under the condition `how`.
    pub fn renew(&mut self, token: &str, ttl: Duration, how: Renewal) -> Result<bool> {
        let key = self.key.clone();
        let [second, queue, seen, called, server] =
            ["second", "queue", "seen", "called", "server"].map(|what| self.beside(what));
        let how = match how {
            Renewal::InTime => "in time",
            Renewal::Late => "late",
            Renewal::Unwanted => "unwanted",
            Renewal::Last => "last",
        };
        Ok(self.script(
            script!("renew"),
            [&key, &second, &queue, &seen, &called, &server],
            [token, &ttl.as_millis().to_string(), how],
            (RENEWAL_LIMIT, &Stop::never()),
        )? == ["1"])
    }

    /// Gives up the lock, or the place in the line, and returns whether there was such a lock.
    /// `next` is the waiter that has the machine's lock after this process.
    pub fn release(&mut self, by: Releaser, next: Option<&NextHere>) -> Result<bool> {
        // The holder is asked for first, and as often as it takes: a release that was done and
        // whose reply was lost has the same answer as one of a lock that was gone before.
        let (token, whose) = match by {
            Releaser::Holder(token) => (Some(token), "holder"),
            Releaser::Bearer(token) => (Some(token), "bearer"),
            Releaser::Anybody => (None, "anybody"),
        };
        let was_held = match token.map(|token| (token, self.look())) {
            None => true,
            Some((token, Ok(held))) => held.is_some_and(|held| held.is_of(token)),
            // A key that is no lock is not ours.
            Some((_, Err(failure))) if failure.code == Code::Config => false,
            Some((_, Err(failure))) => return Err(failure),
        };
        let [queue, seen, called, wake, second] =
            ["queue", "seen", "called", "wake:", "second"].map(|what| self.beside(what));
        let key = self.key.clone();
        let place = next.map_or("", |next| next.place.as_str());
        let waited = next.map_or(String::new(), |next| next.waited.as_micros().to_string());
        let answer = self.script(
            script!("release"),
            [&key, &queue, &seen, &called, &wake, &second],
            [token.unwrap_or_default(), whose, place, &waited],
            (CALL_LIMIT, &Stop::never()),
        )?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["type", kind] if token.is_none() => Err(self.wrong_type(kind)),
            ["type", _] => Ok(false),
            [released] => Ok(*released == "1" || (was_held && self.asked_again)),
            _ => Err(self.unavailable("answers the lock's script with nonsense")),
        }
    }
}
