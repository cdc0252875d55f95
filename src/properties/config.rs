//! Properties of a configuration: any text is either taken or refused, and what is shown of a
//! configuration is a configuration again.

use crate::config::file::ConfigFile;
use crate::config::{Config, masked};
use crate::exit::Code;
use crate::model::Mb;

pub fn config_toml(input: &[u8]) {
    config("gpuctl.toml", input);
}

pub fn config_json(input: &[u8]) {
    config("gpuctl.json", input);
}

fn config(name: &str, input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let config = match Config::of_file(name, text) {
        Ok(config) => config,
        Err(failure) => {
            assert_eq!(failure.code, Code::Config, "{failure}");
            assert!(failure.message.starts_with("configuration gpuctl."), "{failure}");
            return;
        }
    };
    for service in &config.services {
        assert!(service.vram <= Mb::MAX, "{service:?}");
        assert!(service.phases.iter().all(|phase| config.phases.contains_key(phase)));
    }
    let document = masked(&config.file).expect("a configuration is a document");
    let shown = toml::to_string(&document).expect("what is taken can be shown");
    let again: ConfigFile = toml::from_str(&shown).expect("what is shown is a configuration");
    assert_eq!(masked(&again).expect("a document"), document, "{shown}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::properties::settings;
    use proptest::prelude::*;
    use serde_json::Value;

    /// How a good configuration is damaged.
    #[derive(Clone, Copy, Debug)]
    enum Damage {
        None,
        /// The text ends after this many bytes.
        Cut(usize),
        /// The value of the key with this number is of another type.
        Retyped(usize, &'static str),
        /// The value of the key with this number is a URL with the secret.
        Misplaced(usize),
    }

    fn damages() -> impl Strategy<Value = Damage> {
        const VALUES: [&str; 6] = ["5", "true", "[1]", "{}", "1979-05-27", "''"];
        prop_oneof![
            Just(Damage::None),
            (0_usize..900).prop_map(Damage::Cut),
            (0_usize..30, prop::sample::select(&VALUES[..]))
                .prop_map(|(n, v)| Damage::Retyped(n, v)),
            (0_usize..30).prop_map(Damage::Misplaced),
        ]
    }

    /// Returns a configuration, one `key = value` a line, with a secret wherever one may stand.
    fn configuration(secret: &str) -> String {
        format!(
            r#"
lock.url = "redis://:{secret}@localhost:6379/0"
lock.ttl = "10m"
gpu.reserve_mb = 1024
phases.1 = "crawl"
services.a.type = "native"
services.a.vram_mb = 4000
services.a.start = "serve"
services.a.priority = 3
services.a.phases = [1]
services.a.env.HF_TOKEN = "{secret}"
services.a.env.DB = "postgres://user:{secret}@localhost/db"
services.a.health = "http://user:{secret}@localhost:1/health"
services.a.evict = "unload"
services.a.unload.url = "https://{secret}@localhost:1/unload"
services.a.unload.body = "{{}}"
services.a.headers.X-Key = "{secret}"
services.a.warm_up.url = "https://{secret}@localhost:1/load"
services.a.busy.url = "https://{secret}@localhost:1/jobs"
services.a.busy.json = "/jobs"
services.b.type = "docker"
services.b.container = "b"
services.b.vram_mb = 1
services.b.health = "http://localhost:1/?api_key={secret}&x=1"
services.b.stop_timeout = "1m"
"#
        )
    }

    fn damaged(text: &str, secret: &str, damage: Damage) -> String {
        let cut = |at: usize| text[..at.min(text.len())].to_owned();
        let mut lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
        let (number, value) = match damage {
            Damage::None => return text.to_owned(),
            Damage::Cut(at) => return cut(at),
            Damage::Retyped(number, value) => (number, value.to_owned()),
            Damage::Misplaced(number) => (number, format!("\"redis://:{secret}@localhost\"")),
        };
        let count = lines.len();
        let line = &mut lines[number % count];
        let key = line.split(" = ").next().unwrap_or_default();
        *line = format!("{key} = {value}");
        lines.join("\n")
    }

    proptest! {
        #![proptest_config(settings())]

        #[test]
        fn a_secret_is_in_no_message_and_in_nothing_that_is_shown(
            secret in "[a-z][A-Za-z0-9!%()*+,;:?@^~._-]{7,16}[a-z0-9]",
            damage in damages(),
        ) {
            let secret = secret.as_str();
            let text = damaged(&configuration(secret), secret, damage);
            let json = toml::from_str(&text).map(|document: Value| document.to_string());
            for (name, text) in [("a.toml", text), ("a.json", json.unwrap_or_default())] {
                let told = match Config::of_file(name, &text) {
                    Ok(config) => masked(&config.file).expect("a document").to_string(),
                    Err(failure) => format!("{failure:?}"),
                };
                prop_assert!(!told.contains(secret), "{told}\n--- of\n{text}");
            }
        }
    }
}
