//! A way to a Redis that fails when the test wants it to: `let proxy = Proxy::to(redis.port());
//! rig.set("lock.url", proxy.url()); proxy.lose_reply("SET");` One thread carries all the bytes, and ends with it.

use crate::carrier::{Carrier, Fault, Order};
use crate::ports;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub struct Proxy {
    port: u16,
    _claim: UnixListener,
    orders: Sender<Order>,
    /// Rung after an order; the thread ends when it is dropped.
    bell: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// To what listens at `port`, or will.
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

    /// Those made so far, whether they have ended or not.
    pub fn connections(&self) -> usize {
        self.order(|carrier| carrier.accepted)
    }

    /// How many replies have been lost.
    pub fn lost(&self) -> usize {
        self.order(|carrier| carrier.lost)
    }

    /// No fault any more, for connections made from now on.
    pub fn pass(&self) {
        self.order(|carrier| {
            carrier.fault = Fault::None;
            carrier.listen();
        });
    }

    /// The next request that contains `what` is done by the server; instead of its reply comes the connection's end.
    /// That it has come to pass, `lost` tells.
    pub fn lose_reply(&self, what: &str) {
        self.fail(Fault::LoseReply { to: what.into(), once: true });
    }

    /// The same for all such requests, until `pass`. All requests contain "".
    pub fn lose_replies(&self, what: &str) {
        self.fail(Fault::LoseReply { to: what.into(), once: false });
    }

    /// A black hole: nothing is answered any more on the present connections, nor on those made until `pass`.
    pub fn swallow(&self) {
        self.fail(Fault::Swallow);
        self.order(Carrier::cut_off);
    }

    /// Every reply takes so much longer.
    pub fn delay(&self, delay: Duration) {
        self.fail(Fault::Delay(delay));
    }

    /// Connections are refused until `pass`. The present ones stay.
    pub fn refuse(&self) {
        self.order(Carrier::refuse);
    }

    /// Another server is behind it from now on: the present connections end.
    pub fn leads_to(&self, server: u16) {
        self.order(move |carrier| {
            carrier.server = server;
            carrier.reset();
        });
    }

    /// Ends the present connections with a TCP reset, once.
    pub fn reset(&self) {
        self.order(Carrier::reset);
    }

    fn fail(&self, fault: Fault) {
        self.order(|carrier| carrier.fault = fault);
    }

    /// Returns when it is done.
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
