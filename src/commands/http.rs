//! `gpuctl http`: one request from stdin, the command that it stands for, one answer on stdout.

use super::{dispatch, load};
use crate::cli::{Cli, Global};
use crate::config::Environment;
use crate::error::Result;
use crate::exit::Answer;
use crate::http::{Rejection, admit, command, document, receive};
use crate::report::{Form, Reply, failure_document, unprinted};
use crate::world::{client, host};

pub fn run(global: &Global, environment: &Environment) -> Result<Answer> {
    client::keep_stderr_apart();
    let reply = Reply::default();
    let Err(rejection) = serve(global, environment, &reply) else { return Ok(Answer::Yes) };
    let Rejection { status, allowed, failure } = rejection;
    match reply.send(status, allowed.as_deref(), &failure_document(&failure)) {
        Ok(true) => Ok(Answer::Yes),
        // It was answered before it failed; the log is who else can be told.
        Ok(false) => Err(failure),
        Err(error) => Err(unprinted(&error)),
    }
}

fn serve(
    global: &Global,
    environment: &Environment,
    reply: &Reply,
) -> std::result::Result<(), Rejection> {
    // Without a configuration nobody can show a token, and who needs none is told what is wrong with it.
    let token = match load(global, environment) {
        Ok(config) => config.http.token().map_err(Rejection::concealed)?,
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
