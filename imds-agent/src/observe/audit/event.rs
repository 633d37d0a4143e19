//! Events in the shape of CloudTrail's, without any secret.
//!
//! Read first: CloudTrail user guide, "CloudTrail record contents". What has no place there is in `additionalEventData`.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    credentials::{Asked, Assumption, FetchError, RoleCredentials, capsule::Claims},
    observe::trace::is_plain,
    sts::Exchange,
};

/// One line of the trail.
pub type Event = Map<String, Value>;

/// A set goes to its guest for the first time.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    /// When.
    pub at: Timestamp,
    /// The set.
    pub set: &'a RoleCredentials,
    /// The ARN of the role.
    pub role: &'a str,
    /// The instance.
    pub instance: &'a str,
    /// The account of the instance.
    pub account: Option<&'a str>,
    /// The region of the instance.
    pub region: Option<&'a str>,
    /// How the guest asked.
    pub asked: Asked,
    /// The request's target.
    pub path: &'a str,
    /// What the guest's software says it is.
    pub user_agent: Option<&'a [u8]>,
    /// The guest's address and port, as the guest says them.
    pub peer: Option<SocketAddr>,
}

/// A source was asked for a set.
pub fn assumption(assumption: &Assumption<'_>) -> Event {
    let request = assumption.request;
    let mut event = begin(
        "AssumeRole",
        assumption.at,
        account_of(&request.role.arn),
        request.region.as_deref(),
    );
    event.insert(
        "userIdentity".to_owned(),
        json!({"type": "AWSService", "invokedBy": "ec2.amazonaws.com"}),
    );
    event.insert("sourceIPAddress".to_owned(), "ec2.amazonaws.com".into());
    event.insert("userAgent".to_owned(), "ec2.amazonaws.com".into());
    event.insert(
        "requestParameters".to_owned(),
        json!({
            "roleArn": request.role.arn,
            "roleSessionName": request.instance.as_str(),
            "durationSeconds": request.duration_seconds,
        }),
    );
    match assumption.outcome {
        Ok(set) => {
            event.insert("responseElements".to_owned(), json!({"credentials": shown(set)}));
        }
        Err(FetchError::Refused { code, why, .. }) => fail(&mut event, code, why),
        Err(FetchError::Unavailable(why)) => fail(&mut event, "ServiceUnavailable", why),
    }
    event.insert(
        "additionalEventData".to_owned(),
        json!({"instanceId": request.instance.as_str(), "refresh": assumption.is_refresh}),
    );
    event
}

/// A guest got a set.
pub fn handover(handover: &Handover<'_>) -> Event {
    let mut event = begin(
        "GetRoleCredentials",
        handover.at,
        handover.account,
        handover.region,
    );
    event.insert("eventSource".to_owned(), "imds.amazonaws.com".into());
    event.insert("readOnly".to_owned(), true.into());
    event.insert(
        "userIdentity".to_owned(),
        json!({
            "type": "AssumedRole",
            "principalId": handover.instance,
            "accountId": handover.account,
            "accessKeyId": handover.set.access_key_id,
            "sessionContext": {
                "sessionIssuer": {"type": "Role", "arn": handover.role},
                "ec2RoleDelivery": match handover.asked {
                    Asked::WithoutToken => "1.0",
                    Asked::WithToken => "2.0",
                },
            },
        }),
    );
    let address = handover.peer.map(|peer| peer.ip().to_string());
    event.insert("sourceIPAddress".to_owned(), address.into());
    let user_agent = handover
        .user_agent
        .map(|agent| clipped(&String::from_utf8_lossy(agent)));
    event.insert("userAgent".to_owned(), user_agent.into());
    event.insert(
        "responseElements".to_owned(),
        json!({"credentials": shown(handover.set)}),
    );
    event.insert(
        "additionalEventData".to_owned(),
        json!({
            "instanceId": handover.instance,
            "imdsVersion": match handover.asked {
                Asked::WithoutToken => "IMDSv1",
                Asked::WithToken => "IMDSv2",
            },
            "path": clipped(handover.path),
            "sourcePort": handover.peer.map(|peer| peer.port()),
        }),
    );
    event
}

/// Somebody asked the security token service. Nothing if it is not even known for what.
pub fn exchange(exchange: &Exchange<'_>) -> Option<Event> {
    let told = exchange.told?;
    let action = told.action?;
    let caller = told.caller.as_ref();
    let account = caller.map(|caller| caller.account.as_str());
    let mut event = begin(action, exchange.at, account, told.region.as_deref());
    event.insert("requestID".to_owned(), exchange.request_id.into());
    event.insert("readOnly".to_owned(), true.into());
    event.insert(
        "userIdentity".to_owned(),
        match caller {
            Some(caller) => assumed_role(caller, told.access_key_id.as_deref()),
            None => json!({"type": "Unknown", "accessKeyId": told.access_key_id.as_deref().map(clipped)}),
        },
    );
    let address: IpAddr = exchange.peer.ip();
    event.insert("sourceIPAddress".to_owned(), address.to_string().into());
    let user_agent = exchange.user_agent.map(clipped);
    event.insert("userAgent".to_owned(), user_agent.into());
    if let Some((code, message)) = &told.error {
        fail(&mut event, code, message);
    }
    if let Some((session, access_key_id)) = &told.assumed {
        event.insert(
            "requestParameters".to_owned(),
            json!({"roleArn": session.role, "roleSessionName": session.session}),
        );
        event.insert(
            "responseElements".to_owned(),
            json!({
                "assumedRoleUser": {"assumedRoleId": session.user_id(), "arn": session.session_arn()},
                "credentials": {"accessKeyId": access_key_id, "expiration": time(session.expires)},
            }),
        );
    }
    event.insert(
        "additionalEventData".to_owned(),
        json!({
            "instanceId": caller.map(|caller| caller.instance.as_str()),
            "sourcePort": exchange.peer.port(),
        }),
    );
    Some(event)
}

fn begin(name: &str, at: Timestamp, account: Option<&str>, region: Option<&str>) -> Event {
    let fields = [
        ("eventVersion", json!("1.11")),
        ("eventTime", time(at)),
        ("eventSource", json!("sts.amazonaws.com")),
        ("eventName", json!(name)),
        ("awsRegion", json!(region.map(clipped))),
        ("eventID", json!(uuid::Uuid::new_v4().to_string())),
        ("readOnly", json!(false)),
        ("eventType", json!("AwsApiCall")),
        ("managementEvent", json!(true)),
        ("eventCategory", json!("Management")),
        ("recipientAccountId", json!(account)),
    ];
    let named = |(name, value): (&str, Value)| (name.to_owned(), value);
    fields.into_iter().map(named).collect()
}

fn fail(event: &mut Event, code: &str, message: &str) {
    event.insert("errorCode".to_owned(), code.into());
    event.insert(
        "errorMessage".to_owned(),
        clipped_to(MESSAGE_CHARACTERS_MAX, message).into(),
    );
}

fn assumed_role(caller: &Claims, access_key_id: Option<&str>) -> Value {
    json!({
        "type": "AssumedRole",
        "principalId": caller.user_id(),
        "arn": caller.session_arn(),
        "accountId": caller.account,
        "accessKeyId": access_key_id,
        "sessionContext": {
            "sessionIssuer": {"type": "Role", "arn": caller.role, "accountId": caller.account},
            "attributes": {"creationDate": time(caller.issued)},
            "ec2RoleDelivery": caller.delivery,
        },
    })
}

/// Of an error, which may repeat what the caller said: two ARNs and a sentence, and some.
const MESSAGE_CHARACTERS_MAX: usize = 1024;

/// What may be seen of a set: CloudTrail shows the session token as well, but who reads a trail is not always trusted with it.
fn shown(set: &RoleCredentials) -> Value {
    json!({"accessKeyId": set.access_key_id, "expiration": time(set.expiration)})
}

fn time(time: Timestamp) -> Value {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
}

fn account_of(arn: &str) -> Option<&str> {
    arn.split(':').nth(4).filter(|account| !account.is_empty())
}

/// What a guest says fills no disk, and does nothing to the terminal of who reads it.
fn clipped(text: &str) -> String {
    clipped_to(256, text)
}

fn clipped_to(characters_max: usize, text: &str) -> String {
    let plain = |letter| match letter {
        letter if is_plain(letter) => letter,
        _ => char::REPLACEMENT_CHARACTER,
    };
    text.chars().take(characters_max).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_cut_and_harmless() {
        assert_eq!(
            clipped("curl/8.5 \u{9b}2J\u{1b}[2J\u{202e}"),
            "curl/8.5 \u{fffd}2J\u{fffd}[2J\u{fffd}"
        );
        assert_eq!(clipped(&"ä".repeat(1000)), "ä".repeat(256));
        let mut event = Event::new();
        fail(&mut event, "AccessDenied", &"\u{202e}x".repeat(1000));
        assert_eq!(event["errorMessage"], "\u{fffd}x".repeat(512));
    }
}
