//! What a request says besides its path and body, and how answers are written.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, header, request::Parts},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    Control, Refusal,
    access::{Access, Granted},
    instances::id,
};
use crate::registry::{
    InstanceId,
    store::{Expect, Revision},
};

/// How long a write waits to be in force unless the request says otherwise.
const WAIT: Duration = Duration::from_secs(5);

/// The longest that it may.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Header fields and query of a request.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Asked {
    /// By `If-Match` and `If-None-Match: *`.
    pub expect: Expect,
    /// By `wait_seconds`: how long a write waits to be in force.
    pub wait: Duration,
    /// By `secrets=true`, from somebody who may see them.
    pub shows_secrets: bool,
    /// By `instance`: only what concerns this one.
    pub instance: Option<InstanceId>,
    /// Who asks.
    pub access: Access,
}

impl FromRequestParts<Arc<Control>> for Asked {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Control>) -> Result<Self, Refusal> {
        let access = parts
            .extensions
            .get()
            .map_or(Access::Anyone, |Granted(access)| *access);
        let mut asked = Self {
            expect: expect(&parts.headers)?,
            wait: WAIT,
            shows_secrets: false,
            instance: None,
            access,
        };
        for (name, value) in form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
            match &*name {
                "wait_seconds" => {
                    let seconds = value.parse().map(Duration::from_secs);
                    let wait = seconds.ok().filter(|wait| *wait <= WAIT_MAX);
                    asked.wait = wait.ok_or_else(|| {
                        Refusal::invalid(format!(
                            "wait_seconds: {value:?} is not 0 to {}",
                            WAIT_MAX.as_secs()
                        ))
                    })?;
                }
                "secrets" if matches!(&*value, "true" | "false") => asked.shows_secrets = value == "true",
                "instance" => asked.instance = Some(id(&value)?),
                _ => {
                    return Err(Refusal::invalid(format!(
                        "the query's {name}={value} means nothing"
                    )));
                }
            }
        }
        if asked.shows_secrets && access < Access::Admin {
            return Err(Refusal::secret());
        }
        Ok(asked)
    }
}

fn expect(headers: &HeaderMap) -> Result<Expect, Refusal> {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &HeaderValue| value.to_str().unwrap_or_default())
    };
    match (text(header::IF_MATCH), text(header::IF_NONE_MATCH)) {
        (None, None) => Ok(Expect::Anything),
        (None, Some("*")) => Ok(Expect::Absent),
        (Some(tag), None) => {
            let revision = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
            let revision = revision.ok_or_else(|| Refusal::invalid("If-Match is not one ETag in quotes"))?;
            Ok(Expect::At(Revision::from(revision)))
        }
        _ => Err(Refusal::invalid(
            "of conditions, If-Match: \"ETag\" or If-None-Match: * is understood",
        )),
    }
}

/// A JSON body, or what is wrong with it and where.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        match field.trim_end_matches(['?', '.']) {
            "" => Refusal::invalid(format!("the body is wrong: {}", error.inner())),
            field => Refusal::invalid(format!("{field}: {}", error.inner())),
        }
    })?;
    reader
        .end()
        .map_err(|error| Refusal::invalid(format!("the body is wrong: {error}")))?;
    Ok(parsed)
}

/// A body that is an object with these names alone, or some of them.
pub(super) fn parse_named(body: &[u8], names: &[&str]) -> Result<Map<String, Value>, Refusal> {
    let object: Map<String, Value> = parse(body)?;
    match object.keys().find(|name| !names.contains(&name.as_str())) {
        Some(name) => Err(Refusal::invalid(format!(
            "{name}: is none of {}",
            names.join(", ")
        ))),
        None => Ok(object),
    }
}

/// What JSON is called.
pub(super) const JSON: &str = "application/json";

/// A JSON answer.
pub(super) fn json(value: &Value) -> Response {
    let mut text = value.to_string();
    text.push('\n');
    ([(header::CONTENT_TYPE, JSON)], text).into_response()
}

/// The same, for a file in this version.
pub(super) fn versioned(value: &Value, revision: &Revision) -> Response {
    tagged(json(value), revision)
}

/// With the version of the file that it came from.
pub(super) fn tagged(mut response: Response, revision: &Revision) -> Response {
    if let Ok(tag) = HeaderValue::try_from(format!("\"{}\"", revision.as_str())) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
