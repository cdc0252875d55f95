//! The thread of a `Proxy`: all that it carries, and how it fails. Nothing else holds a connection,
//! so dropping one here ends it.

use crate::ports;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::set_socket_linger;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// An action that the thread carries out between two portions of bytes.
pub type Order = Box<dyn FnOnce(&mut Carrier) + Send>;

/// What goes wrong in a proxy from now on.
pub enum Fault {
    None,
    /// The server carries out a request that contains `to`, and the client gets the end of its
    /// connection instead of a reply. `once` ends the fault after one such request.
    LoseReply {
        to: Vec<u8>,
        once: bool,
    },
    /// Connections are accepted, but nothing that arrives on them is passed on.
    Swallow,
    /// Each reply is held back for this long.
    Delay(Duration),
}

struct Connection {
    client: TcpStream,
    /// The connection to the server; `None` if what the client sends is swallowed.
    server: Option<TcpStream>,
    /// What the client has sent since the last reply.
    request: Vec<u8>,
    loses_reply: bool,
}

/// The state of a proxy's thread: its listener, its connections and its fault.
pub struct Carrier {
    port: u16,
    /// The port to which new connections lead.
    pub server: u16,
    listener: Option<TcpListener>,
    connections: Vec<Connection>,
    pub fault: Fault,
    /// Number of connections accepted so far, whether they have ended or not.
    pub accepted: usize,
    /// Number of replies lost so far.
    pub lost: usize,
}

impl Carrier {
    pub fn new(port: u16, server: u16) -> Carrier {
        let mut carrier = Carrier {
            port,
            server,
            listener: None,
            connections: Vec::new(),
            fault: Fault::None,
            accepted: 0,
            lost: 0,
        };
        carrier.listen();
        carrier
    }

    /// Accepts connections again, if they are being refused.
    pub fn listen(&mut self) {
        let port = self.port;
        self.listener.get_or_insert_with(|| TcpListener::bind(("127.0.0.1", port)).unwrap());
    }

    /// Refuses connections from now on; the present ones stay.
    pub fn refuse(&mut self) {
        if let Some(listener) = self.listener.take() {
            ports::close(listener);
        }
    }

    /// Cuts all connections off from the server, which the clients do not notice.
    pub fn cut_off(&mut self) {
        self.connections.iter_mut().for_each(|connection| connection.server = None);
    }

    /// Ends all connections with a TCP reset.
    pub fn reset(&mut self) {
        for connection in self.connections.drain(..) {
            set_socket_linger(&connection.client, Some(Duration::ZERO)).unwrap();
        }
    }

    /// Carries bytes until the other end of `bell` is dropped, and carries out an order each time
    /// that the bell rings.
    pub fn work(&mut self, mut bell: &UnixStream, orders: &Receiver<Order>) {
        loop {
            let mut ready = self.wait(bell).into_iter();
            let mut is_ready = || ready.next().unwrap_or(false);
            if is_ready() {
                let Ok(1) = bell.read(&mut [0]) else { return self.refuse() };
                orders.recv().unwrap()(self);
                continue;
            }
            for mut connection in std::mem::take(&mut self.connections) {
                let (asks, answers) = (is_ready(), connection.server.is_some() && is_ready());
                let goes_on = (!asks || self.ask(&mut connection))
                    && (!answers || self.answer(&mut connection));
                if goes_on {
                    self.connections.push(connection);
                }
            }
            if is_ready() {
                self.accept();
            }
        }
    }

    /// Waits until something can be read, and returns what can: the bell, each connection's client
    /// and server, and the listener, in this order.
    fn wait(&self, bell: &UnixStream) -> Vec<bool> {
        let mut watched = vec![PollFd::new(bell, PollFlags::IN)];
        for connection in &self.connections {
            watched.push(PollFd::new(&connection.client, PollFlags::IN));
            watched.extend(connection.server.iter().map(|at| PollFd::new(at, PollFlags::IN)));
        }
        watched.extend(self.listener.iter().map(|at| PollFd::new(at, PollFlags::IN)));
        retry_on_intr(|| poll(&mut watched, None)).unwrap();
        watched.iter().map(|one| !one.revents().is_empty()).collect()
    }

    fn accept(&mut self) {
        let Some(Ok((client, _))) = self.listener.as_ref().map(TcpListener::accept) else { return };
        self.accepted += 1;
        let server = match self.fault {
            Fault::Swallow => None,
            _ => match TcpStream::connect(("127.0.0.1", self.server)) {
                Ok(server) => Some(server),
                // Dropping `client` ends its connection too.
                Err(_) => return,
            },
        };
        self.connections.push(Connection { client, server, request: vec![], loses_reply: false });
    }

    /// Carries a part of a request to the server, and reports whether the connection continues.
    fn ask(&mut self, connection: &mut Connection) -> bool {
        let Some(part) = read(&mut connection.client) else { return false };
        let Some(server) = &mut connection.server else { return true };
        connection.request.extend(&part);
        if let Fault::LoseReply { to, once } = &self.fault
            && (to.is_empty() || connection.request.windows(to.len()).any(|at| at == to))
        {
            connection.loses_reply = true;
            if *once {
                self.fault = Fault::None;
            }
        }
        server.write_all(&part).is_ok()
    }

    /// Carries a part of a reply to the client, and reports whether the connection continues.
    fn answer(&mut self, connection: &mut Connection) -> bool {
        let Some(part) = connection.server.as_mut().and_then(read) else { return false };
        connection.request.clear();
        self.lost += usize::from(connection.loses_reply);
        if let Fault::Delay(delay) = self.fault {
            std::thread::sleep(delay);
        }
        !connection.loses_reply && connection.client.write_all(&part).is_ok()
    }
}

/// Reads what has arrived; returns `None` at the end of the connection or on an error.
fn read(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut part = vec![0; 65_536];
    let count = from.read(&mut part).ok().filter(|count| *count > 0)?;
    part.truncate(count);
    Some(part)
}
