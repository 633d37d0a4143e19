//! The actions of the STS Query API that the endpoint has: `GetCallerIdentity` and `AssumeRole`.
//!
//! Read first: STS API reference, the two actions and "Common Error Types". Performs no IO and reads no clock.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use super::{
    sigv4::{Claim, Parameters, Received, SignatureError},
    xml::{self, Body},
};
use crate::{
    credentials::{
        Issuer, RoleCredentials,
        capsule::{Claims, Delivery, OpenError},
        trust::Principal,
    },
    registry::{IamArn, Role, Snapshot},
};

/// What a session may last that is assumed from another role's session, as at AWS.
const CHAINED_SECONDS_MAX: u32 = 3600;

/// What every session may last.
const SESSION_SECONDS_MIN: u32 = 900;

/// Parameters of `AssumeRole` that would narrow or mark the session. Nothing here could keep that promise.
const UNKEPT: &[&str] = &[
    "Policy",
    "PolicyArns",
    "ProvidedContexts",
    "SerialNumber",
    "SourceIdentity",
    "Tags",
    "TokenCode",
    "TransitiveTagKeys",
];

/// Answers requests.
#[derive(Debug)]
pub struct Service {
    issuer: Arc<Issuer>,
}

/// What came of a request: the answer, and what an audit trail wants to know of it.
#[derive(Debug)]
pub struct Told {
    /// The HTTP status.
    pub status: u16,
    /// XML.
    pub body: Body,
    /// `GetCallerIdentity`, as far as the request says one that is known.
    pub action: Option<&'static str>,
    /// Who called, once that is sure.
    pub caller: Option<Claims>,
    /// The region that the caller signed for, once that is sure.
    pub region: Option<String>,
    /// The code and the message of the error.
    pub error: Option<(&'static str, String)>,
    /// The session that was made, and its access key id.
    pub assumed: Option<(Claims, String)>,
    /// The access key id that the request names.
    pub access_key_id: Option<String>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error("The security token included in the request is invalid.")]
    UnknownKey,
    #[error("The security token included in the request is expired")]
    ExpiredToken,
    #[error("Could not find operation {0} for version 2011-06-15")]
    UnknownAction(String),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("{0}")]
    Invalid(String),
    #[error("User: {caller} is not authorized to perform: sts:AssumeRole on resource: {role}")]
    AccessDenied { caller: String, role: String },
    #[error("{0}")]
    Internal(String),
}

impl Service {
    /// Verifies what `issuer` sealed, and mints with it.
    pub fn new(issuer: Arc<Issuer>) -> Self {
        Self { issuer }
    }

    /// Answers one request, which is called `request_id`.
    pub fn respond(
        &self,
        received: &Received<'_>,
        registry: &Snapshot,
        now: Timestamp,
        request_id: &str,
    ) -> Told {
        let mut told = Told {
            status: 200,
            body: Body::default(),
            action: None,
            caller: None,
            region: None,
            error: None,
            assumed: None,
            access_key_id: None,
        };
        match self.answer(received, registry, now, request_id, &mut told) {
            Ok(body) => told.body = body,
            Err(refusal) => {
                let (status, code) = refusal.status_and_code();
                let message = refusal.to_string();
                told.status = status;
                told.body = xml::error(status < 500, code, &message, request_id);
                told.error = Some((code, message));
            }
        }
        told
    }

    fn answer(
        &self,
        received: &Received<'_>,
        registry: &Snapshot,
        now: Timestamp,
        request_id: &str,
        told: &mut Told,
    ) -> Result<Body, Refusal> {
        let parameters = parameters(received)?;
        let action = parameters.get("Action").map_or("", String::as_str);
        told.action = ["AssumeRole", "GetCallerIdentity"]
            .into_iter()
            .find(|known| *known == action);
        let caller = self.authenticate(received, now, told)?;
        match told.action {
            Some("GetCallerIdentity") => Ok(xml::caller_identity(&caller, request_id)),
            Some(_) => {
                let (session, set) = self.assume_role(&caller, &parameters, registry, now)?;
                let body = xml::assumed_role(&session, &set, request_id);
                told.assumed = Some((session, set.access_key_id));
                Ok(body)
            }
            None => Err(Refusal::UnknownAction(action.chars().take(64).collect())),
        }
    }

    /// Who signed the request.
    fn authenticate(
        &self,
        received: &Received<'_>,
        now: Timestamp,
        told: &mut Told,
    ) -> Result<Claims, Refusal> {
        let claim = Claim::read(received)?;
        told.access_key_id = Some(claim.access_key_id.clone());
        let token = claim.session_token.as_deref().ok_or(Refusal::UnknownKey)?;
        let opened = self.issuer.open(token, now).map_err(|error| match error {
            OpenError::Expired => Refusal::ExpiredToken,
            OpenError::Malformed | OpenError::UnknownKey | OpenError::Forged => Refusal::UnknownKey,
        })?;
        if opened.access_key_id != claim.access_key_id {
            return Err(Refusal::UnknownKey);
        }
        let secret = secrecy::ExposeSecret::expose_secret(&opened.secret_access_key);
        claim.verify(received, secret, now)?;
        told.caller = Some(opened.claims.clone());
        told.region = Some(claim.region().to_owned());
        Ok(opened.claims)
    }

    fn assume_role(
        &self,
        caller: &Claims,
        parameters: &BTreeMap<String, String>,
        registry: &Snapshot,
        now: Timestamp,
    ) -> Result<(Claims, RoleCredentials), Refusal> {
        let is_unkept = |name: &String| {
            let name = name.split('.').next().unwrap_or_default();
            UNKEPT.contains(&name)
        };
        if let Some(name) = parameters.keys().find(|name| is_unkept(name)) {
            return Err(Refusal::Invalid(format!(
                "{name} is not supported by this service"
            )));
        }
        let role_arn = required(parameters, "RoleArn")?;
        let session_name = required(parameters, "RoleSessionName")?;
        if !is_session_name(session_name) {
            return Err(Refusal::Invalid(
                "1 validation error detected: Value at 'roleSessionName' failed to satisfy constraint: Member must satisfy \
                 regular expression pattern: [\\w+=,.@-]{2,64}"
                    .to_owned(),
            ));
        }
        let denied = || Refusal::AccessDenied {
            caller: caller.session_arn(),
            role: role_arn.to_owned(),
        };
        let role = registry.roles.get(role_arn).ok_or_else(denied)?;
        let session_arn = caller.session_arn();
        let principal = Principal {
            account: &caller.account,
            role: &caller.role,
            session: &session_arn,
            new_session_name: session_name,
            external_id: parameters.get("ExternalId").map(String::as_str),
        };
        let document = role.assume_role_policy_document.as_ref();
        if !document.is_some_and(|document| principal.may_assume(document)) {
            return Err(denied());
        }
        let duration_seconds = duration_seconds(parameters, role)?;
        let issued = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let duration = SignedDuration::from_secs(duration_seconds.into());
        let session = Claims {
            account: IamArn::parse(&role.arn, "role")
                .map_or("", |arn| arn.account)
                .to_owned(),
            role: role.arn.clone(),
            role_id: role.role_id.clone(),
            session: session_name.to_owned(),
            instance: caller.instance.clone(),
            address: caller.address,
            delivery: Delivery::Sts,
            issued,
            expires: issued.saturating_add(duration).unwrap_or(issued),
        };
        let set = self
            .issuer
            .issue(&session)
            .map_err(|error| Refusal::Internal(error.to_string()))?;
        Ok((session, set))
    }
}

impl Refusal {
    /// The one place where a refusal becomes a status.
    fn status_and_code(&self) -> (u16, &'static str) {
        match self {
            Self::Signature(SignatureError::Missing) => (403, "MissingAuthenticationToken"),
            Self::Signature(SignatureError::Incomplete(_)) => (400, "IncompleteSignature"),
            Self::Signature(
                SignatureError::Mismatch | SignatureError::Scope(_) | SignatureError::Time(_),
            ) => (403, "SignatureDoesNotMatch"),
            Self::UnknownKey => (403, "InvalidClientTokenId"),
            Self::ExpiredToken => (403, "ExpiredToken"),
            Self::UnknownAction(_) => (400, "InvalidAction"),
            Self::Malformed(_) => (400, "MalformedQueryString"),
            Self::Invalid(_) => (400, "ValidationError"),
            Self::AccessDenied { .. } => (403, "AccessDenied"),
            Self::Internal(_) => (500, "InternalFailure"),
        }
    }
}

/// The parameters of the action: those of the query, and those of a form in the body.
fn parameters(received: &Received<'_>) -> Result<BTreeMap<String, String>, Refusal> {
    let in_query = Parameters::parse(received.query)?.into_own();
    let in_body = form_urlencoded::parse(received.body).into_owned();
    let mut parameters = BTreeMap::new();
    for (name, value) in in_query.chain(in_body) {
        if parameters.insert(name, value).is_some() {
            return Err(Refusal::Malformed("A parameter is there twice."));
        }
    }
    Ok(parameters)
}

fn required<'p>(parameters: &'p BTreeMap<String, String>, name: &str) -> Result<&'p str, Refusal> {
    parameters
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| {
            Refusal::Invalid(format!(
                "1 validation error detected: Value null at '{name}' failed to satisfy constraint: Member must not be null"
            ))
        })
}

/// IAM's rule for names of sessions.
fn is_session_name(name: &str) -> bool {
    (2..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte))
}

fn duration_seconds(parameters: &BTreeMap<String, String>, role: &Role) -> Result<u32, Refusal> {
    let Some(text) = parameters.get("DurationSeconds") else {
        return Ok(CHAINED_SECONDS_MAX.min(role.max_session_duration.unwrap_or(CHAINED_SECONDS_MAX)));
    };
    let asked = text
        .parse()
        .ok()
        .filter(|seconds| *seconds >= SESSION_SECONDS_MIN);
    let asked = asked.ok_or_else(|| {
        Refusal::Invalid(format!(
            "1 validation error detected: Value at 'durationSeconds' failed to satisfy constraint: Member must have value \
             greater than or equal to {SESSION_SECONDS_MIN}"
        ))
    })?;
    if asked > CHAINED_SECONDS_MAX {
        return Err(Refusal::Invalid(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
                .to_owned(),
        ));
    }
    if role.max_session_duration.is_some_and(|max| asked > max) {
        return Err(Refusal::Invalid(
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.".to_owned(),
        ));
    }
    Ok(asked)
}

#[cfg(test)]
mod tests;
