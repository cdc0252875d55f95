//! Parses the head of a request by httparse, and refuses what is malformed or ambiguous.

use super::Rejection;
use httparse::{EMPTY_HEADER, Header, Status};
use percent_encoding::percent_decode_str;

/// Maximum number of bytes in the head of a request.
pub const HEAD: usize = 16 * 1024;
/// Maximum number of bytes in the body of a request.
pub const BODY: usize = 64 * 1024;
/// Maximum number of header fields, more than any client sends.
const FIELDS: usize = 100;

/// The head of a request, as far as gpuctl needs it.
#[derive(Debug)]
pub struct Request {
    pub method: String,
    /// Segments of the path, percent-decoded.
    pub path: Vec<String>,
    /// Parameters of the query, decoded.
    pub query: Vec<(String, String)>,
    /// Host that the client has asked for, with its port.
    pub host: Option<String>,
    pub origin: Option<String>,
    /// Value of the header `Sec-Fetch-Site`, by which a browser says whether the request comes from
    /// a page of another site.
    pub fetch_site: Option<String>,
    pub authorization: Option<String>,
    /// Token of the GPU lock that the caller holds, from the header `Gpuctl-Lock-Token`.
    pub lock_token: Option<String>,
    /// Number of bytes in the body that follows.
    pub length: usize,
    /// Whether the client waits for the status 100 (Continue) before it sends its body.
    pub waits: bool,
}

impl Request {
    /// Parses a head, and returns it with its size in bytes, or `None` if its end has not arrived
    /// yet.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Rejection> {
        let mut fields = [EMPTY_HEADER; FIELDS];
        let mut parsed = httparse::Request::new(&mut fields);
        let size = match parsed.parse(bytes) {
            Ok(Status::Complete(size)) if size <= HEAD => size,
            Ok(Status::Partial) if bytes.len() < HEAD => return Ok(None),
            Ok(_) => return Err(too_large(format!("its head has more than {HEAD} bytes"))),
            Err(httparse::Error::TooManyHeaders) => {
                return Err(too_large(format!("it has more than {FIELDS} header fields")));
            }
            Err(error) => {
                return Err(Rejection::malformed(format!("not an HTTP request: {error}")));
            }
        };
        let is_old = parsed.version == Some(0);
        let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
        let field = |name: &str| only(parsed.headers, name);
        let (authority, target) = split(target)?;
        let host = match (authority, field("host")?) {
            (Some(authority), Some(_)) => Some(authority.to_owned()),
            (None, Some(host)) => Some(host),
            (_, None) if is_old => None,
            (_, None) => return Err(Rejection::malformed("it has no Host")),
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.split('/').skip(1).map(decode).collect::<Result<_, _>>()?;
        Ok(Some((
            Request {
                method: method.to_owned(),
                path,
                query: pairs(query)?,
                host,
                origin: field("origin")?,
                fetch_site: field("sec-fetch-site")?,
                authorization: field("authorization")?,
                lock_token: field("gpuctl-lock-token")?,
                length: length(field("content-length")?, field("transfer-encoding")?)?,
                waits: !is_old && waits(field("expect")?)?,
            },
            size,
        )))
    }
}

fn too_large(message: String) -> Rejection {
    Rejection::new(431, crate::exit::Code::Usage, message)
}

/// Returns the value of a header field, if there is one. A field that is given twice or is not
/// UTF-8 is refused.
fn only(fields: &[Header], name: &str) -> Result<Option<String>, Rejection> {
    let mut found = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    let (first, second) = (found.next(), found.next());
    if second.is_some() {
        return Err(Rejection::malformed(format!("it has the header field {name} twice")));
    }
    let text = |field: &Header| {
        let text = str::from_utf8(field.value).map(|text| text.trim().to_owned());
        text.map_err(|_| Rejection::malformed(format!("its header field {name} is not UTF-8 text")))
    };
    first.map(text).transpose()
}

/// Splits a target into its host and its path. Only a target that is a URL, as clients send it to
/// proxies, has a host.
fn split(target: &str) -> Result<(Option<&str>, &str), Rejection> {
    let scheme = ["http://", "https://"].iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    });
    match scheme {
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let path = if rest[end..].starts_with('/') { &rest[end..] } else { "/" };
            Ok((Some(&rest[..end]), path))
        }
        None if target.starts_with('/') => Ok((None, target)),
        None => Err(Rejection::malformed("its target is not a path")),
    }
}

fn decode(text: &str) -> Result<String, Rejection> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Rejection::malformed("its target is not UTF-8 text"))?;
    no_nul(&decoded)?;
    Ok(decoded.into_owned())
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, Rejection> {
    // `form_urlencoded` would replace what is not UTF-8 instead of refusing it.
    decode(query)?;
    Ok(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
}

/// Refuses a text with a NUL character, which no argument of a program can hold.
pub fn no_nul(text: &str) -> Result<(), Rejection> {
    match text.contains('\0') {
        true => Err(Rejection::malformed("it has a NUL character")),
        false => Ok(()),
    }
}

fn length(length: Option<String>, encoding: Option<String>) -> Result<usize, Rejection> {
    match (length, encoding) {
        (None, None) => Ok(0),
        (None, Some(_)) => Err(Rejection::new(
            411,
            crate::exit::Code::Usage,
            "its body has no Content-Length, and comes in no other way",
        )),
        (Some(_), Some(_)) => {
            Err(Rejection::malformed("it has both Content-Length and Transfer-Encoding"))
        }
        (Some(text), None) if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(Rejection::malformed("its Content-Length is not a number"))
        }
        (Some(text), None) => {
            let length = text.parse().ok().filter(|length| *length <= BODY);
            let message = || format!("its body has more than {BODY} bytes");
            length.ok_or_else(|| Rejection::new(413, crate::exit::Code::Usage, message()))
        }
    }
}

fn waits(expected: Option<String>) -> Result<bool, Rejection> {
    match expected {
        None => Ok(false),
        Some(word) if word.eq_ignore_ascii_case("100-continue") => Ok(true),
        Some(_) => {
            let message = "it expects something else than 100-continue";
            Err(Rejection::new(417, crate::exit::Code::Usage, message))
        }
    }
}
