//! Tests that gpuctl works with each way in which Docker's client is told where its engine is;
//! those ways are the client's own matter.

use rig::{Invocation, Rig, root_or_skip, skip_or_fail, until, works};
use serde_json::json;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

/// Starts a service, asks for it and stops it, each in a shell that first runs `before` to say
/// where the engine is.
#[track_caller]
fn works_by(rig: &Rig, before: &str) {
    let gpuctl =
        |words: &str| -> Invocation { rig.shell(&format!("{before}; exec gpuctl {words}")) };
    gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    let told = gpuctl("status --json").run().succeeds().json()["services"]["voice"].clone();
    assert_eq!((&told["state"], &told["used_mb"]), (&json!("ready"), &json!(1000)), "{before}");
    gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn an_engine_is_found_by_a_context_that_is_in_use_or_is_named() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("voice").add();
    let create = format!(
        "unset DOCKER_HOST; docker context create mine --docker host={}",
        rig.engine().host()
    );
    rig.shell(&create).run().succeeds().ignores_stdout().ignores_stderr();
    works_by(&rig, "unset DOCKER_HOST; export DOCKER_CONTEXT=mine");
    rig.shell("docker context use mine").run().succeeds().ignores_stdout().ignores_stderr();
    works_by(&rig, "unset DOCKER_HOST");
    // A context that does not exist is named in the error.
    let refused =
        rig.shell("unset DOCKER_HOST; DOCKER_CONTEXT=absent exec gpuctl start voice").run();
    refused.fails("unavailable").stderr_has("absent");
}

/// A proxy in front of the socket, or `dockerd -H tcp://`, makes an engine speak TCP.
#[test]
fn an_engine_is_spoken_to_over_tcp() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("voice").add();
    let socket = rig.engine().host().trim_start_matches("unix://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // The thread ends with the test.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(engine) = UnixStream::connect(&socket) else { continue };
            carry(client, engine);
        }
    });
    works_by(&rig, &format!("export DOCKER_HOST=tcp://{address}"));
    let port = rig.port();
    let refused =
        rig.gpuctl("start voice").env("DOCKER_HOST", format!("tcp://127.0.0.1:{port}")).run();
    refused.fails("unavailable").stderr_has(&port.to_string());
}

/// Carries what each side sends to the other, in threads of its own.
fn carry(client: TcpStream, engine: UnixStream) {
    let (mut from_client, mut from_engine) =
        (client.try_clone().unwrap(), engine.try_clone().unwrap());
    let (mut to_client, mut to_engine) = (client, engine);
    thread::spawn(move || {
        std::io::copy(&mut from_client, &mut to_engine).ok();
        to_engine.shutdown(Shutdown::Write).ok();
    });
    thread::spawn(move || {
        std::io::copy(&mut from_engine, &mut to_client).ok();
        to_client.shutdown(Shutdown::Write).ok();
    });
}

/// A script that starts an sshd in folder $1 on port $2, which lets root in by one key and sets
/// `DOCKER_HOST` to $3. It gets /run as a mount that nobody else sees, and root's shell does
/// nothing of its own at a login, since its profile is hidden by another one.
const SSHD: &str = r#"set -e
cd "$1"
for key in key host; do ssh-keygen -q -t ed25519 -N '' -f ssh-$key; done
mount -t tmpfs none /run
mkdir /run/sshd
profile=$(getent passwd root | cut -d: -f6)/.bashrc
[ ! -e "$profile" ] || mount --bind /dev/null "$profile"
exec $(PATH=$PATH:/usr/sbin:/sbin command -v sshd) -D -e -f /dev/null -o Port="$2" -o ListenAddress=127.0.0.1 \
    -o HostKey="$1/ssh-host" -o AuthorizedKeysFile="$1/ssh-key.pub" -o StrictModes=no -o PermitRootLogin=yes \
    -o UsePAM=no -o PidFile=none -o SetEnv="DOCKER_HOST=$3"
"#;

#[test]
fn an_engine_is_spoken_to_over_ssh() {
    let Some(rig) = Rig::with_docker() else { return };
    let is_there =
        |name: &str| works("sh", &["-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}")]);
    if !["sshd", "ssh", "ssh-keygen"].into_iter().all(is_there) {
        return skip_or_fail("sshd", "sshd and ssh");
    }
    if !root_or_skip() {
        return;
    }
    rig.container("voice").add();
    let (home, port) = (rig.path("home").display().to_string(), rig.port());
    let start = rig.file("start-sshd", SSHD).display().to_string();
    let _sshd =
        rig.by_hand(&format!("unshare --mount sh {start} {home} {port} {}", rig.engine().host()));
    // ssh reads the settings in the home that the list of users names, and not in `$HOME`.
    let options = format!(
        "-i {home}/ssh-key -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    );
    rig.program("ssh", &format!("PATH=${{PATH#*:}} exec ssh -F none {options} \"$@\""));
    let login = format!("ssh -p {port} root@127.0.0.1 true");
    until("sshd lets in", || rig.shell(&login).run().ended().0 == Some(0));
    works_by(&rig, &format!("export DOCKER_HOST=ssh://root@127.0.0.1:{port}"));
    let nobody = rig.port();
    let host = format!("ssh://root@127.0.0.1:{nobody}");
    // The client may notice that its ssh has ended before it has read the reason.
    until("the client tells where it was refused", || {
        let refused = rig.gpuctl("start voice").env("DOCKER_HOST", &host).run();
        let refused = refused.fails("unavailable").stderr_has("Docker cannot be reached");
        refused.stderr_text().contains(&nobody.to_string())
    });
}
