//! What a guest would see at a path, without asking it.

use axum::{
    http::{Uri, header},
    response::{IntoResponse as _, Response},
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use zeroize::Zeroize as _;

use super::{Control, Refusal, access::Access, applied::LOOK_AGAIN, instances::OnInstance};
use crate::{
    credentials::Asked as AskedBy,
    imds::{
        Caller, Delivery,
        path::Path as MetadataPath,
        tree::{self, Answer, View},
    },
    now::Now,
    registry::{HttpEndpoint, InstanceId},
};

/// Takes the place of what only the guest is to have.
const REDACTED: &str = "(redacted)";

/// `GET /v1/instances/{id}/metadata/{path}`: the path is the guest's own, its version included.
pub(super) async fn get(
    OnInstance { control, id, asked }: OnInstance,
    uri: Uri,
) -> Result<Response, Refusal> {
    // As it was sent: a tag's key is percent-encoded in the guest's path too.
    let target = uri
        .path()
        .splitn(5, '/')
        .nth(4)
        .and_then(|path| path.strip_prefix("metadata"));
    let target = target.unwrap_or_default();
    let path = MetadataPath::of(target).ok_or_else(Refusal::no_route)?;
    if asked.access < Access::Admin && path.segments().nth(1) == Some("user-data") {
        return Err(Refusal::secret());
    }
    let deadline = Instant::now() + asked.wait;
    loop {
        let mut body = Vec::new();
        match control.look(&id, path, &mut body)? {
            Answer::Absent => return Err(Refusal::not_found(format!("{id} sees nothing at {target}"))),
            Answer::Found(found) => {
                let is_secret = matches!(
                    found.delivery,
                    Delivery::RoleCredentials | Delivery::IdentityCredentials
                );
                if is_secret && !asked.shows_secrets {
                    let redacted = redact(&body);
                    body.zeroize();
                    body = redacted;
                }
                // A guest is sent text as well, but a program here need not guess at its end.
                let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
                return Ok((kind, body).into_response());
            }
            Answer::Pending if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
            Answer::Pending => {
                return Err(Refusal::not_yet(format!(
                    "{id} is told 503 at {target}: it is being made"
                )));
            }
        }
    }
}

impl Control {
    fn look(&self, id: &InstanceId, path: MetadataPath<'_>, body: &mut Vec<u8>) -> Result<Answer, Refusal> {
        let snapshot = self.facts.registry.load();
        let unknown = || Refusal::not_found(format!("there is no instance {id} in force"));
        let member = snapshot.instances.get(id).ok_or_else(unknown)?;
        if member.options.http_endpoint == HttpEndpoint::Disabled {
            return Err(Refusal::guest_refused(format!(
                "{id} is told 403: its HttpEndpoint is disabled"
            )));
        }
        let none = || Refusal::guest_refused(format!("{id} has no network interface to ask through"));
        let interface = member.instance.network_interfaces.first().ok_or_else(none)?;
        let at = Timestamp::now();
        let unix = std::time::Duration::try_from(at.as_duration()).unwrap_or_default();
        let now = Now {
            monotonic: self.started.elapsed(),
            unix,
        };
        let sessions = &self.facts.credentials;
        let role_state = member.role.as_ref().and_then(|role| sessions.state(id, role, at));
        let identity_state = self.facts.identity_credentials.state_of_instance(id, at);
        let caller = Caller {
            member,
            interface,
            role_state: role_state.as_ref(),
            identity_state: identity_state.as_ref(),
            identities: &self.facts.identities,
        };
        let view = View::new(now, &caller).asked(AskedBy::WithToken, self.extended_credentials);
        Ok(tree::answer(&view, path, body))
    }
}

/// A credentials document without what makes it worth stealing. A failure document has nothing of the kind.
fn redact(body: &[u8]) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<Value>(body) else {
        return REDACTED.into();
    };
    for secret in ["SecretAccessKey", "Token"] {
        if let Some(value) = document.get_mut(secret)
            && let Value::String(mut secret) = std::mem::replace(value, REDACTED.into())
        {
            secret.zeroize();
        }
    }
    format!("{document:#}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_and_nothing_else() {
        let body = br#"{"Code":"Success","AccessKeyId":"ASIA1","SecretAccessKey":"s3","Token":"t0"}"#;
        let redacted: Value = serde_json::from_slice(&redact(body)).unwrap();
        let expected =
            r#"{"Code":"Success","AccessKeyId":"ASIA1","SecretAccessKey":"(redacted)","Token":"(redacted)"}"#;
        assert_eq!(redacted, serde_json::from_str::<Value>(expected).unwrap());
        assert_eq!(redact(b"a secret that is no JSON"), REDACTED.as_bytes());
    }
}
