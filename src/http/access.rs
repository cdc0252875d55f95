//! Decides which clients may ask. If there is a token, those that show it may; otherwise those on
//! this machine, except a browser that asks on behalf of a page of another site: such a page could
//! send any request while a user of this machine looks at it.

use super::Rejection;
use super::request::Request;
use crate::exit::Code;
use crate::world::client::Peer;
use std::net::IpAddr;
use subtle::ConstantTimeEq;

/// Refuses a request with status 403 if its client may not ask. `token` is the one that has to be
/// shown, if any, and `machine` is this machine's host name.
pub fn admit(
    request: &Request,
    peer: Peer,
    token: Option<&str>,
    machine: &str,
) -> Result<(), Rejection> {
    let refused = |message: &str| Rejection::new(403, Code::Permission, message);
    let Some(token) = token else {
        let another = refused("the request comes from a page of another site");
        return match peer {
            Peer::Remote => Err(refused("the request comes from another machine")
                .hint("set [http] token, and send it as Authorization: Bearer TOKEN")),
            Peer::Local if !is_this(request.host.as_deref(), machine) => {
                Err(refused("the request is for another host than this one")
                    .hint("ask localhost, or set [http] token"))
            }
            Peer::Local if !is_same_origin(request) => Err(another),
            Peer::Local => Ok(()),
        };
    };
    let shown = request.authorization.as_deref().and_then(|text| text.split_once(' '));
    let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match shown.map(|(_, shown)| shown.trim_start()) {
        Some(shown) if shown.as_bytes().ct_eq(token.as_bytes()).into() => Ok(()),
        Some(_) => Err(refused("the token is wrong")),
        None => Err(refused("a token is needed").hint("send Authorization: Bearer TOKEN")),
    }
}

/// Reports whether a host, which may have a port, is this machine. A name to which somebody else's
/// DNS gives this machine's address is not.
fn is_this(host: Option<&str>, machine: &str) -> bool {
    let Some(host) = host else { return true };
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        let is_port = port.bytes().all(|digit| digit.is_ascii_digit());
        if is_port { name } else { host }
    });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let machine = machine.to_ascii_lowercase();
    let short = machine.split('.').next().unwrap_or_default();
    let is_ours = !name.is_empty() && (name == machine || name == short);
    is_ours || name == "localhost" || name.ends_with(".localhost")
}

/// Reports whether no browser sent the request, or one did on behalf of its user or of a page of
/// this host.
fn is_same_origin(request: &Request) -> bool {
    let is_ours = |origin: &String| {
        let place = origin.split_once("://").map(|(_, place)| place);
        place.is_some_and(|place| {
            request.host.as_deref().is_some_and(|host| host.eq_ignore_ascii_case(place))
        })
    };
    request.origin.as_ref().is_none_or(is_ours)
        && request.fetch_site.as_deref().is_none_or(|site| ["same-origin", "none"].contains(&site))
}
