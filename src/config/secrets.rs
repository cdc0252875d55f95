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
    let mut file = file.clone();
    let variables = file.services.values_mut().flat_map(|service| &mut service.env);
    for (_, value) in variables.filter(|(name, _)| is_secret(name)) {
        *value = MASK.to_owned();
    }
    let mut document = serde_json::to_value(file)?;
    mask_urls(&mut document);
    Ok(document)
}

fn mask_urls(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask(text),
        Value::Array(items) => items.iter_mut().for_each(mask_urls),
        Value::Object(fields) => fields.values_mut().for_each(mask_urls),
        _ => {}
    }
}

/// Whether an environment variable of this name holds a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
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
