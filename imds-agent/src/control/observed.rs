//! What became of the frames of an instance's taps, and how its role's credentials are. `imdsctl doctor` concludes from it.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::Response,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Command, Control, Refusal,
    asked::{Asked, json},
    instances::id,
};
use crate::{
    credentials::RoleState,
    registry::{InstanceId, role::Role},
};

/// `GET /v1/instances/{id}/observed`
pub(super) async fn get(
    State(control): State<Arc<Control>>,
    Path(text): Path<String>,
    _: Asked,
) -> Result<Response, Refusal> {
    let id = id(&text)?;
    let snapshot = control.facts.registry.load();
    let member = snapshot
        .instances
        .get(&id)
        .ok_or_else(|| Refusal::not_found(format!("no instance {id} is in force")))?;
    let interfaces = member.instance.network_interfaces.iter();
    let taps = interfaces
        .filter_map(|interface| interface.tap.as_deref().map(str::to_owned))
        .collect();
    let frames = control.ask(|answer| Command::Count(taps, answer)).await?;
    let taps = frames.iter().map(|frames| {
        json!({
            "Tap": frames.tap,
            "Punted": frames.punted,
            "Hairpinned": frames.hairpinned,
            "Dropped": frames.dropped,
        })
    });
    let mut value = json!({
        "InstanceId": id,
        "Taps": taps.collect::<Vec<_>>(),
        "HasUserData": member.instance.user_data.is_some(),
    });
    if let Some(role) = &member.role {
        value["RoleCredentials"] = control.role_credentials(&id, role);
    }
    Ok(json(&value))
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
