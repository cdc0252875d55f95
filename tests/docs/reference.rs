//! Tests of the lists in `docs/` against the program: every key of the schema is documented and no
//! other, with the default that is in force, and the documented rights are what the lock needs.
//! Tests of the pages themselves and of their links.

use rig::page::{Page, repository};
use rig::{Rig, until};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use toml::Table;

/// The least that a configuration must say to have all its optional tables.
const MINIMAL: &str = r#"
[services.a]
type = "native"
start = "a"
vram_mb = 1
[services.a.unload]
url = "http://localhost:1"
[services.a.warm_up]
url = "http://localhost:1"

[canary]
service = "a"
"#;

/// Returns the documented default of each key, as it stands in its cell.
fn documented() -> BTreeMap<String, String> {
    let page = Page::read("configuration.md");
    let of_keys = page.sections.iter().filter(|section| section.title.starts_with('`'));
    let rows = of_keys.flat_map(|section| section.rows()).filter(|row| row.len() == 4);
    let mut keys = BTreeMap::new();
    for row in rows {
        let key = row[0].trim_matches('`').to_owned();
        assert_eq!(keys.insert(key, row[2].clone()), None, "{} is documented twice", row[0]);
    }
    keys
}

/// Replaces the parts of a key whose names are the reader's to choose, such as `NAME`, with `*`.
fn nameless(key: &str) -> String {
    let is_placeholder = |part: &&str| part.bytes().all(|byte| byte.is_ascii_uppercase());
    let parts = key.split('.').map(|part| if is_placeholder(&part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Collects those keys of a schema that hold a value.
fn keys_of(schema: &Value, root: &Value, key: &str, found: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        return keys_of(root.pointer(name.trim_start_matches('#')).unwrap(), root, key, found);
    }
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let mut is_leaf = true;
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        is_leaf = false;
        keys_of(inner, root, &below(name), found);
    }
    if schema["additionalProperties"].is_object() {
        is_leaf = false;
        keys_of(&schema["additionalProperties"], root, &below("*"), found);
    }
    for inner in schema["anyOf"].as_array().into_iter().flatten() {
        is_leaf = false;
        if inner["type"] != "null" {
            keys_of(inner, root, key, found);
        }
    }
    if is_leaf {
        found.insert(key.to_owned());
    }
}

/// Collects the values of a document by their full keys; a list is one value.
fn values_of(document: &Value, key: &str, found: &mut BTreeMap<String, Value>) {
    match document.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (name, inner) in fields {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                values_of(inner, &key, found);
            }
        }
        _ => drop(found.insert(key.to_owned(), document.clone())),
    }
}

/// Returns the values that are in force with a configuration, by their full keys.
fn shown(rig: &Rig, config: &str) -> BTreeMap<String, Value> {
    rig.write_config(config);
    let show = rig.gpuctl("config show --json").env_remove("REDIS_URL").run().succeeds().json();
    let mut values = BTreeMap::new();
    values_of(&show, "", &mut values);
    values
}

#[test]
fn every_key_of_the_configuration_is_documented_and_no_other() {
    let rig = Rig::new();
    let schema = rig.gpuctl("config schema").run().succeeds().json();
    let mut keys = BTreeSet::new();
    keys_of(&schema, &schema, "", &mut keys);
    // This table is documented with its default as well as part by part.
    keys.insert("canary.bounds".to_owned());
    let documented: BTreeSet<String> = documented().keys().map(|key| nameless(key)).collect();
    let missing: Vec<_> = keys.difference(&documented).collect();
    let orphaned: Vec<_> = documented.difference(&keys).collect();
    assert!(
        missing.is_empty() && orphaned.is_empty(),
        "missing {missing:?}, too many {orphaned:?}"
    );
}

/// Setting every default to what the page says must change nothing, and no other value may be in
/// force.
#[test]
fn the_documented_defaults_are_those_in_force() {
    let mut config: Table = MINIMAL.parse().unwrap();
    let mut given = BTreeMap::new();
    values_of(&serde_json::to_value(&config).unwrap(), "", &mut given);
    let mut known: BTreeSet<String> = given.into_keys().collect();
    for (key, default) in documented() {
        let Some(value) = default.strip_prefix('`').and_then(|it| it.strip_suffix('`')) else {
            assert!(["–", "required"].contains(&default.as_str()), "{key}: {default}");
            continue;
        };
        let key = key.replace(".NAME.", ".a.");
        let value: Table = format!("value = {value}").parse().unwrap();
        let mut values = BTreeMap::new();
        values_of(&serde_json::to_value(&value["value"]).unwrap(), &key, &mut values);
        known.extend(values.into_keys());
        let (tables, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let tables = tables.split('.').filter(|table| !table.is_empty());
        let table = tables.fold(&mut config, |table, part| {
            table.entry(part).or_insert(Table::new().into()).as_table_mut().unwrap()
        });
        table.insert(name.to_owned(), value["value"].clone());
    }
    let rig = Rig::new();
    let (in_force, with_documented) = (shown(&rig, MINIMAL), shown(&rig, &config.to_string()));
    for (key, value) in &in_force {
        assert_eq!(with_documented.get(key), Some(value), "{key}");
        assert!(known.contains(key), "{key} = {value} is in force and not documented");
    }
}

#[test]
fn what_is_documented_as_required_is_and_nothing_else() {
    let rig = Rig::new();
    rig.write_config(MINIMAL);
    rig.gpuctl("config check").run().succeeds().stdout_has("good");
    for (key, _) in documented().into_iter().filter(|(_, default)| default == "required") {
        let mut config: Table = MINIMAL.parse().unwrap();
        let key = key.replace(".NAME.", ".a.");
        let (tables, name) = key.rsplit_once('.').unwrap();
        let table =
            tables.split('.').fold(&mut config, |table, part| table[part].as_table_mut().unwrap());
        assert!(table.remove(name).is_some(), "{key} is required and not in the minimum");
        rig.write_config(&config.to_string());
        rig.gpuctl("config check").run().fails("config").stderr_has(name);
    }
}

#[test]
fn the_rights_that_the_page_gives_a_redis_user_are_enough() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let sections = Page::read("lock.md").sections;
    let rights: String = sections.iter().map(|section| section.text_of("redis")).collect();
    redis.cli(&rights.split_whitespace().collect::<Vec<_>>());
    rig.set("lock.url", format!("redis://gpuctl:PASSWORD@127.0.0.1:{}/0", redis.port()));
    rig.native("vidi").add();
    rig.acquire("first");
    let waiter = rig.gpuctl("lock acquire second").spawn();
    until("it waits", || waiter.stderr().contains("held by first"));
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    waiter.wait().succeeds().progress().stdout_has("\n");
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    rig.gpuctl("run vidi -- true").run().succeeds().progress();
    rig.assert_lock_is_free();
}

/// Returns the anchor that GitHub makes of a heading.
fn anchor(title: &str) -> String {
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn links_within_the_repository_lead_somewhere() {
    for page in Page::all().iter().filter(|page| page.name != "README.md") {
        for link in page.links() {
            let (file, wanted) = link.split_once('#').unwrap_or((&link, ""));
            let path = repository().join("docs").join(file);
            assert!(path.exists(), "{}: {link}", page.name);
            if !wanted.is_empty() {
                let sections = Page::read(file).sections;
                let is_there = sections.iter().any(|section| anchor(&section.title) == wanted);
                assert!(is_there, "{}: {link}", page.name);
            }
        }
    }
}

#[test]
fn the_index_names_every_page() {
    let index = Page::read("README.md").links();
    for page in Page::all().iter().filter(|page| page.name != "README.md") {
        assert!(index.contains(&page.name), "{} is not in the index", page.name);
    }
}

#[test]
fn the_test_that_contributing_shows_is_one() {
    let page = std::fs::read_to_string(repository().join("CONTRIBUTING.md")).unwrap();
    let shown = page.split("```rust\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(include_str!("../stop.rs").ends_with(shown), "{shown}");
}
