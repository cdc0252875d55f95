//! What must never be shown: passwords inside URLs, and environment values that are named like
//! secrets.

use super::file::File;
use serde_json::Value;

const MASK: &str = "***";

/// A text with the user part of every URL in it replaced, and the password that a URL of a Unix
/// socket has in its query.
pub fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(scheme_end) = rest.find("://") {
        let (scheme, after) = rest.split_at(scheme_end + 3);
        masked.push_str(scheme);
        let authority_end = after
            .find(|c: char| c == '/' || c.is_whitespace() || c == '"' || c == '\'')
            .unwrap_or(after.len());
        let (mut authority, mut tail) = after.split_at(authority_end);
        // A password may hold a slash; a host and a port hold nothing of the kind.
        let word = after.split([' ', '"', '\'']).next().unwrap_or(after);
        if let (false, Some(at)) = (is_host(authority), word.rfind('@')) {
            (authority, tail) =
                after.split_at(at + after[at..].find('/').unwrap_or(word.len() - at));
        }
        match authority.rfind('@') {
            Some(at) => {
                masked.push_str(MASK);
                masked.push_str(&authority[at..]);
            }
            None => masked.push_str(authority),
        }
        let end = tail.find(|c: char| c.is_whitespace() || c == '"' || c == '\'');
        let (path, following) = tail.split_at(end.unwrap_or(tail.len()));
        masked.push_str(&mask_query(path));
        rest = following;
    }
    masked.push_str(rest);
    masked
}

fn is_host(authority: &str) -> bool {
    authority.contains('@')
        || authority.rsplit_once(':').is_none_or(|(host, port)| {
            !host.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
        })
}

fn mask_query(path: &str) -> String {
    let masked = |part: &str| match part.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={MASK}"),
        _ => part.to_owned(),
    };
    match path.split_once('?') {
        Some((path, query)) => {
            let parts: Vec<String> = query.split('&').map(masked).collect();
            format!("{path}?{}", parts.join("&"))
        }
        None => path.to_owned(),
    }
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

/// Whether a configuration's text holds a secret itself, and not the name of a variable that does.
pub fn writes_secrets(file: &File, text: &str) -> bool {
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

fn mask_urls(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask(text),
        Value::Array(items) => items.iter_mut().for_each(mask_urls),
        Value::Object(fields) => fields.values_mut().for_each(mask_urls),
        _ => {}
    }
}

/// Whether an environment variable or a part of a query of this name holds a secret.
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
        assert_eq!(mask("redis://:p/w@h:1/0"), "redis://***@h:1/0");
        assert_eq!(mask("tcp://h:x is no URL"), "tcp://h:x is no URL");
        assert_eq!(
            mask("redis+unix:///run/redis.sock?db=1&pass=p&user=u is down"),
            "redis+unix:///run/redis.sock?db=1&pass=***&user=u is down"
        );
    }
}
