//! How the agent is: for people at three in the morning, and for probes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Command, Control, Refusal, TapMeasures, TapState,
    asked::{Asked, JSON, json},
    observed::limits,
    refusal::finding,
};
use crate::{
    credentials::RoleState,
    registry::{Problem, Snapshot, problem::Severity, snapshot::Member},
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
    let measures = control.ask(|answer| Command::Measure(None, answer)).await?;
    let measures: HashMap<_, _> = measures.iter().map(|tap| (tap.index, tap)).collect();
    let snapshot = control.facts.registry.load();
    let problems: Vec<Value> = control.problems.borrow().iter().map(problem).collect();
    let refused: Vec<Value> = taps
        .iter()
        .filter_map(|tap| Some(json!({ "tap": tap.name, "message": tap.refused.as_ref()? })))
        .collect();
    let namespaces = control.ask(Command::DescribeNamespaces).await?;
    let namespaces = namespaces.iter().map(|namespace| {
        let mut value = json!({ "name": namespace.name, "served": namespace.refused.is_none() });
        if let Some(reason) = &namespace.refused {
            value["reason"] = reason.as_str().into();
        }
        value
    });
    let described = taps.iter().map(|tap| {
        let measures = measures.get(&tap.index).copied();
        control.describe(tap, measures, &snapshot)
    });
    Ok(json(&json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptimeSeconds": control.started.elapsed().as_secs(),
        "ready": control.is_ready(),
        "registryRevision": snapshot.revision,
        "instances": snapshot.instances.len(),
        "taps": described.collect::<Vec<_>>(),
        "networkNamespaces": namespaces.collect::<Vec<_>>(),
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

    /// Whom a tap is served for, or why for nobody, and how that goes.
    fn describe(&self, tap: &TapState, measures: Option<&TapMeasures>, snapshot: &Snapshot) -> Value {
        let named = snapshot
            .by_tap
            .get(tap.name.as_str())
            .map(|(member, _)| &member.instance.instance_id);
        let owner = tap.instance.as_ref().and_then(|id| snapshot.instances.get(id));
        let mut value = json!({ "name": tap.name, "index": tap.index.ifindex(), "bound": tap.mac.is_some() });
        if let Some(mac) = tap.mac {
            value["macAddress"] = mac.to_string().into();
        }
        if let Some(member) = owner {
            value["instanceId"] = member.instance.instance_id.as_str().into();
            if let Some(credentials) = self.credentials_of(member, Timestamp::now()) {
                value["credentials"] = credentials;
            }
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
        if let Some(measures) = measures {
            value["framesDropped"] = measures.dropped.values().sum::<u64>().into();
            value["limits"] = limits(measures, ["limit", "left", "of", "isReached"]);
        }
        value
    }

    /// How the credentials are that an instance's guest is handed, if it has a role.
    fn credentials_of(&self, member: &Member, now: Timestamp) -> Option<Value> {
        let (id, role) = (&member.instance.instance_id, member.role.as_ref()?);
        Some(match self.facts.credentials.state(id, role, now).as_deref() {
            None => json!({ "state": "pending" }),
            Some(RoleState::Refused(_)) => json!({ "state": "refused" }),
            Some(RoleState::Ready(set)) => json!({
                "state": "ready",
                "expiration": set.expiration.to_string(),
                "remainingSeconds": set.expiration.duration_since(now).as_secs().max(0),
            }),
        })
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
