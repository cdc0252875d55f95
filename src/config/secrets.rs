//! What must never be shown: passwords inside URLs, and environment values that are named like
//! secrets.

use super::file::File;
use serde_json::Value;

const MASK: &str = "***";

/// A text with the user part of every URL in it replaced.
pub fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(scheme_end) = rest.find("://") {
        let (scheme, after) = rest.split_at(scheme_end + 3);
        masked.push_str(scheme);
        let authority_end = after
            .find(|c: char| c == '/' || c.is_whitespace() || c == '"' || c == '\'')
            .unwrap_or(after.len());
        let (authority, tail) = after.split_at(authority_end);
        match authority.rfind('@') {
            Some(at) => {
                masked.push_str(MASK);
                masked.push_str(&authority[at..]);
            }
            None => masked.push_str(authority),
        }
        rest = tail;
    }
    masked.push_str(rest);
    masked
}

/// A configuration as a document without its secrets.
pub fn masked(file: &File) -> serde_json::Result<Value> {
    let mut document = serde_json::to_value(file)?;
    mask_document(&mut document);
    Ok(document)
}

fn mask_document(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask(text),
        Value::Array(items) => items.iter_mut().for_each(mask_document),
        Value::Object(fields) => {
            for (name, value) in fields {
                if value.is_string() && is_secret(name) {
                    *value = Value::from(MASK);
                } else {
                    mask_document(value);
                }
            }
        }
        _ => {}
    }
}

/// Whether an environment variable of this name holds a secret. Only upper-case names are
/// variables; the configuration's own keys are lower-case.
fn is_secret(name: &str) -> bool {
    ["TOKEN", "SECRET", "PASS", "KEY", "CREDENTIAL"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn a_password_in_a_url_is_masked_wherever_it_stands() {
        assert_eq!(
            mask("redis://:p@ss@localhost:6379/0 and http://u:p@h/x"),
            "redis://***@localhost:6379/0 and http://***@h/x"
        );
        assert_eq!(mask("http://localhost:1/a@b"), "http://localhost:1/a@b");
    }
}
