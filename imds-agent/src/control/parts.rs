//! Parts of an instance's record that are changed by themselves: tags, notices, the instance profile.

use std::sync::Arc;

use axum::{body::Bytes, response::Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Control, Refusal,
    asked::{parse, parse_named, versioned},
    instances::{OnInstance, merge},
};
use crate::registry::{
    record::Record,
    store::{Key, StoreError},
};

type Answer = Result<Response, Refusal>;

/// What [`Events`](crate::registry::events::Events) has.
const EVENTS: [&str; 4] = [
    "SpotInterruption",
    "RebalanceRecommendation",
    "Maintenance",
    "AutoScaling",
];

/// A body with tags, as `aws ec2 create-tags` has them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Tags {
    #[serde(default)]
    tags: Vec<Tag>,
    /// *Ours*: the keys of tags that are to go.
    #[serde(default)]
    remove_keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Tag {
    key: String,
    value: String,
}

/// `IamInstanceProfileSpecification`
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Specification {
    arn: Option<String>,
    name: Option<String>,
}

/// `GET /v1/instances/{id}/tags`
pub(super) async fn get_tags(on: OnInstance) -> Answer {
    let (_, mut stored) = on.read().await?;
    let tags = stored.document.shift_remove("Tags").unwrap_or_else(|| json!([]));
    Ok(versioned(&json!({ "Tags": tags }), &stored.revision))
}

/// `PUT /v1/instances/{id}/tags`: these and no others.
pub(super) async fn put_tags(on: OnInstance, body: Bytes) -> Answer {
    let tags: Tags = parse(&body)?;
    if !tags.remove_keys.is_empty() {
        return Err(Refusal::invalid(
            "RemoveKeys: is for PATCH; a PUT says all tags that there are",
        ));
    }
    on.change(move |record| {
        record.insert("Tags".to_owned(), tags.tags.iter().map(Tag::to_json).collect());
        Ok(())
    })
    .await
}

/// `PATCH /v1/instances/{id}/tags`: these get these values, those go, the others stay.
pub(super) async fn patch_tags(on: OnInstance, body: Bytes) -> Answer {
    let changes: Tags = parse(&body)?;
    on.change(move |record| {
        let tags = record.entry("Tags").or_insert_with(|| json!([]));
        // The reader has the words for what is no list.
        let Some(tags) = tags.as_array_mut() else {
            return Ok(());
        };
        tags.retain(|tag| {
            tag["Key"]
                .as_str()
                .is_none_or(|key| !changes.remove_keys.iter().any(|gone| gone == key))
        });
        for tag in &changes.tags {
            match tags.iter_mut().find(|old| old["Key"] == tag.key) {
                Some(old) => old["Value"] = tag.value.as_str().into(),
                None => tags.push(tag.to_json()),
            }
        }
        Ok(())
    })
    .await
}

/// `GET /v1/instances/{id}/events`
pub(super) async fn get_events(on: OnInstance) -> Answer {
    let (_, mut stored) = on.read().await?;
    let events = stored
        .document
        .shift_remove("Events")
        .unwrap_or_else(|| json!({}));
    Ok(versioned(&events, &stored.revision))
}

/// `PUT /v1/instances/{id}/events`: these and no others.
pub(super) async fn put_events(on: OnInstance, body: Bytes) -> Answer {
    let events = parse_named(&body, &EVENTS)?;
    on.change(move |record| {
        record.insert("Events".to_owned(), events.into());
        Ok(())
    })
    .await
}

/// `PATCH /v1/instances/{id}/events`: what is not said stays, `null` clears.
pub(super) async fn patch_events(on: OnInstance, body: Bytes) -> Answer {
    let changes = parse_named(&body, &EVENTS)?;
    on.change(move |record| {
        merge(record, "Events", changes);
        Ok(())
    })
    .await
}

/// `GET /v1/instances/{id}/iam-instance-profile`
pub(super) async fn get_profile(on: OnInstance) -> Answer {
    let (key, stored) = on.read().await?;
    match stored.document.get("IamInstanceProfile") {
        Some(profile) if !profile.is_null() => Ok(versioned(
            &json!({ "IamInstanceProfile": profile }),
            &stored.revision,
        )),
        _ => Err(Refusal::not_found(format!("{key} has no instance profile"))),
    }
}

/// `POST /v1/instances/{id}/iam-instance-profile`: as `aws ec2 associate-iam-instance-profile`, not over another one.
pub(super) async fn associate_profile(on: OnInstance, body: Bytes) -> Answer {
    let profile = specified(&on.control, &body).await?;
    on.change(move |record| {
        if record
            .get("IamInstanceProfile")
            .is_some_and(|profile| !profile.is_null())
        {
            let message = "the instance has an instance profile already: replace it, or take it off first";
            return Err(StoreError::Refused(message.to_owned()));
        }
        record.insert("IamInstanceProfile".to_owned(), profile);
        Ok(())
    })
    .await
}

/// `PUT /v1/instances/{id}/iam-instance-profile`: as `aws ec2 replace-iam-instance-profile-association`.
pub(super) async fn replace_profile(on: OnInstance, body: Bytes) -> Answer {
    let profile = specified(&on.control, &body).await?;
    on.change(move |record| {
        record.insert("IamInstanceProfile".to_owned(), profile);
        Ok(())
    })
    .await
}

/// `DELETE /v1/instances/{id}/iam-instance-profile`: as `aws ec2 disassociate-iam-instance-profile`.
pub(super) async fn disassociate_profile(on: OnInstance) -> Answer {
    on.change(|record| match record.shift_remove("IamInstanceProfile") {
        Some(profile) if !profile.is_null() => Ok(()),
        _ => Err(StoreError::Refused(
            "the instance has no instance profile".to_owned(),
        )),
    })
    .await
}

/// The instance profile that a body names, as a record has it. It has to exist.
async fn specified(control: &Arc<Control>, body: &[u8]) -> Result<Value, Refusal> {
    let name = match parse(body)? {
        Specification {
            arn: Some(arn),
            name: None,
        } => arn,
        Specification {
            arn: None,
            name: Some(name),
        } => name,
        _ => {
            return Err(Refusal::invalid(
                "the body says either the Arn or the Name of an instance profile",
            ));
        }
    };
    let key = Key::InstanceProfile(name);
    let stored = control.store(move |store| store.get(&key)).await?;
    let Some(Record::InstanceProfile(profile)) = stored.record else {
        return Err(Refusal::broken(stored.file.display()));
    };
    let mut value = json!({ "Arn": profile.arn });
    if let Some(id) = &profile.instance_profile_id {
        value["Id"] = id.as_str().into();
    }
    Ok(value)
}

impl Tag {
    fn to_json(&self) -> Value {
        json!({ "Key": self.key, "Value": self.value })
    }
}
