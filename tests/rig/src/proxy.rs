//! A proxy to a Redis that fails when the test wants it to: `let proxy = Proxy::to(redis.port());
//! rig.set("lock.url", proxy.url()); proxy.lose_reply("SET");` One thread, which ends with the
//! proxy, carries all the bytes.

use crate::carrier::{Carrier, Fault, Order};
use crate::ports;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A proxy to a Redis that fails when the test wants it to.
pub struct Proxy {
    port: u16,
    _claim: UnixListener,
    orders: Sender<Order>,
    /// Socket that wakes the thread after each order; dropping it ends the thread.
    bell: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Makes a proxy to what listens at the port `server`, now or later.
    pub fn to(server: u16) -> Proxy {
        let (port, claim) = ports::claim();
        let (bell, heard) = UnixStream::pair().unwrap();
        let (orders, received) = channel();
        let mut carrier = Carrier::new(port, server);
        let thread = thread::spawn(move || carrier.work(&heard, &received));
        Proxy { port, _claim: claim, orders, bell: Some(bell), thread: Some(thread) }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Returns how many connections have been made so far, whether they have ended or not.
    pub fn connections(&self) -> usize {
        self.order(|carrier| carrier.accepted)
    }

    /// Returns how many replies have been lost so far.
    pub fn lost(&self) -> usize {
        self.order(|carrier| carrier.lost)
    }

    /// Ends every fault and accepts connections again. Connections that were swallowed stay
    /// swallowed.
    pub fn pass(&self) {
        self.order(|carrier| {
            carrier.fault = Fault::None;
            carrier.listen();
        });
    }

    /// Loses one reply: the server carries out the next request that contains `what`, and the
    /// client gets the end of its connection instead of the reply. `lost` reports when this has
    /// happened.
    pub fn lose_reply(&self, what: &str) {
        self.fail(Fault::LoseReply { to: what.into(), once: true });
    }

    /// Loses the reply to every request that contains `what`, until `pass`; every request contains
    /// "". The server carries these requests out, and each ends its client's connection.
    pub fn lose_replies(&self, what: &str) {
        self.fail(Fault::LoseReply { to: what.into(), once: false });
    }

    /// Makes the proxy a black hole: nothing is answered any more on the present connections, nor
    /// on those made until `pass`.
    pub fn swallow(&self) {
        self.fail(Fault::Swallow);
        self.order(Carrier::cut_off);
    }

    /// Delays every reply by this time, until `pass`.
    pub fn delay(&self, delay: Duration) {
        self.fail(Fault::Delay(delay));
    }

    /// Refuses connections until `pass`; the present ones stay.
    pub fn refuse(&self) {
        self.order(Carrier::refuse);
    }

    /// Puts another server behind the proxy from now on, and resets the present connections.
    pub fn leads_to(&self, server: u16) {
        self.order(move |carrier| {
            carrier.server = server;
            carrier.reset();
        });
    }

    /// Ends the present connections with a TCP reset; later connections are not affected.
    pub fn reset(&self) {
        self.order(Carrier::reset);
    }

    fn fail(&self, fault: Fault) {
        self.order(|carrier| carrier.fault = fault);
    }

    /// Makes the thread carry out an action, and returns the action's result.
    fn order<T: Send + 'static>(&self, act: impl FnOnce(&mut Carrier) -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let order = move |carrier: &mut Carrier| done.send(act(carrier)).unwrap();
        self.orders.send(Box::new(order)).unwrap();
        self.bell.as_ref().unwrap().write_all(&[0]).unwrap();
        result.recv().unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.bell = None;
        self.thread.take().map(JoinHandle::join);
    }
}
