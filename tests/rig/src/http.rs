//! `gpuctl http` behind a real socket, called as systemd calls it, on a machine that need not run
//! systemd.

use crate::bystander::Bystander;
use crate::programs;
use crate::rig::Rig;
use crate::skip::skip_or_fail;
use crate::wait::until;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};

/// Variables of the rig's environment that gpuctl needs; systemd-socket-activate passes on no
/// others.
const PASSED_ON: [&str; 6] = [
    "GPUCTL_CONFIG",
    "GPUCTL_STATE_DIR",
    "SIMGPU_DIR",
    "DOCKER_HOST",
    "REDIS_URL",
    "XDG_RUNTIME_DIR",
];

/// A port at which gpuctl answers HTTP, until the `Served` is dropped.
pub struct Served {
    pub port: u16,
    _listener: Bystander,
}

impl Rig {
    /// Serves the endpoints at a free port of `address`: a loopback address, or 0.0.0.0 for all.
    /// Returns `None`, after reporting the skip, if there is no systemd-socket-activate.
    #[track_caller]
    pub fn http(&self, address: &str) -> Option<Served> {
        if !programs::works("systemd-socket-activate", &["--version"]) {
            skip_or_fail("systemd", "systemd-socket-activate");
            return None;
        }
        let port = self.port();
        let served = Served { port, _listener: self.listen(&format!("{address}:{port}")) };
        until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(served)
    }

    /// Serves the endpoints at any address, such as the path of a Unix socket. The caller has to
    /// make sure that there is a systemd-socket-activate.
    pub fn listen(&self, address: &str) -> Bystander {
        let passed: String = PASSED_ON.iter().map(|name| format!("-E {name} ")).collect();
        self.by_hand(&format!(
            "systemd-socket-activate --accept --inetd {passed} -E OF={} -l {address} gpuctl http",
            self.mark("http")
        ))
    }
}

impl Served {
    /// Sends a request, such as `POST /gpu/service/vidi/start`, and returns the status and the
    /// document of the answer.
    #[track_caller]
    pub fn ask(&self, line: &str) -> (u16, Value) {
        self.ask_with(line, "", "")
    }

    /// Sends a request with additional header lines and a body, and returns the status and the
    /// document of the answer.
    #[track_caller]
    pub fn ask_with(&self, line: &str, fields: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.answer(&self.request(line, fields, body));
        let document = serde_json::from_str(&text);
        (status, document.unwrap_or_else(|e| panic!("{line}: {e}: {text}")))
    }

    /// Returns the text of a request.
    pub fn request(&self, line: &str, fields: &str, body: &str) -> String {
        let (port, length) = (self.port, body.len());
        format!(
            "{line} HTTP/1.1\r\nHost: localhost:{port}\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
        )
    }

    /// Sends any text as a request, and returns the status and the body of the answer.
    #[track_caller]
    pub fn answer(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect([127, 0, 0, 1].into());
        stream.write_all(request.as_bytes()).unwrap();
        answer(stream)
    }

    #[track_caller]
    pub fn connect(&self, address: IpAddr) -> TcpStream {
        let stream = TcpStream::connect((address, self.port)).unwrap();
        stream.set_read_timeout(Some(crate::TIME_LIMIT)).unwrap();
        stream
    }
}

/// Reads an answer to its end, after which nothing may follow, and returns its status and body.
#[track_caller]
pub fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    stream.shutdown(Shutdown::Both).ok();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|head| head[..3].parse().ok());
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    assert_eq!(length, Some(body.len().to_string().as_str()), "{text}");
    (status.unwrap_or_else(|| panic!("no status: {text}")), body.to_owned())
}
