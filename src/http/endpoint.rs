//! The table of endpoints, from which requests are answered and the OpenAPI document is made.

use super::Rejection;
use crate::exit::Code;
use crate::report::{
    AcquiredReport, ActReport, CanFitReport, LockStatusReport, ReleasedReport, StatusReport,
};
use schemars::{JsonSchema, Schema, SchemaGenerator};

/// An endpoint: one method of one path, and the command that it stands for.
pub struct Endpoint {
    pub method: &'static str,
    /// Path of the endpoint. Names in braces stand for one segment each: the command's arguments,
    /// in their order.
    pub path: &'static str,
    /// Words of the command, or none for the OpenAPI document.
    pub command: &'static [&'static str],
    /// Names of the command's options that make no sense over HTTP.
    pub without: &'static [&'static str],
    /// Function that returns the schema of the answer.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

const fn endpoint<Answered: JsonSchema>(
    method: &'static str,
    path: &'static str,
    command: &'static [&'static str],
    without: &'static [&'static str],
) -> Endpoint {
    Endpoint { method, path, command, without, schema: SchemaGenerator::subschema_for::<Answered> }
}

/// All endpoints.
#[rustfmt::skip]
pub const ENDPOINTS: &[Endpoint] = &[
    endpoint::<StatusReport>("GET", "/gpu/status", &["status"], &["watch", "prometheus"]),
    endpoint::<CanFitReport>("GET", "/gpu/can-fit/{what}", &["can-fit"], &[]),
    endpoint::<ActReport>("POST", "/gpu/prepare-phase/{phase}", &["prepare-phase"], &[]),
    endpoint::<ActReport>("POST", "/gpu/service/{service}/start", &["start"], &[]),
    endpoint::<ActReport>("POST", "/gpu/service/{service}/stop", &["stop"], &[]),
    endpoint::<ActReport>("POST", "/gpu/service/{service}/restart", &["restart"], &[]),
    endpoint::<ActReport>("POST", "/gpu/release-all", &["release-all"], &[]),
    endpoint::<LockStatusReport>("GET", "/gpu/lock", &["lock", "status"], &[]),
    // `pid` is left out since a process of another machine or container cannot be watched, and
    // `token` since a URL that contains it gets into logs.
    endpoint::<AcquiredReport>("POST", "/gpu/lock/acquire", &["lock", "acquire"], &["pid"]),
    endpoint::<ReleasedReport>("POST", "/gpu/lock/release", &["lock", "release"], &["token"]),
    endpoint::<serde_json::Value>("GET", "/openapi.json", &[], &[]),
];

impl Endpoint {
    /// Returns the endpoint of a request, and the segments that stand in the place of its names.
    /// Rejects an unknown path with status 404, and a method that the path does not have with 405.
    pub fn find(
        method: &str,
        path: &[String],
    ) -> Result<(&'static Endpoint, Vec<String>), Rejection> {
        let here: Vec<_> = ENDPOINTS
            .iter()
            .filter_map(|endpoint| Some((endpoint, endpoint.arguments(path)?)))
            .collect();
        if here.is_empty() {
            let message = format!("there is no endpoint /{}", path.join("/"));
            return Err(
                Rejection::new(404, Code::NotFound, message).hint("GET /openapi.json lists them")
            );
        }
        // A HEAD request is answered like a GET, but without the body.
        let wanted = if method == "HEAD" { "GET" } else { method };
        let methods: Vec<&str> = here.iter().flat_map(|(it, _)| it.methods()).copied().collect();
        let found = here.into_iter().find(|(endpoint, _)| endpoint.method == wanted);
        found.ok_or_else(|| {
            let allowed = methods.join(", ");
            let message = format!("/{} is asked with {allowed}, not {method}", path.join("/"));
            let rejection = Rejection::new(405, Code::Usage, message);
            Rejection { allowed: Some(allowed), ..rejection }
        })
    }

    fn methods(&self) -> &'static [&'static str] {
        match self.method {
            "GET" => &["GET", "HEAD"],
            _ => &["POST"],
        }
    }

    /// Returns the names in braces, in the order of the path.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.segments().filter_map(name)
    }

    fn segments(&self) -> impl Iterator<Item = &'static str> {
        self.path.split('/').skip(1)
    }

    fn arguments(&self, path: &[String]) -> Option<Vec<String>> {
        if self.segments().count() != path.len() {
            return None;
        }
        let mut arguments = Vec::new();
        for (segment, given) in self.segments().zip(path) {
            match name(segment) {
                Some(_) if !given.is_empty() => arguments.push(given.clone()),
                None if segment == given => {}
                _ => return None,
            }
        }
        Some(arguments)
    }
}

fn name(segment: &'static str) -> Option<&'static str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}
