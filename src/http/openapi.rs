//! The OpenAPI document, made from the table of endpoints, the command line and the reports.

use super::endpoint::{ENDPOINTS, Endpoint};
use super::words::{help, name, parameters, schema};
use crate::cli::Cli;
use crate::exit::Code;
use clap::CommandFactory;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Returns the document in the form of OpenAPI 3.1, whose schemas are those of JSON Schema.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut generator =
        settings.with(|it| it.definitions_path = "/components/schemas".into()).into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for endpoint in ENDPOINTS {
        let schema = (endpoint.schema)(&mut generator).to_value();
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method.to_lowercase()] = operation(endpoint, schema);
    }
    let mut schemas = generator.take_definitions(true);
    schemas.insert("Error".to_owned(), error());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "gpuctl",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Each endpoint is a command of gpuctl, its answer is the command's `--json`.",
        },
        "security": [{}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {
                "type": "http", "scheme": "bearer",
                "description": "Needed where the configuration has [http] token or token_file.",
            }},
        },
    })
}

fn operation(endpoint: &Endpoint, answered: Value) -> Value {
    let mut command = Cli::command();
    command.build();
    let command = endpoint.command.iter().try_fold(&command, |it, word| it.find_subcommand(word));
    let about = command.filter(|_| !endpoint.command.is_empty());
    let about = about.and_then(|command| command.get_about()).map(ToString::to_string);
    let in_path = endpoint.names().map(
        |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
    );
    let options = parameters(endpoint);
    let in_query = options.iter().map(|option| {
        let (name, schema) = (name(option), schema(option));
        json!({"name": name, "in": "query", "description": help(option), "schema": schema})
    });
    let token = (!endpoint.command.is_empty()).then(|| {
        json!({
            "name": "Gpuctl-Lock-Token", "in": "header", "schema": {"type": "string"},
            "description": "Token of the lock that the caller holds, as POST /gpu/lock/acquire gave it.",
        })
    });
    let given: Vec<Value> = in_path.chain(in_query).chain(token).collect();
    let failed = json!({"$ref": "#/components/schemas/Error"});
    let mut responses = json!({"200": {
        "description": "Done, or already so; or the answer.",
        "content": {"application/json": {"schema": answered}},
    }});
    for (status, meaning) in failures() {
        responses[status.to_string()] = json!({
            "description": meaning, "content": {"application/json": {"schema": failed}},
        });
    }
    let id = match endpoint.command {
        [] => "openapi".to_owned(),
        words => words.join("_").replace('-', "_"),
    };
    let mut operation = json!({
        "operationId": id,
        "summary": about.unwrap_or_else(|| "This document".to_owned()),
        "parameters": given,
        "responses": responses,
    });
    if endpoint.method == "POST" {
        let fields = options.iter().map(|it| (name(it), field(schema(it), &help(it))));
        operation["requestBody"] = json!({"required": false, "content": {"application/json": {
            "schema": {
                "type": "object", "additionalProperties": false,
                "properties": fields.collect::<Map<_, _>>(),
            },
        }}});
    }
    operation
}

/// Returns the schema of a field in a body. It may also be null, which counts as if it were absent.
fn field(schema: Value, description: &str) -> Value {
    let mut schema = json!({"anyOf": [schema, {"type": "null"}]});
    schema["description"] = description.into();
    schema
}

/// Returns the meaning of each HTTP status other than 200.
fn failures() -> BTreeMap<u16, String> {
    let mut all: BTreeMap<u16, String> = BTreeMap::new();
    for code in Code::ALL {
        let meaning = all.entry(code.http_status()).or_default();
        let gap = if meaning.is_empty() { "" } else { " Or: " };
        meaning.push_str(&format!("{gap}{}", code.meaning()));
    }
    let own = [
        (400, "The request is malformed, or its parameters are wrong."),
        (403, "The request has no right to ask: see docs/endpoints.md."),
        (405, "The endpoint has other methods, listed in Allow."),
        (408, "The request did not arrive in time."),
        (411, "The request has a body without Content-Length."),
        (413, "The request's body is too large."),
        (417, "The request expects what is not done here."),
        (431, "The request's head is too large."),
    ];
    all.extend(own.map(|(status, meaning)| (status, meaning.to_owned())));
    all
}

fn error() -> Value {
    json!({
        "type": "object", "required": ["error"],
        "properties": {"error": {
            "type": "object",
            "required": ["code", "exit_code", "message", "hint", "details"],
            "properties": {
                "code": {"type": "string"},
                "exit_code": {"type": "integer"},
                "message": {"type": "string"},
                "hint": {"type": ["string", "null"]},
                "details": {"type": "object"},
            },
        }},
    })
}
