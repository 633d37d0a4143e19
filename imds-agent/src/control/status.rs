//! How the agent is: for people at three in the morning, and for probes.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Command, Control, Refusal, TapState,
    asked::{Asked, JSON, json},
    refusal::finding,
};
use crate::{
    credentials::RoleState,
    registry::{Problem, Snapshot, problem::Severity},
};

/// The description of this interface, for programs.
pub const OPENAPI: &str = include_str!("../../../docs/openapi.json");

type Answer = Result<Response, Refusal>;

/// `GET /healthz`: the agent is there and answers.
pub(super) async fn healthz() -> Response {
    json(&json!({ "status": "ok" }))
}

/// `GET /readyz`: every tap that is there has the classifier and, where a record says so, its binding.
pub(super) async fn readyz(State(control): State<Arc<Control>>) -> Response {
    let ready = control.is_ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, json(&json!({ "ready": ready }))).into_response()
}

/// `GET /v1/openapi.json`
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, JSON)], OPENAPI).into_response()
}

/// `GET /v1/status`
pub(super) async fn status(State(control): State<Arc<Control>>, _: Asked) -> Answer {
    let taps = control.taps().await?;
    let snapshot = control.facts.registry.load();
    let problems: Vec<Value> = control.problems.borrow().iter().map(problem).collect();
    let refused: Vec<Value> = taps
        .iter()
        .filter_map(|tap| Some(json!({ "tap": tap.name, "message": tap.refused.as_ref()? })))
        .collect();
    Ok(json(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSeconds": control.started.elapsed().as_secs(),
        "ready": control.is_ready(),
        "registryRevision": snapshot.revision,
        "instances": snapshot.instances.len(),
        "taps": taps.iter().map(|tap| describe(tap, &snapshot)).collect::<Vec<_>>(),
        "problems": problems,
        "credentials": control.credentials(&snapshot),
        "undeliveredTokens": control.undelivered(&snapshot),
        "refusedKernelOperations": refused,
    })))
}

/// `POST /v1/reload`
pub(super) async fn reload(State(control): State<Arc<Control>>, _: Asked) -> Answer {
    let reloaded = control
        .ask(Command::Reload)
        .await?
        .map_err(Refusal::configuration)?;
    Ok(json(
        &json!({ "changed": reloaded.changed, "needsRestart": reloaded.needs_restart }),
    ))
}

/// Whom a tap is served for, or why for nobody.
fn describe(tap: &TapState, snapshot: &Snapshot) -> Value {
    let named = snapshot
        .by_tap
        .get(tap.name.as_str())
        .map(|(member, _)| &member.instance.instance_id);
    let owner = tap
        .mac
        .and_then(|mac| snapshot.by_mac.get(&mac))
        .map(|(member, _)| &member.instance.instance_id);
    let mut value = json!({ "name": tap.name, "index": tap.index.0, "bound": tap.mac.is_some() });
    if let Some(mac) = tap.mac {
        value["macAddress"] = mac.to_string().into();
    }
    if let Some(instance) = owner {
        value["instanceId"] = instance.as_str().into();
    }
    let reason = match (&tap.refused, tap.mac, named) {
        (Some(refused), ..) => Some(format!("the kernel refuses: {refused}")),
        (None, Some(_), _) => None,
        (None, None, Some(instance)) => Some(format!("is about to be bound to {instance}")),
        (None, None, None) => tap.nobody.clone(),
    };
    if let Some(reason) = reason {
        value["reason"] = reason.into();
    }
    value
}

fn problem(problem: &Problem) -> Value {
    let mut value = finding(&problem.finding);
    value["severity"] = match problem.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
    .into();
    value["file"] = problem.file.to_string_lossy().into();
    value
}

/// How the sessions of one role are.
#[derive(Default)]
struct Sessions {
    ready: usize,
    refused: usize,
    pending: usize,
    expiration: Option<Timestamp>,
    failure: Option<(&'static str, String)>,
}

impl Control {
    /// Whether all taps are told and dealt with.
    fn is_ready(&self) -> bool {
        self.applied.borrow().is_some()
    }

    /// By role, in the order of their ARNs.
    fn credentials(&self, snapshot: &Snapshot) -> Vec<Value> {
        let now = Timestamp::now();
        let mut roles: BTreeMap<&str, Sessions> = BTreeMap::new();
        for member in snapshot.instances.values() {
            let Some(role) = &member.role else { continue };
            let sessions = roles.entry(&role.arn).or_default();
            let published = &self.facts.credentials;
            match published
                .state(&member.instance.instance_id, role, now)
                .as_deref()
            {
                None => sessions.pending += 1,
                Some(RoleState::Ready(set)) => {
                    sessions.ready += 1;
                    let earliest = sessions
                        .expiration
                        .map_or(set.expiration, |other| other.min(set.expiration));
                    sessions.expiration = Some(earliest);
                }
                Some(RoleState::Refused(refusal)) => {
                    sessions.refused += 1;
                    sessions.failure = Some((refusal.code, refusal.message.clone()));
                }
            }
        }
        let describe = |(role, sessions): (&str, Sessions)| {
            let (ready, refused, pending) = (sessions.ready, sessions.refused, sessions.pending);
            let mut value = json!({ "role": role, "ready": ready, "refused": refused, "pending": pending });
            if let Some(expiration) = sessions.expiration {
                value["earliestExpiration"] = expiration.to_string().into();
            }
            if let Some((code, message)) = sessions.failure {
                value["failure"] = json!({ "code": code, "message": message });
            }
            value
        };
        roles.into_iter().map(describe).collect()
    }
}
