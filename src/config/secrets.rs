//! The configuration as it may be shown: its token, passwords in URLs, the values of headers, and
//! the values of variables that are named like secrets are masked.

use super::file::ConfigFile;
use crate::redact::{MASK, is_secret, mask_urls};
use serde_json::Value;

/// Returns a configuration as a document in which secrets are masked.
pub fn masked(file: &ConfigFile) -> serde_json::Result<Value> {
    let mut file = file.clone();
    if let Some(token) = &mut file.http.token {
        *token = MASK.to_owned();
    }
    let variables = file.services.values_mut().flat_map(|service| &mut service.env);
    for (_, value) in variables.filter(|(name, _)| is_secret(name)) {
        *value = MASK.to_owned();
    }
    // A header's name does not show whether its value is secret, so every value is masked.
    let headers = file.services.values_mut().flat_map(|service| &mut service.headers);
    headers.for_each(|(_, value)| *value = MASK.to_owned());
    let mut document = serde_json::to_value(file)?;
    mask_urls(&mut document);
    Ok(document)
}

/// Reports whether the text of a configuration contains a secret itself, rather than the name of a
/// variable that holds it.
pub fn writes_secrets(file: &ConfigFile, text: &str) -> bool {
    let (Ok(shown), Ok(whole)) = (masked(file), serde_json::to_value(file)) else { return false };
    differs(&shown, &whole, &|secret| text.contains(secret))
}

fn differs(shown: &Value, whole: &Value, is_written: &impl Fn(&str) -> bool) -> bool {
    match (shown, whole) {
        (Value::String(shown), Value::String(whole)) => shown != whole && is_written(whole),
        (Value::Array(shown), Value::Array(whole)) => {
            shown.iter().zip(whole).any(|(a, b)| differs(a, b, is_written))
        }
        (Value::Object(shown), Value::Object(whole)) => {
            shown.values().zip(whole.values()).any(|(a, b)| differs(a, b, is_written))
        }
        _ => false,
    }
}
