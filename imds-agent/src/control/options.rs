//! Metadata options, in the shape of `aws ec2 modify-instance-metadata-options`.

use std::time::Duration;

use axum::{body::Bytes, response::Response};
use serde_json::{Value, json};

use super::{
    Control, Refusal,
    applied::State as Applied,
    asked::{parse_named, versioned},
    instances::{OnInstance, merge},
};
use crate::registry::{InstanceId, MetadataOptions, record::Record, store::Revision};

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
pub(super) async fn get(on: OnInstance) -> Result<Response, Refusal> {
    let (_, stored) = on.read().await?;
    // A record with a mistake in it stays pending, and what was in force before stays so.
    on.control
        .answer(&on.id, stored.record.as_ref(), &stored.revision, Duration::ZERO)
        .await
}

/// `PATCH /v1/instances/{id}/metadata-options`: what is not said stays; `null` leaves it to the host's default.
pub(super) async fn patch(on: OnInstance, body: Bytes) -> Result<Response, Refusal> {
    let changes = parse_named(&body, &NAMES)?;
    let put = on.amend(|record| {
        merge(record, "MetadataOptions", changes);
        Ok(())
    });
    let put = put.await?;
    on.control
        .answer(&on.id, Some(&put.record), &put.revision, on.asked.wait)
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
