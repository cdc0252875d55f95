//! Tests of what is offered at the end of a command line by `gpuctl complete`, which the scripts of
//! all shells call.

use rig::{Rig, unconfigured_or_skip, until};
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

/// Creates a rig whose configuration has three services, two phases and a canary.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.write_config(
        r#"
[phases]
1 = "crawl"
4 = "video"
[services.comfyui]
type = "native"
start = "true"
vram_mb = 20000
phases = [4]
[services.cosyvoice]
type = "docker"
container = "cosyvoice"
vram_mb = 4000
[services.vllm]
type = "systemd"
unit = "vllm.service"
vram_mb = 18000
[canary]
service = "vllm"
bounds = { vllm_memory_util = { min = 0.6, max = 0.9 }, whisper_model_size = { one_of = ["tiny", "base"] } }
"#,
    );
    rig
}

/// Returns the kind of completion and the words that are offered, without their descriptions. The
/// line ends with a `|`, before which the last word is being typed.
#[track_caller]
fn offered(rig: &Rig, line: &str) -> Vec<String> {
    let words = line.strip_suffix('|').expect("a cursor");
    let ask = words.split(' ').fold(rig.gpuctl("complete --"), |ask, word| ask.arg(word));
    let text = ask.run().succeeds().text();
    text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
}

#[test]
fn what_may_come_next_is_offered() {
    let rig = rig();
    let services = "values comfyui cosyvoice vllm";
    let phases = "values crawl video 1 4";
    for (line, expected) in [
        ("gpuctl st|", "values status start stop"),
        ("gpuctl lock |", "values acquire release status help"),
        ("gpuctl help lock a|", "values acquire"),
        // Nobody types the companions' commands or the one that the scripts call, so none is
        // offered.
        ("gpuctl gu|", "values"),
        ("gpuctl wat|", "values"),
        ("gpuctl complet|", "values completions"),
        ("gpuctl help gu|", "values"),
        ("gpuctl start |", services),
        ("gpuctl start --no-preempt c|", "values comfyui cosyvoice"),
        ("gpuctl stop |", services),
        ("gpuctl stop vllm --force |", "values comfyui cosyvoice"),
        ("gpuctl stop -- c|", "values comfyui cosyvoice"),
        ("gpuctl can-fit vl|", "values vllm"),
        ("gpuctl status --check |", services),
        ("gpuctl status --check vllm --check |", "values comfyui cosyvoice"),
        ("gpuctl status --check=c|", "values --check=comfyui --check=cosyvoice"),
        ("gpuctl prepare-phase |", phases),
        ("gpuctl run |", services),
        ("gpuctl run --phase |", phases),
        ("gpuctl run --phase=v|", "values --phase=video"),
        ("gpuctl run --phase video |", "values --"),
        ("gpuctl run comfyui |", "values --"),
        ("gpuctl run comfyui --p|", "values --priority"),
        ("gpuctl run comfyui -- |", "command"),
        ("gpuctl run comfyui -- make -|", "command"),
        ("gpuctl start --w|", "values --wait"),
        ("gpuctl start --no-wait comfyui --w|", "values"),
        ("gpuctl start --wait |", "values"),
        ("gpuctl start --wait 5m --no|", "values --no-preempt --no-drain"),
        ("gpuctl -q st|", "values status start stop"),
        ("gpuctl -vq st|", "values status start stop"),
        ("gpuctl --quiet --ver|", "values --version"),
        ("gpuctl lock acquire x|", "values"),
        ("gpuctl completions |", "values bash zsh fish"),
        ("gpuctl canary run --mode |", "values predictive canary"),
        (
            "gpuctl canary check --set |",
            "values vllm_memory_util= whisper_model_size=tiny whisper_model_size=base",
        ),
        ("gpuctl canary run --set vllm_memory_util=0.7 --no|", "values --now"),
        ("gpuctl --gpu |", "values 0"),
        ("gpuctl --config |", "files"),
        ("gpuctl --config=x|", "files"),
        ("gpuctl config init --output |", "files"),
        ("gpuctl man --out |", "files"),
        ("gpuctl|", "values"),
    ] {
        assert_eq!(offered(&rig, line).join(" "), expected, "{line}");
    }
    // If nothing else can follow, the options are offered.
    let options = offered(&rig, "gpuctl release-all |");
    assert_eq!(options[..4], ["values", "--force", "--drain", "--no-drain"], "{options:?}");
    let ask = rig.gpuctl("complete -- gpuctl prepare-phase v");
    ask.run().succeeds().stdout("values\nvideo\tphase 4: comfyui\n");
    let ask = rig.gpuctl("complete -- gpuctl start v");
    ask.run().succeeds().stdout("values\nvllm\tsystemd, 18000 MB\n");
}

#[test]
fn the_names_are_those_of_the_configuration_that_would_be_used() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = rig();
    let service = "[services.other]\ntype = \"native\"\nstart = \"true\"\nvram_mb = 1\n";
    for place in ["home/typed.toml", "home/gpuctl.toml", "home/some where.toml"] {
        fs::write(rig.path(place), service).unwrap();
        fs::set_permissions(rig.path(place), Permissions::from_mode(0o600)).unwrap();
    }
    for line in [
        "gpuctl --config typed.toml stop o|",
        "gpuctl --config=typed.toml stop o|",
        "gpuctl stop --config typed.toml o|",
        // The shell has not expanded these paths yet.
        "gpuctl --config ~/typed.toml stop o|",
        "gpuctl --config=$HOME/typed.toml stop o|",
    ] {
        assert_eq!(offered(&rig, line), ["values", "other"], "{line}");
    }
    let ask = rig.gpuctl("complete -- gpuctl --config").arg("some where.toml").arg("stop").arg("o");
    ask.run().succeeds().stdout_has("other");
    let found = rig.gpuctl("complete -- gpuctl stop o").env_remove("GPUCTL_CONFIG");
    found.run().succeeds().stdout_has("other");
}

#[test]
fn where_the_configuration_is_broken_the_rest_is_offered_in_silence() {
    let rig = rig();
    for (row, text, mode) in [
        ("empty", "", 0o600),
        ("no TOML", "[services", 0o600),
        ("an unknown key", "[services.comfyui]\ncolour = 1\n", 0o600),
        ("an unset variable", "[lock]\nurl = \"$NOWHERE\"\n", 0o600),
        ("others may write to it", "[phases]\n1 = \"crawl\"\n", 0o666),
    ] {
        rig.write_config(text);
        fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(mode)).unwrap();
        assert_eq!(offered(&rig, "gpuctl st|"), ["values", "status", "start", "stop"], "{row}");
        assert_eq!(offered(&rig, "gpuctl start --d|"), ["values", "--drain", "--dry-run"], "{row}");
        assert_eq!(offered(&rig, "gpuctl prepare-phase c|"), ["values"], "{row}");
    }
    fs::remove_file(rig.path("gpuctl.toml")).unwrap();
    rig.shell("mkfifo ../gpuctl.toml").run().succeeds();
    assert_eq!(offered(&rig, "gpuctl stop --fo|"), ["values", "--force"], "a FIFO");
    fs::remove_file(rig.path("gpuctl.toml")).unwrap();
    assert_eq!(offered(&rig, "gpuctl stop c|"), ["values"], "none");
}

#[test]
fn completing_asks_nobody_and_leaves_nothing() {
    let rig = rig();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port();
    for program in ["docker", "systemctl", "pgrep", "sh", "comfyui"] {
        rig.program(program, "touch ../was-run");
    }
    rig.set("lock.url", format!("redis://127.0.0.1:{port}"));
    rig.native("comfyui")
        .set("start", "comfyui")
        .set("health", format!("tcp://127.0.0.1:{port}"))
        .add();
    fs::remove_dir(rig.state_dir()).unwrap();
    for line in ["gpuctl start |", "gpuctl run |", "gpuctl status --check |"] {
        assert!(offered(&rig, line).contains(&"comfyui".to_owned()), "{line}");
    }
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody connected");
    assert!(!rig.path("was-run").exists(), "a program was run");
    assert!(!rig.state_dir().exists(), "state was written");
    // The listener would have noticed a connection.
    let _client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    until("it is noticed", || server.accept().is_ok());
}
