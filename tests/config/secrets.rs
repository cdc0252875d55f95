//! Tests of what must never be shown, by any command or in any error: passwords in URLs, and
//! environment values named like secrets.

use rig::Rig;

const SECRET: &str = "hunter2";
/// The text `user:hunter2` in base64, as an HTTP client would send it.
const ENCODED: &str = "dXNlcjpodW50ZXIy";

/// Returns everything that a command prints on both streams, whatever its exit code; asserts that
/// the secret is not in it.
#[track_caller]
fn told(rig: &Rig, command: &str) -> String {
    let text = rig.shell(&format!("gpuctl {command} 2>&1; true")).run().succeeds().text();
    assert!(!text.is_empty(), "{command} says something");
    assert!(!text.contains(SECRET) && !text.contains(ENCODED), "{command}: {text}");
    text
}

#[test]
fn show_masks_secrets_and_nothing_else() {
    let rig = Rig::new();
    rig.write_config(&format!(
        "[http]\ntoken = \"{SECRET}\"\n[lock]\nurl = \"redis://:{SECRET}@localhost:6379/0\"\nkey = \"kept_key\"\n\
         [services.a]\ntype = \"native\"\nvram_mb = 1\nstart = \"serve http://user:{SECRET}@proxy/\"\n\
         health = \"http://user:{SECRET}@localhost:1/x@y\"\n\
         unload = {{ url = \"https://{SECRET}@localhost/free\" }}\n\
         headers = {{ Accept = \"{SECRET}\" }}\n\
         env = {{ API_KEY = \"{SECRET}\", hf_token = \"{SECRET}\", DB_PASSWORD = \"{SECRET}\", \
         AWS_SECRET = \"{SECRET}\", PORT = \"8188\", PROXY = \"http://u:{SECRET}@proxy:1\" }}\n"
    ));
    for form in ["", "--json", "--json -vv"] {
        let text = told(&rig, &format!("config show {form}"));
        for kept in [
            "redis://***@localhost:6379/0",
            "kept_key",
            "serve http://***@proxy/",
            "http://***@localhost:1/x@y",
            "https://***@localhost/free",
            "8188",
            "http://***@proxy:1",
        ] {
            assert!(text.contains(kept), "{kept} is not in {text}");
        }
    }
    let shown = rig.gpuctl("config show --json").run().succeeds().json();
    let env = &shown["services"]["a"]["env"];
    for name in ["API_KEY", "hf_token", "DB_PASSWORD", "AWS_SECRET"] {
        assert_eq!(env[name], "***", "{name}");
    }
    assert_eq!(shown["services"]["a"]["headers"]["Accept"], "***");
    let of_environment = rig.gpuctl("config show").env("GPUCTL_LOCK_URL", "redis://:hunter2@h/1");
    of_environment.run().succeeds().stdout_has("redis://***@h/1");
}

#[test]
fn no_complaint_about_the_configuration_shows_a_secret() {
    let rig = Rig::new();
    let native = "[services.a]\ntype = \"native\"\nvram_mb = 1\nstart = \"a\"\n";
    for text in [
        format!("lock = \"redis://:{SECRET}@h\""),
        format!("[lock]\nurl = \"http://:{SECRET}@h\""),
        format!("[lock]\nurl = \"redis://:{SECRET}@$NOWHERE\""),
        format!("[lock]\nurl = \"redis://:{SECRET}@h:99999/0\""),
        format!("[lock]\nurl = \"redis://{SECRET}:{SECRET}@h/{SECRET}\""),
        format!("[lock]\nurl = \"redis+unix:///x?pass={SECRET}&db={SECRET}\""),
        format!("[lock]\nurl = \"redis://:{SECRET}@h"),
        format!("[lock]\nttl = \"redis://:{SECRET}@h\""),
        format!("{native}health = \"ftp://user:{SECRET}@h\""),
        format!("{native}health = \"http://user:{SECRET}@h:99999\""),
        format!("{native}health = [\"http://user:{SECRET}@h\"]"),
        format!("{native}unload = \"http://user:{SECRET}@h\""),
        format!("{native}unload = {{ url = \"http://user:{SECRET}@\" }}"),
        format!("{native}env = {{ API_KEY = \"{SECRET}\\u0000\" }}"),
        format!("{native}env = {{ API_KEY = \"{SECRET}$NOWHERE\" }}"),
        format!("{native}env = \"API_KEY={SECRET}\""),
        format!("{native}headers = {{ X = \"{SECRET}\\n\" }}"),
        format!("{native}headers = {{ X = [\"{SECRET}\"] }}"),
        format!("{native}headers = {{ X = \"{SECRET}$NOWHERE\" }}"),
        format!("{native}headers = \"X: {SECRET}\""),
        format!("{native}busy = {{ url = \"http://u:{SECRET}@h:99999\", json = \"\" }}"),
    ] {
        rig.write_config(&text);
        for form in ["config check", "config show --json", "status -vv"] {
            let told = told(&rig, form);
            assert!(told.contains("gpuctl.toml"), "it is refused: {told}");
        }
    }
    rig.write_config(&format!("{native}env = {{ API_KEY = 4711471147114711 }}"));
    let check = rig.gpuctl("config check --json").run().fails("config").json();
    let message = check["error"]["message"].as_str().unwrap();
    assert!(message.contains("env.API_KEY: must be text"), "{message}");
    assert!(!message.contains("4711"), "{message}");
}

#[test]
fn no_command_shows_a_secret_however_verbose() {
    let rig = Rig::new();
    let port = rig.port();
    let draft = rig.native("vidi").set("health", format!("http://user:{SECRET}@127.0.0.1:{port}/"));
    let env = toml::toml! { API_KEY = "hunter2" };
    let stop = format!("echo http://user:{SECRET}@h >&2; exit 1");
    let vidi = draft.set("env", env).set("stop", stop).set("start_timeout", "300ms").add();
    rig.set("lock.url", format!("file://{}/lock", rig.path("").display()));
    for command in [
        "status -vv",
        "status --json",
        "start vidi --dry-run -vv",
        "start vidi -vv",
        "status -vv",
        "stop vidi -vv",
        "start vidi --json",
    ] {
        let text = told(&rig, command);
        assert!(text.contains("vidi"), "{text}");
    }
    let text = told(&rig, "stop vidi -v");
    assert!(text.contains("exit 1"), "the stop command is shown: {text}");
    rig.assert_no_process_of(&vidi);
}
