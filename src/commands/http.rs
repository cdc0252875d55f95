//! `gpuctl http`: reads one request from stdin, carries out the command that it stands for, and
//! writes one answer to stdout.

use super::dispatch;
use crate::cli::{Cli, Global};
use crate::config::Environment;
use crate::error::Result;
use crate::exit::Answer;
use crate::http::{Rejection, admit, command, document, receive};
use crate::progress::Progress;
use crate::report::{Form, Reply, failure_document, unprinted};
use crate::screen::Screen;
use crate::session::load;
use crate::world::{client, host};

pub fn run(global: &Global, environment: &Environment) -> Result<Answer> {
    client::keep_stderr_apart();
    let reply = Reply::default();
    let log = Progress::new(global.quiet, Screen::of(rustix::stdio::stderr(), environment), true);
    let Err(rejection) = serve(global, environment, &reply, &log) else { return Ok(Answer::Yes) };
    let Rejection { status, allowed, failure } = rejection;
    log.line(&format!("answered {status}: {failure}"));
    match reply.send(status, allowed.as_deref(), &failure_document(&failure)) {
        Ok(true) => Ok(Answer::Yes),
        // The request was answered before it failed, so the failure can only be logged.
        Ok(false) => Err(failure),
        Err(error) => Err(unprinted(&error)),
    }
}

fn serve(
    global: &Global,
    environment: &Environment,
    reply: &Reply,
    log: &Progress,
) -> std::result::Result<(), Rejection> {
    // If there is no valid configuration, no client can show a token, and one that needs none is
    // told by the command what is wrong.
    let token = match load(global, environment) {
        Ok(config) => config.http.token().map_err(|failure| {
            log.warning(&failure.message);
            Rejection::concealed(failure.code)
        })?,
        Err(_) => None,
    };
    let received = receive(|request| {
        if request.method == "HEAD" {
            reply.without_body();
        }
        admit(request, client::peer(), token.as_deref(), &host::name())
    })?;
    if received.endpoint.command.is_empty() {
        return reply.send(200, None, &document()).map(drop).map_err(|e| unprinted(&e).into());
    }
    let Cli { command, .. } = command(received.endpoint, received.arguments, received.given)?;
    let cli = Cli { command, global: Global { json: true, ..global.clone() } };
    let environment = environment.under(received.lock_token);
    dispatch(&cli, &environment, &Form::Http(reply.clone()))?;
    Ok(())
}
