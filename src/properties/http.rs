//! Property of HTTP requests: without a token none from elsewhere is admitted, none chooses another
//! configuration, and each stands for a command that HTTP offers.

use crate::cli::Command;
use crate::http::{Endpoint, Request, admit, command, fields};
use crate::world::client::Peer;

pub fn http(input: &[u8]) {
    let Ok(Some((request, size))) = Request::parse(input) else { return };
    assert!(size <= input.len());
    assert!(admit(&request, Peer::Remote, None, "here").is_err(), "without a token");
    assert!(request.path.iter().all(|segment| !segment.contains('\0')));
    let Ok((endpoint, arguments)) = Endpoint::find(&request.method, &request.path) else { return };
    let mut given = request.query;
    given.extend(fields(&input[size..]).unwrap_or_default());
    let Ok(cli) = command(endpoint, arguments, given) else { return };
    assert!(cli.global.config.is_none() && cli.global.gpu.is_none(), "another configuration");
    match (endpoint.command, cli.command) {
        (["status"], Command::Status(args)) => assert!(args.watch.is_none(), "it never ends"),
        (["lock", _], Command::Lock(_))
        | (["can-fit"], Command::CanFit(_))
        | (["prepare-phase"], Command::PreparePhase(_))
        | (["start"], Command::Start(_))
        | (["stop"], Command::Stop(_))
        | (["restart"], Command::Restart(_))
        | (["release-all"], Command::ReleaseAll(_)) => {}
        (words, other) => panic!("{words:?} became {other:?}"),
    }
}
