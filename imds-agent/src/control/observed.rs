//! What became of the frames of an instance's taps, and how its role's credentials are. `imdsctl doctor` concludes from it.

use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Command, Control, Refusal, TapMeasures, asked::json, instances::OnInstance};
use crate::{
    credentials::RoleState,
    observe::Budget,
    registry::{InstanceId, role::Role},
};

/// `GET /v1/instances/{id}/observed`
pub(super) async fn get(on: OnInstance) -> Result<Response, Refusal> {
    let OnInstance { control, id, .. } = on;
    let snapshot = control.facts.registry.load();
    let member = snapshot
        .instances
        .get(&id)
        .ok_or_else(|| Refusal::not_found(format!("no instance {id} is in force")))?;
    let interfaces = &member.instance.network_interfaces;
    let mut taps = control.taps().await?;
    taps.retain(|tap| interfaces.iter().any(|interface| tap.is_of(interface)));
    let taps = taps.iter().map(|tap| tap.index).collect();
    let measures = control.ask(|answer| Command::Measure(Some(taps), answer)).await?;
    let mut value = json!({
        "InstanceId": id,
        "Taps": measures.iter().map(measured).collect::<Vec<_>>(),
        "HasUserData": member.instance.user_data.is_some(),
    });
    if let Some(role) = &member.role {
        value["RoleCredentials"] = control.role_credentials(&id, role);
    }
    Ok(json(&value))
}

fn measured(measures: &TapMeasures) -> Value {
    let mut value = json!({
        "Tap": measures.name,
        "Punted": measures.punted,
        "Hairpinned": measures.hairpinned,
        "Dropped": measures.dropped,
    });
    value["Limits"] = limits(measures, ["Limit", "Left", "Of", "IsReached"]);
    value
}

/// What a tap has left of its limits, with fields of these names.
pub(super) fn limits(measures: &TapMeasures, [name, left, of, is_reached]: [&str; 4]) -> Value {
    let limits = measures.budget.iter().flat_map(Budget::limits);
    let described = limits
        .map(|(limit, is)| json!({ name: limit, left: is.left, of: is.of, is_reached: is.is_at_limit() }));
    described.collect()
}

impl Control {
    /// What the guest finds where its role's credentials are.
    fn role_credentials(&self, id: &InstanceId, role: &Role) -> Value {
        let published = &self.facts.credentials;
        let state = published.state(id, role, Timestamp::now());
        match state.as_deref() {
            None => json!({ "Role": role.arn, "State": "pending" }),
            Some(RoleState::Ready(_)) => json!({ "Role": role.arn, "State": "ready" }),
            Some(RoleState::Refused(refusal)) => json!({
                "Role": role.arn,
                "State": "refused",
                "Code": refusal.code,
                "Message": refusal.message,
            }),
        }
    }
}
