//! Masks what must never be shown: passwords inside URLs, and environment values that are named
//! like secrets.

use serde_json::Value;

/// Text that is shown in place of a secret.
pub const MASK: &str = "***";

/// Masks in a text the user part of every URL, and each value in a URL's query whose name is that
/// of a secret (the password of a Unix socket's URL). Masking the result again changes nothing.
pub fn mask(text: &str) -> String {
    let masked = mask_once(text);
    // Masking a secret in a query may remove the slash that ended a URL's host, so that the next
    // pass reads further and finds more.
    if masked == text { masked } else { mask(&masked) }
}

fn mask_once(text: &str) -> String {
    let ends_url = |c: char| c.is_whitespace() || c == '"' || c == '\'';
    let masked = |part: &str| {
        let word = part.trim_end_matches(ends_url);
        mask_word(word) + &part[word.len()..]
    };
    text.split_inclusive(ends_url).map(masked).collect()
}

fn mask_word(word: &str) -> String {
    if !word.contains("://") {
        return word.to_owned();
    }
    let last_at = word.rfind('@');
    let mut masked = String::with_capacity(word.len());
    let mut done = 0;
    // A URL may have another one in its query.
    while let Some(scheme) = word[done..].find("://") {
        let begin = done + scheme + 3;
        let slash_from = |at: usize| word[at..].find('/').map_or(word.len(), |slash| at + slash);
        let mut end = slash_from(begin);
        // A password may hold a slash. If what stands before the first slash cannot be a host, it
        // belongs to such a password, and the user part goes on to the last `@`.
        if let (false, Some(at)) = (is_host(&word[begin..end]), last_at) {
            end = slash_from(at.max(begin));
        }
        // If another URL follows at once, the colon belongs to that URL's scheme.
        if word[begin..end].ends_with(':') && word[end..].starts_with("//") {
            end -= 1;
        }
        let authority = &word[begin..end];
        masked.push_str(&word[done..begin]);
        match authority.rfind('@') {
            Some(at) => masked.extend([MASK, &authority[at..]]),
            None => masked.push_str(authority),
        }
        done = end;
    }
    masked.push_str(&word[done..]);
    mask_query(&masked)
}

fn is_host(authority: &str) -> bool {
    authority.contains('@')
        || authority.rsplit_once(':').is_none_or(|(host, port)| {
            ![host, port].contains(&"") && port.bytes().all(|byte| byte.is_ascii_digit())
        })
}

fn mask_query(url: &str) -> String {
    let masked = |part: &str| match part.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={MASK}"),
        _ => part.to_owned(),
    };
    match url.split_once('?') {
        Some((path, query)) => {
            let parts: Vec<String> = query.split('&').map(masked).collect();
            format!("{path}?{}", parts.join("&"))
        }
        None => url.to_owned(),
    }
}

/// Masks every text of a JSON document.
pub fn mask_urls(value: &mut Value) {
    match value {
        Value::String(text) => *text = mask(text),
        Value::Array(items) => items.iter_mut().for_each(mask_urls),
        Value::Object(fields) => fields.values_mut().for_each(mask_urls),
        _ => {}
    }
}

/// Reports whether an environment variable, or a part of a query, with this name holds a secret.
pub fn is_secret(name: &str) -> bool {
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
        assert_eq!(mask("http://h/?of=http://u:p@h2/x"), "http://h/?of=http://***@h2/x");
        assert_eq!(mask("redis://:p/w@h:1/0"), "redis://***@h:1/0");
        assert_eq!(mask("redis://u@h://u:p@h2/x"), "redis://***@h://***@h2/x");
        assert_eq!(mask("a://:p/w@h\nb://u:p@h/x"), "a://***@h\nb://***@h/x");
        assert_eq!(mask("tcp://h:x is no URL"), "tcp://h:x is no URL");
        assert_eq!(
            mask("redis+unix:///run/redis.sock?db=1&pass=p&user=u or \"http://h?key=k\" is down"),
            "redis+unix:///run/redis.sock?db=1&pass=***&user=u or \"http://h?key=***\" is down"
        );
    }

    #[test]
    fn what_is_masked_is_masked_for_good() {
        assert_eq!(mask("?://key=/&@"), "?://***@");
        let twice = mask("http://h?key=a/b&to=http://u:p@h2/x");
        assert_eq!((twice.as_str(), mask(&twice)), ("http://***@h2/x", twice.clone()));
        assert_eq!(mask("http://h?key=a/b&to=http://h2/x"), "http://h?key=***&to=http://h2/x");
    }
}
