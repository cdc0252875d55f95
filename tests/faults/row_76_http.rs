//! Tests of `gpuctl http` with clients that misbehave (row 76).

use rig::{Rig, Served, Service, answer, until};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Shutdown, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Serves the endpoints on this address, beside a running service that no request in these tests
/// may stop. Returns `None` if the test has to be skipped.
fn served(rig: &Rig, address: &str) -> Option<(Service, Served)> {
    let vidi = rig.native("vidi").vram(4000).add();
    let http = rig.http(address)?;
    rig.gpuctl("start vidi --quiet").run().succeeds();
    Some((vidi, http))
}

#[track_caller]
fn assert_untouched(rig: &Rig, vidi: &Service) {
    until("no request is left", || rig.gpuctls().is_empty());
    assert!(vidi.is_healthy(), "somebody who may not has stopped it");
    let history = rig.gpuctl("history -n 1000").run().succeeds().text();
    assert!(!history.contains("release-all"), "{history}");
}

#[test]
fn row_76_a_request_that_is_malformed_ambiguous_or_oversized_is_refused_and_nothing_is_done() {
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    let host = "Host: localhost\r\n";
    let release = format!("POST /gpu/release-all HTTP/1.1\r\n{host}");
    let long = "x".repeat(20_000);
    for (request, status) in [
        ("\0\u{1}\u{2}\r\n\r\n".to_owned(), 400),
        ("POST\r\n\r\n".to_owned(), 400),
        ("POST /gpu/release-all HTTP/2.0\r\n\r\n".to_owned(), 400),
        ("POST /gpu/release-all HTTP/1.1\r\n\r\n".to_owned(), 400),
        (format!("{release}{host}\r\n"), 400),
        (format!("POST gpu/release-all HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/service/%ff/stop HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/service/v%00/stop HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/release-all?force=%00 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/release-all?force=maybe HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/release-all?config=/etc/passwd HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/release-all?help=1 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("POST /gpu/lock/acquire?pid=1 HTTP/1.1\r\n{host}\r\n"), 400),
        (format!("{release}Content-Length: -1\r\n\r\n"), 400),
        (format!("{release}Content-Length: 1, 1\r\n\r\n11"), 400),
        (format!("{release}Content-Length: 2\r\nContent-Length: 2\r\n\r\n{{}}"), 400),
        (format!("{release}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}"), 400),
        (format!("{release}Content-Length: 2\r\n\r\n[]"), 400),
        (format!("{release}Content-Length: 3\r\n\r\n{{]}}"), 400),
        (format!("{release}Content-Length: 16\r\n\r\n{{\"force\": {{\"a\":1}}}}"), 400),
        (format!("{release}Content-Length: 17\r\n\r\n{{\"force\": [null]}}"), 400),
        (format!("{release}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 411),
        (format!("{release}Content-Length: 65537\r\n\r\n"), 413),
        (format!("{release}Content-Length: 99999999999999999999999\r\n\r\n"), 413),
        (format!("{release}Expect: the unexpected\r\n\r\n"), 417),
        (format!("{release}X: {long}\r\n\r\n"), 431),
        (format!("POST /gpu/release-all?{long} HTTP/1.1\r\n{host}\r\n"), 431),
        (format!("{release}{}\r\n", "X: y\r\n".repeat(200)), 431),
        (format!("GET /gpu/release-all HTTP/1.1\r\n{host}\r\n"), 405),
        (format!("POST /gpu/release-all/ HTTP/1.1\r\n{host}\r\n"), 404),
        (format!("POST /gpu/../gpu/release-all HTTP/1.1\r\n{host}\r\n"), 404),
    ] {
        let (answered, body) = http.answer(&request);
        assert_eq!(answered, status, "{request:?}: {body}");
        let document: Value = serde_json::from_str(&body).unwrap();
        assert!(document["error"]["message"].is_string(), "{body}");
    }
    assert_untouched(&rig, &vidi);
}

#[test]
fn row_76_a_body_that_is_too_large_is_refused_in_words_that_reach_who_goes_on_sending_it() {
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    let mut stream = http.connect(LOCALHOST);
    let head = http.request("POST /gpu/release-all", "", "");
    let head = head.replace("Content-Length: 0", "Content-Length: 500000");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&[b' '; 500_000]).unwrap();
    assert_eq!(answer(stream).0, 413);
    assert_untouched(&rig, &vidi);
}

#[test]
fn row_76_a_request_that_is_cut_short_does_nothing() {
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    let whole = http.request("POST /gpu/release-all", "", r#"{"force": true}"#);
    for end in (0..whole.len()).step_by(7) {
        let mut stream = http.connect(LOCALHOST);
        stream.write_all(&whole.as_bytes()[..end]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(answer(stream).0, 400, "{end} bytes of it");
        // The same request comes from a client that does not wait for an answer.
        http.connect(LOCALHOST).write_all(&whole.as_bytes()[..end]).unwrap();
    }
    assert_untouched(&rig, &vidi);
}

#[test]
fn row_76_a_request_that_drips_in_is_ended_after_its_ten_seconds() {
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    let begun = Instant::now();
    let drips = |request: String| {
        let mut stream = http.connect(LOCALHOST);
        stream.set_nonblocking(true).unwrap();
        for byte in request.bytes().cycle() {
            if stream.peek(&mut [0]).is_ok() {
                break;
            }
            assert!(begun.elapsed() < rig::with_room(10), "it goes on");
            stream.write_all(&[byte]).ok();
            thread::sleep(Duration::from_millis(200));
        }
        stream.set_nonblocking(false).unwrap();
        assert_eq!(answer(stream).0, 408);
    };
    let head =
        "POST /gpu/release-all HTTP/1.1\r\nHost: localhost\r\nX: ".to_owned() + &"y".repeat(999);
    thread::scope(|scope| {
        scope.spawn(|| drips(head));
        let mut stream = http.connect(LOCALHOST);
        let head = http.request("POST /gpu/release-all", "", "");
        let head = head.replace("Content-Length: 0", "Content-Length: 15");
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(answer(stream).0, 408, "a body that never comes");
    });
    assert_untouched(&rig, &vidi);
}

#[test]
fn row_76_a_page_of_another_site_does_nothing_nor_does_a_name_that_is_not_this_machines() {
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    let port = http.port;
    let asked = |host: &str, fields: &str| {
        http.answer(&format!("POST /gpu/release-all HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).0
    };
    let own = format!("localhost:{port}");
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.evil.example", ""]
    {
        assert_eq!(asked(host, ""), 403, "for the host {host:?}");
    }
    for fields in [
        "Origin: https://evil.example\r\n".to_owned(),
        "Origin: null\r\n".to_owned(),
        format!("Origin: http://{own}.evil.example\r\n"),
        "Origin: http://localhost:1\r\n".to_owned(),
        "Sec-Fetch-Site: cross-site\r\n".to_owned(),
        "Sec-Fetch-Site: same-site\r\n".to_owned(),
        format!("Origin: http://{own}\r\nSec-Fetch-Site: cross-site\r\n"),
    ] {
        assert_eq!(asked(&own, &fields), 403, "{fields}");
    }
    // The form of request that is meant for proxies is refused, too.
    assert_eq!(http.ask(&format!("POST http://evil.example:{port}/gpu/release-all")).0, 403);
    let preflight = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n";
    assert_eq!(http.ask_with("OPTIONS /gpu/release-all", preflight, "").0, 403);
    assert_untouched(&rig, &vidi);

    for (host, fields) in [
        (own.as_str(), format!("Origin: http://{own}\r\nSec-Fetch-Site: same-origin\r\n")),
        ("127.0.0.1", "Sec-Fetch-Site: none\r\n".to_owned()),
        ("[::1]:80", String::new()),
    ] {
        let request = format!("GET /gpu/lock HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
        assert_eq!(http.answer(&request).0, 200, "{request}");
    }
}

#[test]
fn row_76_with_a_token_only_who_shows_it_is_answered() {
    let rig = Rig::new();
    let file = rig.file("token", "correct-horse\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    for key in ["http.token", "http.token_file"] {
        rig.set("http", toml::Table::new());
        rig.set(key, if key == "http.token" { "correct-horse" } else { file.to_str().unwrap() });
        for fields in [
            "",
            "Authorization: Bearer\r\n",
            "Authorization: Bearer wrong\r\n",
            "Authorization: Bearer correct-horse-\r\n",
            "Authorization: Basic correct-horse\r\n",
            "Authorization: Bearer correct-horse\r\nAuthorization: Bearer correct-horse\r\n",
        ] {
            let (status, document) = http.ask_with("POST /gpu/release-all", fields, "");
            assert!([400, 403].contains(&status), "{key}, {fields:?}: {document}");
            assert_eq!(http.ask_with("GET /gpu/status", fields, "").0, status);
        }
        let shown = "Authorization: bearer correct-horse\r\n";
        assert_eq!(http.ask_with("GET /gpu/status", shown, "").0, 200, "{key}");
    }
    // A token file that others can read is no secret.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let shown = "Authorization: Bearer correct-horse\r\n";
    let (status, document) = http.ask_with("POST /gpu/release-all", shown, "");
    assert_eq!((status, &document["error"]["code"]), (500, &"permission".into()));
    assert!(!document.to_string().contains("/token"), "it says where: {document}");
    assert_untouched(&rig, &vidi);
}

#[test]
fn row_76_another_machine_needs_a_token() {
    let own = UdpSocket::bind("0.0.0.0:0").unwrap();
    let Ok(address) = own.connect("192.0.2.1:9").and_then(|()| own.local_addr()) else {
        return rig::skip_or_fail("network", "address beside the loopback's");
    };
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "0.0.0.0") else { return };
    let asked = |fields: &str| {
        let mut stream = http.connect(address.ip());
        let request = http.request("POST /gpu/release-all", fields, "");
        stream.write_all(request.as_bytes()).unwrap();
        answer(stream).0
    };
    assert_eq!(asked(""), 403);
    assert_eq!(asked("X-Forwarded-For: 127.0.0.1\r\n"), 403);
    rig.write_config("what is wrong with it is nobody's business");
    assert_eq!(asked(""), 403);
    rig.set("http.token", "correct-horse");
    assert_eq!(asked(""), 403);
    assert_untouched(&rig, &vidi);
    assert_eq!(asked("Host2: x\r\nAuthorization: Bearer correct-horse\r\n"), 200);
}

#[test]
fn row_76_two_hundred_at_once_are_all_answered_and_none_stays() {
    let rig = Rig::new();
    let Some((vidi, http)) = served(&rig, "127.0.0.1") else { return };
    let acquired = "POST /gpu/lock/acquire?no_wait=1&ttl=1h";
    let statuses: Vec<(u16, Value)> = thread::scope(|scope| {
        let asked = (0..200).map(|number| {
            let line = if number % 2 == 0 { "GET /gpu/status" } else { acquired };
            let http = &http;
            scope.spawn(move || http.ask(line))
        });
        let asked: Vec<_> = asked.collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let of = |is: u16| statuses.iter().filter(|(status, _)| *status == is).count();
    // One caller has the lock, and all others are told so.
    assert_eq!((of(200), of(423)), (101, 99), "{statuses:?}");
    assert_eq!(rig.lock_held()["holder"], "manual");
    assert_untouched(&rig, &vidi);
}
