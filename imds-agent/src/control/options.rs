//! Metadata options, in the shape of `aws ec2 modify-instance-metadata-options`.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{Path, State},
    response::Response,
};
use serde_json::{Map, Value, json};

use super::{
    Control, Refusal,
    applied::State as Applied,
    asked::{Asked, parse, versioned},
    instances::id,
};
use crate::registry::{
    InstanceId, MetadataOptions,
    record::Record,
    store::{Key, Revision},
};

/// What can be modified.
const NAMES: [&str; 6] = [
    "HttpEndpoint",
    "HttpTokens",
    "HttpPutResponseHopLimit",
    "HttpProtocolIpv6",
    "InstanceMetadataTags",
    "InstanceMetadataTagsIndex",
];

/// `GET /v1/instances/{id}/metadata-options`: what the record asks for, and whether it is so yet.
pub(super) async fn get(
    State(control): State<Arc<Control>>,
    Path(text): Path<String>,
    _: Asked,
) -> Result<Response, Refusal> {
    let id = id(&text)?;
    let key = Key::Instance(id.clone());
    let stored = control.store(move |store| store.get(&key)).await?;
    // A record with a mistake in it stays pending, and what was in force before stays so.
    control
        .answer(&id, stored.record.as_ref(), &stored.revision, Duration::ZERO)
        .await
}

/// `PATCH /v1/instances/{id}/metadata-options`: what is not said stays; `null` leaves it to the host's default.
pub(super) async fn patch(
    State(control): State<Arc<Control>>,
    Path(text): Path<String>,
    asked: Asked,
    body: Bytes,
) -> Result<Response, Refusal> {
    let id = id(&text)?;
    let changes: Map<String, Value> = parse(&body)?;
    if let Some(name) = changes.keys().find(|name| !NAMES.contains(&name.as_str())) {
        return Err(Refusal::invalid(format!(
            "{name}: is none of {}",
            NAMES.join(", ")
        )));
    }
    let (key, expect) = (Key::Instance(id.clone()), asked.expect);
    let put = control
        .store(move |store| {
            store.amend(&key, &expect, |record| {
                let options = record.entry("MetadataOptions").or_insert_with(|| json!({}));
                for (name, value) in changes {
                    match (options.as_object_mut(), value) {
                        (Some(options), Value::Null) => drop(options.shift_remove(&name)),
                        (Some(options), value) => drop(options.insert(name, value)),
                        // The reader has the words for it.
                        (None, _) => {}
                    }
                }
                Ok(())
            })
        })
        .await?;
    control
        .answer(&id, Some(&put.record), &put.revision, asked.wait)
        .await
}

impl Control {
    async fn answer(
        &self,
        id: &InstanceId,
        record: Option<&Record>,
        revision: &Revision,
        wait: Duration,
    ) -> Result<Response, Refusal> {
        let (options, state) = match record {
            Some(Record::Instance(instance)) => {
                let options = instance.metadata_options.or(self.store.rules().options);
                (options, self.settle_instance(wait, id, record).await?)
            }
            _ => {
                let in_force = self
                    .facts
                    .registry
                    .load()
                    .instances
                    .get(id)
                    .map(|member| member.options);
                (in_force.ok_or_else(|| Refusal::broken(id))?, Applied::Pending)
            }
        };
        let value = json!({ "InstanceId": id, "InstanceMetadataOptions": describe(options, state) });
        Ok(versioned(&value, revision))
    }
}

/// As EC2 prints them.
fn describe(options: MetadataOptions, state: Applied) -> Value {
    json!({
        "State": state.as_str(),
        "HttpTokens": options.http_tokens,
        "HttpPutResponseHopLimit": options.http_put_response_hop_limit,
        "HttpEndpoint": options.http_endpoint,
        "HttpProtocolIpv6": options.http_protocol_ipv6,
        "InstanceMetadataTags": options.instance_metadata_tags,
        "InstanceMetadataTagsIndex": options.instance_metadata_tags_index,
    })
}
