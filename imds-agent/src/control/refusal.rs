//! What goes wrong with a request, as a status and a sentence.

use std::fmt::Display;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use nix::unistd::Uid;
use serde_json::{Value, json};

use super::access::Access;
use crate::registry::{problem::Finding, store::StoreError};

/// Why a request is refused.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    findings: Vec<Finding>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let (message, findings) = (message.into(), Vec::new());
        Self {
            status,
            code,
            message,
            findings,
        }
    }

    /// The request itself is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Invalid", message)
    }

    /// It is no request of those that there are.
    pub(super) fn unreadable() -> Self {
        Self::invalid("the request cannot be read: its path is no text, or its body does not end")
    }

    /// The body is longer than any that is understood.
    pub(super) fn too_long(bytes_max: usize) -> Self {
        let message = format!("the body is longer than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "TooLong", message)
    }

    /// What it is about is not there.
    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    /// It does not go with what is there.
    pub(super) fn conflict(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// The record on disk has a mistake.
    pub(super) fn broken(what: impl Display) -> Self {
        Self::conflict("Broken", format!("{what}: the record is wrong, see /v1/status"))
    }

    /// The guest itself would be refused.
    pub(super) fn guest_refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "GuestRefused", message)
    }

    /// Secrets are for admins.
    pub(super) fn secret() -> Self {
        let message =
            "this may hold secrets, which only root, the agent's user and the admin group are shown";
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// The caller may not.
    pub(super) fn forbidden(needed: Access, user: Option<Uid>) -> Self {
        let who = user.map_or_else(|| "an unknown user".to_owned(), |user| format!("user {user}"));
        let group = match needed {
            Access::Anyone | Access::Read => "control.read_group or control.admin_group",
            Access::Admin => "control.admin_group",
        };
        let message =
            format!("{who} may not do this: it takes root, the agent's own user or a member of {group}");
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    /// The agent does not answer itself.
    pub(super) fn busy() -> Self {
        let message = "the agent is stopping, or too busy to answer";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", message)
    }

    /// Others do it already, as many as may.
    pub(super) fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TooMany", message)
    }

    /// What is asked for is being made.
    pub(super) fn not_yet(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "NotYet", message)
    }

    /// The configuration cannot be put in force.
    pub(super) fn configuration(message: String) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "InvalidConfiguration", message)
    }

    /// There is no such path.
    pub(super) fn no_route() -> Self {
        Self::not_found("there is no such path: /v1/openapi.json tells which there are")
    }

    /// The path is there, for other methods.
    pub(super) fn no_method() -> Self {
        let message = "the path has no such method: /v1/openapi.json tells which it has";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (status, code) = match &error {
            StoreError::Invalid(_) => (StatusCode::BAD_REQUEST, "Invalid"),
            StoreError::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            StoreError::Exists(_) => (StatusCode::PRECONDITION_FAILED, "Exists"),
            StoreError::Changed(_) => (StatusCode::PRECONDITION_FAILED, "Changed"),
            StoreError::Ambiguous { .. } => (StatusCode::CONFLICT, "Ambiguous"),
            StoreError::Taken { .. } => (StatusCode::CONFLICT, "Taken"),
            StoreError::InUse { .. } => (StatusCode::CONFLICT, "InUse"),
            StoreError::Refused(_) | StoreError::Link(_) => (StatusCode::CONFLICT, "Refused"),
            StoreError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "Disk"),
        };
        let message = match &error {
            StoreError::Io { source, .. } => format!("{error}: {source}"),
            error => error.to_string(),
        };
        let findings = match error {
            StoreError::Invalid(findings) => findings,
            _ => Vec::new(),
        };
        Self {
            findings,
            ..Self::new(status, code, message)
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({ "code": self.code, "message": self.message });
        if !self.findings.is_empty() {
            body["findings"] = self.findings.iter().map(finding).collect();
        }
        (self.status, super::asked::json(&body)).into_response()
    }
}

/// A finding as JSON.
pub(super) fn finding(finding: &Finding) -> Value {
    let mut value = json!({ "field": finding.field, "message": finding.message });
    if let Some((line, column)) = finding.place {
        value["line"] = line.into();
        value["column"] = column.into();
    }
    value
}
