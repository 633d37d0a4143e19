//! Roles and instance profiles, in IAM's own shapes.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{Path, State},
    response::Response,
};
use serde_json::{Value, json};

use super::{
    Control, Refusal,
    applied::{self, answer, deleted},
    asked::{Asked, json, versioned},
};
use crate::registry::{
    Snapshot,
    record::{Kind, Record},
    store::{Key, Put, StoreError},
};

type Answer = Result<Response, Refusal>;
type Shared = State<Arc<Control>>;

/// `GET /v1/roles`
pub(super) async fn list_roles(State(control): Shared, _: Asked) -> Answer {
    list(&control, Kind::Role, "Roles").await
}

/// `GET /v1/roles/{name}`
pub(super) async fn get_role(State(control): Shared, Path(name): Path<String>, _: Asked) -> Answer {
    get(control, Key::Role(name), "Role").await
}

/// `PUT /v1/roles/{name}`
pub(super) async fn put_role(
    State(control): Shared,
    Path(name): Path<String>,
    asked: Asked,
    body: Bytes,
) -> Answer {
    put(control, Key::Role(name), asked, body).await
}

/// `DELETE /v1/roles/{name}`
pub(super) async fn delete_role(State(control): Shared, Path(name): Path<String>, asked: Asked) -> Answer {
    delete(control, Key::Role(name), asked).await
}

/// `GET /v1/instance-profiles`
pub(super) async fn list_profiles(State(control): Shared, _: Asked) -> Answer {
    list(&control, Kind::InstanceProfile, "InstanceProfiles").await
}

/// `GET /v1/instance-profiles/{name}`
pub(super) async fn get_profile(State(control): Shared, Path(name): Path<String>, _: Asked) -> Answer {
    get(control, Key::InstanceProfile(name), "InstanceProfile").await
}

/// `PUT /v1/instance-profiles/{name}`
pub(super) async fn put_profile(
    State(control): Shared,
    Path(name): Path<String>,
    asked: Asked,
    body: Bytes,
) -> Answer {
    put(control, Key::InstanceProfile(name), asked, body).await
}

/// `DELETE /v1/instance-profiles/{name}`
pub(super) async fn delete_profile(State(control): Shared, Path(name): Path<String>, asked: Asked) -> Answer {
    delete(control, Key::InstanceProfile(name), asked).await
}

/// `PUT /v1/instance-profiles/{name}/roles/{role}`: as `aws iam add-role-to-instance-profile`.
pub(super) async fn add_role(
    State(control): Shared,
    Path((name, role)): Path<(String, String)>,
    asked: Asked,
) -> Answer {
    let wanted = Key::Role(role);
    let stored = control.store(move |store| store.get(&wanted)).await?;
    let named = json!({ "RoleName": stored.document.get("RoleName"), "Arn": stored.document.get("Arn") });
    let expect = asked.expect;
    let change = control.store(move |store| {
        let key = Key::InstanceProfile(name);
        store.amend(&key, &expect, |profile| {
            let roles = profile.entry("Roles").or_insert_with(|| json!([]));
            if roles.as_array().is_some_and(|roles| !roles.is_empty()) {
                let message = format!("{key} has a role already, and can have but one: remove that first");
                return Err(StoreError::Refused(message));
            }
            *roles = json!([named]);
            Ok(())
        })
    });
    let put = change.await?;
    written(&control, asked.wait, &put).await
}

/// `DELETE /v1/instance-profiles/{name}/roles/{role}`: as `aws iam remove-role-from-instance-profile`.
pub(super) async fn remove_role(
    State(control): Shared,
    Path((name, role)): Path<(String, String)>,
    asked: Asked,
) -> Answer {
    let expect = asked.expect;
    let change = control.store(move |store| {
        let key = Key::InstanceProfile(name);
        store.amend(&key, &expect, |profile| {
            let roles = profile.get_mut("Roles").and_then(Value::as_array_mut);
            let found = roles.and_then(|roles| {
                let is_it = |named: &Value| named["RoleName"] == role || named["Arn"] == role;
                roles.iter().position(is_it).map(|place| roles.remove(place))
            });
            found
                .map(drop)
                .ok_or_else(|| StoreError::Refused(format!("{key} has no role {role}")))
        })
    });
    let put = change.await?;
    written(&control, asked.wait, &put).await
}

async fn get(control: Arc<Control>, key: Key, wrapper: &str) -> Answer {
    let stored = control.store(move |store| store.get(&key)).await?;
    Ok(versioned(&json!({ wrapper: stored.document }), &stored.revision))
}

async fn put(control: Arc<Control>, key: Key, asked: Asked, body: Bytes) -> Answer {
    let expect = asked.expect;
    let put = control
        .store(move |store| store.put(&key, &body, &expect))
        .await?;
    written(&control, asked.wait, &put).await
}

async fn delete(control: Arc<Control>, key: Key, asked: Asked) -> Answer {
    let expect = asked.expect;
    let stored = control
        .store(move |store| {
            let stored = store.get(&key)?;
            store.delete(&key, &expect)?;
            Ok(stored)
        })
        .await?;
    let is_gone = |snapshot: &Snapshot| match &stored.record {
        Some(Record::Role(role)) => !snapshot.roles.contains_key(&role.arn),
        Some(Record::InstanceProfile(profile)) => !snapshot.instance_profiles.contains_key(&profile.arn),
        // What was wrong on disk may still have been in force as it was before; there is nothing to know it by.
        _ => true,
    };
    let state = control.settle(asked.wait, &[], is_gone).await?;
    Ok(json(&deleted(state)))
}

async fn written(control: &Control, wait: Duration, put: &Put) -> Answer {
    let is_in_force = |snapshot: &Snapshot| match &put.record {
        Record::Role(role) => snapshot
            .roles
            .get(&role.arn)
            .is_some_and(|found| **found == **role),
        Record::InstanceProfile(profile) => {
            let found = snapshot.instance_profiles.get(&profile.arn);
            found.is_some_and(|found| **found == **profile)
        }
        Record::Instance(_) => false,
    };
    let state = control.settle(wait, &[], is_in_force).await?;
    Ok(answer(&applied::written(state, put), put.is_new, &put.revision))
}

/// All records of a kind, under the name that IAM lists them by.
async fn list(control: &Arc<Control>, kind: Kind, name: &str) -> Answer {
    let records = control.store(move |store| store.list(kind)).await?;
    let documents: Value = records
        .into_iter()
        .map(|stored| Value::Object(stored.document))
        .collect();
    Ok(json(&json!({ name: documents })))
}
