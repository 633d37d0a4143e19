//! Instances: all of them in short, and one record whole.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::Bytes,
    extract::{FromRequestParts, RawPathParams, State},
    http::request::Parts,
    response::Response,
};
use imds_ebpf::abi::MacAddr;
use serde_json::{Map, Value, json};

use super::{
    Control, Refusal,
    access::Access,
    applied::{answer, deleted},
    asked::{Asked, json, versioned},
};
use crate::registry::{
    InstanceId,
    snapshot::Member,
    store::{Key, Put, StoreError, Stored},
};

type Answer = Result<Response, Refusal>;

/// A request about one instance, which is the `{id}` of the path.
#[derive(Debug)]
pub(super) struct OnInstance {
    pub control: Arc<Control>,
    pub id: InstanceId,
    pub asked: Asked,
}

/// An instance's id out of a path.
pub(super) fn id(text: &str) -> Result<InstanceId, Refusal> {
    text.parse()
        .map_err(|error| Refusal::invalid(format!("{text:?} is no instance id: {error}")))
}

/// `GET /v1/instances`: those in force.
pub(super) async fn list(State(control): State<Arc<Control>>, _: Asked) -> Answer {
    let taps = control.taps().await?;
    let bound: Bound<'_> = taps
        .iter()
        .filter_map(|tap| Some(((tap.instance.as_ref()?, tap.mac?), tap.name.as_str())))
        .collect();
    let snapshot = control.facts.registry.load();
    let mut members: Vec<_> = snapshot.instances.values().collect();
    members.sort_by_key(|member| &member.instance.instance_id);
    let instances: Vec<Value> = members
        .into_iter()
        .map(|member| summary(member, &bound))
        .collect();
    Ok(json(&json!({ "instances": instances })))
}

/// `GET /v1/instances/{id}`: the record as it is on disk.
pub(super) async fn get(on: OnInstance) -> Answer {
    let (_, mut stored) = on.read().await?;
    if on.asked.access < Access::Admin {
        stored.document.shift_remove("UserData");
    }
    Ok(versioned(&Value::Object(stored.document), &stored.revision))
}

/// `PUT /v1/instances/{id}`
pub(super) async fn put(on: OnInstance, body: Bytes) -> Answer {
    let OnInstance { control, id, asked } = on;
    let (key, expect) = (Key::Instance(id.clone()), asked.expect);
    let put = control
        .store(move |store| store.put(&key, &body, &expect))
        .await?;
    let written = control.written(asked.wait, &id, &put).await?;
    Ok(answer(&written, put.is_new, &put.revision))
}

/// `DELETE /v1/instances/{id}`
pub(super) async fn delete(on: OnInstance) -> Answer {
    let OnInstance { control, id, asked } = on;
    let (key, expect) = (Key::Instance(id.clone()), asked.expect);
    control.store(move |store| store.delete(&key, &expect)).await?;
    let state = control.settle_instance(asked.wait, &id, None).await?;
    Ok(json(&deleted(state)))
}

impl OnInstance {
    /// The instance's record as it is on disk, and what it is called.
    pub(super) async fn read(&self) -> Result<(Key, Stored), Refusal> {
        let key = Key::Instance(self.id.clone());
        let wanted = key.clone();
        let stored = self.control.store(move |store| store.get(&wanted)).await?;
        Ok((key, stored))
    }

    /// Changes the instance's record.
    pub(super) async fn amend(
        &self,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Put, Refusal> {
        let (key, expect) = (Key::Instance(self.id.clone()), self.asked.expect.clone());
        self.control
            .store(move |store| store.amend(&key, &expect, change))
            .await
    }

    /// The same, and waits for it to be in force.
    pub(super) async fn change(
        self,
        change: impl FnOnce(&mut Map<String, Value>) -> Result<(), StoreError> + Send + 'static,
    ) -> Answer {
        let put = self.amend(change).await?;
        let written = self.control.written(self.asked.wait, &self.id, &put).await?;
        Ok(answer(&written, put.is_new, &put.revision))
    }
}

impl FromRequestParts<Arc<Control>> for OnInstance {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Arc<Control>) -> Result<Self, Refusal> {
        let asked = Asked::from_request_parts(parts, control).await?;
        let names = RawPathParams::from_request_parts(parts, control).await;
        let names = names.map_err(|_| Refusal::unreadable())?;
        let mut names = names.iter();
        let (_, text) = names
            .find(|(name, _)| *name == "id")
            .ok_or_else(Refusal::no_route)?;
        Ok(Self {
            control: Arc::clone(control),
            id: id(text)?,
            asked,
        })
    }
}

/// Changes an object in a record: what is not said stays, `null` clears.
pub(super) fn merge(record: &mut Map<String, Value>, field: &str, changes: Map<String, Value>) {
    let object = record.entry(field).or_insert_with(|| json!({}));
    // The reader has the words for what is no object.
    let Some(object) = object.as_object_mut() else {
        return;
    };
    for (name, value) in changes {
        match value {
            Value::Null => drop(object.shift_remove(&name)),
            value => drop(object.insert(name, value)),
        }
    }
}

/// Which MAC is served on which tap, whether the record names it or its own MAC shows the guest's.
type Bound<'a> = HashMap<(&'a InstanceId, MacAddr), &'a str>;

fn summary(member: &Member, bound: &Bound<'_>) -> Value {
    let instance = &member.instance;
    let interfaces = instance.network_interfaces.iter().map(|interface| {
        let mac = interface.mac_address;
        let (named, bound) = (
            interface.tap.as_deref(),
            bound.get(&(&instance.instance_id, mac)).copied(),
        );
        let is_bound = bound.is_some() && (named.is_none() || named == bound);
        let mut value = json!({ "macAddress": mac.to_string(), "bound": is_bound });
        if let Some(tap) = named.or(bound) {
            value["tap"] = tap.into();
        }
        value
    });
    let mut value = json!({
        "instanceId": instance.instance_id,
        "interfaces": interfaces.collect::<Vec<_>>(),
        "httpTokens": member.options.http_tokens,
    });
    let name = instance
        .tags
        .find(|key| key.cmp("Name"))
        .map(|(_, tag)| tag.value.to_string());
    let said = [
        ("name", name),
        (
            "instanceType",
            instance.instance_type.as_ref().map(ToString::to_string),
        ),
        (
            "privateIpAddress",
            instance.private_ip_address.map(|address| address.to_string()),
        ),
        (
            "instanceProfile",
            member
                .instance_profile
                .as_ref()
                .map(|profile| profile.arn.clone()),
        ),
        ("role", member.role.as_ref().map(|role| role.arn.clone())),
    ];
    for (field, said) in said {
        if let Some(said) = said {
            value[field] = said.into();
        }
    }
    value
}
