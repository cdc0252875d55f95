//! The manual page of the configuration file, made from the file's JSON Schema.

use super::DATE;
use super::roff::{Roff, bold, italic};
use crate::config::file::ConfigFile;
use serde_json::Value;

const DESCRIPTION: &str = "\
The configuration says which GPU gpuctl manages, where the GPU lock is kept, which services there \
are and which of them each phase needs. It is a TOML file; a name that ends in `.json` is JSON of \
the same shape. `gpuctl config init` writes one to begin with, `gpuctl config check` validates it, \
and `gpuctl config show` prints what is in force.

Sizes are in MB of 1,048,576 bytes, or have a unit: 20000, \"20000MB\", \"20GB\", \"20G\", \"20GiB\"; \
G, GB and GiB all mean 1024 MB. Durations are \"90s\", \"10m\", \"1h30m\", or a number of seconds. In paths, commands and URLs, `~` and `$VAR` are replaced; `$$` stands for a dollar sign. \
An unknown key is an error.

The file holds commands that are run, so it must belong to the user or to root, and nobody else may \
be able to write it.";

const EXAMPLE: &str = r#"[phases]
3 = "speech"
4 = "video"

[services.cosyvoice]
type = "docker"
container = "mcn_cosyvoice"
vram_mb = 4000
priority = 50
phases = [3]
health = "http://localhost:50000/docs"

[services.comfyui]
type = "native"
start = "~/start_comfy.sh"
match = 'python.*main\.py.*8188'
vram_mb = 20000
priority = 100
phases = [4]
health = "http://localhost:8188/system_stats""#;

const FILES: &[(&str, &str)] = &[
    ("--config PATH", "given to any command,"),
    ("$GPUCTL_CONFIG", "then this variable,"),
    ("./gpuctl.toml", "then the working folder,"),
    ("~/.config/gpuctl/config.toml", "then the user's (below XDG_CONFIG_HOME, if that is set),"),
    ("/etc/gpuctl/config.toml", "then the machine's. The first that is there counts."),
];

pub fn page() -> String {
    let schema = schemars::schema_for!(ConfigFile).to_value();
    let mut page = Roff::new("gpuctl.toml", 5, DATE);
    page.section("NAME");
    page.raw("gpuctl.toml \\- configuration of gpuctl");
    page.section("DESCRIPTION");
    page.prose(DESCRIPTION);
    let is_table = |(_, property): &(&String, &Value)| {
        resolved(&schema, property)["type"].as_str() == Some("object")
            || reference(property).is_none() && property["type"].as_str() != Some("string")
    };
    let (tables, keys): (Vec<_>, Vec<_>) = properties(&schema).partition(is_table);
    for (key, property) in keys {
        entry(&mut page, &schema, key, property, false);
    }
    for (name, property) in tables {
        table(&mut page, &schema, name, property);
    }
    page.section("FILES");
    for (place, text) in FILES {
        page.item(&bold(place), text);
    }
    page.section("EXAMPLES");
    page.code(EXAMPLE);
    page.section("SEE ALSO");
    page.raw(&["gpuctl", "gpuctl-config"].map(|name| format!("{}(1)", bold(name))).join(",\n"));
    page.finish()
}

/// Writes the section of one of the file's tables. If the table's keys are free names, the section
/// is about the table that each name stands for.
fn table(page: &mut Roff, schema: &Value, name: &str, property: &Value) {
    let shape = resolved(schema, property);
    let each = resolved(schema, &shape["additionalProperties"]);
    let (heading, keys) = match properties(each).next() {
        Some(_) => (format!("[{name}.NAME]"), each),
        None => (format!("[{name}]"), shape),
    };
    page.section(&heading);
    let description = [property, keys].into_iter().find_map(|shape| shape["description"].as_str());
    page.prose(description.unwrap_or_default());
    entries(page, schema, keys);
}

fn entries(page: &mut Roff, schema: &Value, table: &Value) {
    let is_required = |key: &str| {
        table["required"].as_array().is_some_and(|required| required.iter().any(|name| name == key))
    };
    for (key, property) in properties(table) {
        entry(page, schema, key, property, is_required(key));
        let inner = resolved(schema, property);
        if properties(inner).next().is_some() {
            page.raw(".RS");
            entries(page, schema, inner);
            page.raw(".RE");
        }
    }
}

fn entry(page: &mut Roff, schema: &Value, key: &str, property: &Value, is_required: bool) {
    let mut text = property["description"].as_str().unwrap_or_default().to_owned();
    match &property["default"] {
        _ if is_required => text.push_str(" Required."),
        Value::Null | Value::Object(_) => {}
        Value::Array(items) if items.is_empty() => {}
        Value::String(text) if text.is_empty() => {}
        default => text.push_str(&format!(" Default: {default}.")),
    }
    let term = format!("{} = {}", bold(key), kind(schema, property));
    page.item(&term, &text);
}

/// Returns in roff which values a key may have.
fn kind(schema: &Value, property: &Value) -> String {
    let shape = resolved(schema, property);
    let reference = reference(property).unwrap_or_default();
    if let Some(values) = shape["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|value| bold(&value.to_string())).collect();
        return values.join(" | ");
    }
    let name = match (shape["type"].as_str().or(shape["type"][0].as_str()), reference) {
        (_, "Span") => "DURATION",
        (_, "Mb") => "MB",
        (_, "PhaseRef") => "PHASE",
        (Some("array"), _) => return format!("[{}, ...]", kind(schema, &shape["items"])),
        (Some("boolean"), _) => return format!("{} | {}", bold("true"), bold("false")),
        (Some("integer" | "number"), _) => "NUMBER",
        (Some("string"), _) => "STRING",
        _ => "TABLE",
    };
    italic(name)
}

fn properties(shape: &Value) -> impl Iterator<Item = (&String, &Value)> {
    shape["properties"].as_object().into_iter().flatten()
}

/// Returns the name of the definition that a property refers to, or may refer to; `None` if it
/// refers to none.
fn reference(property: &Value) -> Option<&str> {
    let reference = property["$ref"].as_str().or(property["anyOf"][0]["$ref"].as_str());
    reference?.strip_prefix("#/$defs/")
}

fn resolved<'a>(schema: &'a Value, property: &'a Value) -> &'a Value {
    reference(property).map_or(property, |name| &schema["$defs"][name])
}
