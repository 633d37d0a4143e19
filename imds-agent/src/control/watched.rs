//! What guests do, as the agent notices it: live requests, who asks without a session token, whose tokens do not arrive.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Control, Refusal,
    asked::{Asked, json},
    instances::OnInstance,
};
use crate::registry::{InstanceId, Snapshot};

/// What JSON is called that has a value on each line.
const LINES: &str = "application/x-ndjson";

/// `GET /v1/trace`: requests of guests as they are answered, one a line, until the caller has enough.
pub(super) async fn trace(State(control): State<Arc<Control>>, asked: Asked) -> Result<Response, Refusal> {
    let subscription = control.facts.trace.subscribe(asked.instance);
    let subscription = subscription.map_err(|error| Refusal::too_many(error.to_string()))?;
    let body = Body::from_stream(subscription.lines());
    Ok(([(header::CONTENT_TYPE, LINES)], body).into_response())
}

/// `GET /v1/instances/{id}/tokenless`: who would be refused if tokens were required now, or is.
pub(super) async fn tokenless(on: OnInstance) -> Result<Response, Refusal> {
    let id = on.known()?;
    Ok(json(&report(id, &on.control.facts.guests.tokenless(id))))
}

/// `GET /v1/instances/{id}/hop-limit`: whether session tokens arrive.
pub(super) async fn hop_limit(on: OnInstance) -> Result<Response, Refusal> {
    let id = on.known()?;
    Ok(json(&report(id, &on.control.facts.guests.hop_limit(id))))
}

impl Control {
    /// The instances whose session tokens surely do not all arrive, in the order of their ids.
    pub(super) fn undelivered(&self, snapshot: &Snapshot) -> Vec<Value> {
        let mut found = self.facts.guests.undelivered();
        found.retain(|(id, _)| snapshot.instances.contains_key(id));
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.iter().map(|(id, found)| report(id, found)).collect()
    }
}

impl OnInstance {
    /// The instance's id, if it is in force.
    fn known(&self) -> Result<&InstanceId, Refusal> {
        let (id, snapshot) = (&self.id, self.control.facts.registry.load());
        let is_known = snapshot.instances.contains_key(id);
        is_known
            .then_some(id)
            .ok_or_else(|| Refusal::not_found(format!("there is no instance {id}")))
    }
}

/// A report with whose it is.
fn report(id: &InstanceId, report: &impl Serialize) -> Value {
    let mut value = json!({ "InstanceId": id });
    if let (Value::Object(value), Ok(Value::Object(report))) = (&mut value, serde_json::to_value(report)) {
        value.extend(report);
    }
    value
}
