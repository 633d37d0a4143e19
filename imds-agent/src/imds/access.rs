//! Who may ask: method, `X-Forwarded-For`, endpoint, token.
//!
//! The order of refusals is the wire contract's (section 0): method → `X-Forwarded-For` → endpoint → token → path. An
//! unknown caller is refused where its options would be needed first. What is over the rate is refused before any of it
//! is looked at, and what is malformed never comes here.

use std::time::Duration;

use super::{
    Caller,
    path::Path,
    token::{Bearer, TTL_SECONDS_MAX, TokenError, TokenKeys},
};
use crate::{
    http::{ContentType, Request, Response, Status},
    registry::{HttpEndpoint, HttpTokens},
};

/// Why a request is not answered with what it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Refusal {
    /// The path is there for other methods.
    #[error("the path does not take this method")]
    MethodNotAllowed(Allow),
    /// A PUT of something that is nearly the token's path: another version, or a slash at the end.
    #[error("session tokens are had at /latest/api/token only")]
    TokenPath,
    /// A proxy stands between guest software and the service.
    #[error("the request was forwarded")]
    Forwarded,
    /// The tap is known, its instance is not (yet).
    #[error("the instance is unknown")]
    UnknownCaller,
    /// `HttpEndpoint` is `disabled`.
    #[error("the endpoint is disabled")]
    EndpointDisabled,
    /// A token is asked for without saying how long it shall live.
    #[error("the session token's life is not said")]
    TtlMissing,
    /// It is not said in whole seconds from 1 to 21600.
    #[error("the session token's life is not 1 to 21600 seconds")]
    TtlInvalid,
    /// `HttpTokens` is `required` and there is none.
    #[error("a session token is required")]
    TokenMissing,
    /// There is one, but it is worth nothing.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nothing is there for this instance in this version.
    #[error("there is no such category")]
    NotFound,
    /// It will be there in a moment: role credentials of which the first fetch is under way, a signature in the making.
    #[error("what is asked for is still being made")]
    Pending,
    /// The interface asks more often than it may.
    #[error("too many requests in a second")]
    OverRate,
}

/// The methods that a path takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Allow {
    /// Metadata.
    GetHead,
    /// The token's path.
    OptionsPut,
}

impl Allow {
    /// As in the `Allow` header.
    pub fn methods(self) -> &'static str {
        match self {
            Self::GetHead => "GET, HEAD",
            Self::OptionsPut => "OPTIONS, PUT",
        }
    }
}

/// How long a client should wait before it asks again for what is not there yet, or after too many requests: no rate is so low
/// that none is answered by then.
const RETRY_AFTER_SECONDS: u32 = 1;

/// The one place where a refusal becomes a response. What `response` already says of a token and a hop limit stays.
pub(super) fn refuse(refusal: Refusal, response: &mut Response) {
    response.last_modified = None;
    let status = match refusal {
        Refusal::TtlMissing | Refusal::TtlInvalid => Status::BadRequest,
        Refusal::TokenMissing | Refusal::Token(_) => Status::Unauthorized,
        Refusal::TokenPath | Refusal::Forwarded | Refusal::EndpointDisabled => Status::Forbidden,
        Refusal::NotFound => Status::NotFound,
        Refusal::MethodNotAllowed(allow) => {
            response.allow = Some(allow.methods());
            Status::MethodNotAllowed
        }
        Refusal::UnknownCaller | Refusal::Pending | Refusal::OverRate => {
            response.retry_after_seconds = Some(RETRY_AFTER_SECONDS);
            // What is pipelined behind it would only be refused, too, at the worker's cost.
            response.ends_connection = refusal == Refusal::OverRate;
            Status::ServiceUnavailable
        }
    };
    match status {
        Status::BadRequest | Status::NotFound => response.fill_error_page(status),
        _ => {
            response.status = status;
            response.content_type = ContentType::TextPlain;
            response.body.clear();
        }
    }
}

/// What a request wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operation {
    /// A PUT of the token's path.
    Mint,
    /// An OPTIONS of the token's path.
    DescribeMint,
    /// A GET or HEAD of anything else.
    Read,
}

/// What `request` wants done, if its path takes its method.
pub(super) fn operation(request: &Request<'_>) -> Result<Operation, Refusal> {
    match (request.method, TokenPath::of(request.target)) {
        ("PUT", TokenPath::Exact) => Ok(Operation::Mint),
        ("PUT", TokenPath::Near) => Err(Refusal::TokenPath),
        ("OPTIONS", TokenPath::Exact) => Ok(Operation::DescribeMint),
        (_, TokenPath::Exact) => Err(Refusal::MethodNotAllowed(Allow::OptionsPut)),
        ("GET" | "HEAD", _) => Ok(Operation::Read),
        _ => Err(Refusal::MethodNotAllowed(Allow::GetHead)),
    }
}

/// How much a path is the token's.
enum TokenPath {
    Exact,
    Near,
    Other,
}

impl TokenPath {
    fn of(target: &str) -> Self {
        let Some(path) = Path::of(target) else {
            return Self::Other;
        };
        let mut segments = path.segments();
        let first_four = (segments.next(), segments.next(), segments.next(), segments.next());
        match first_four {
            (Some("latest"), Some("api"), Some("token"), None) if !path.ends_in_slash() => Self::Exact,
            (Some(_), Some("api"), Some("token"), None) => Self::Near,
            _ => Self::Other,
        }
    }
}

/// The session token that a request offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Offer<'a> {
    /// None, or an empty one, which some clients send when they have none.
    Nothing,
    /// One.
    Token(&'a [u8]),
    /// Several: whichever is meant, it is not said.
    Several,
}

impl<'a> Offer<'a> {
    pub(super) fn of(request: &Request<'a>) -> Self {
        let mut tokens = request
            .headers("x-aws-ec2-metadata-token")
            .filter(|token| !token.is_empty());
        match (tokens.next(), tokens.next()) {
            (None, _) => Self::Nothing,
            (Some(token), None) => Self::Token(token),
            (Some(_), Some(_)) => Self::Several,
        }
    }
}

/// Whether a proxy has put its mark on `request`, whatever it says.
pub(super) fn is_forwarded(request: &Request<'_>) -> bool {
    request.headers("x-forwarded-for").next().is_some()
}

/// The caller, if `operation` may come from it through whatever lies between.
pub(super) fn admit<'a, 'b>(
    operation: Operation,
    is_forwarded: bool,
    offer: Offer<'_>,
    caller: Option<&'a Caller<'b>>,
) -> Result<&'a Caller<'b>, Refusal> {
    // An IMDSv1 request is served through a proxy, as on EC2: that is what IMDSv2 is there to prevent.
    let is_v2 = operation != Operation::Read || offer != Offer::Nothing;
    if is_forwarded && is_v2 {
        return Err(Refusal::Forwarded);
    }
    let caller = caller.ok_or(Refusal::UnknownCaller)?;
    match caller.member.options.http_endpoint {
        HttpEndpoint::Enabled => Ok(caller),
        HttpEndpoint::Disabled => Err(Refusal::EndpointDisabled),
    }
}

/// The seconds that the offered token has left, or nothing for an IMDSv1 request, if the caller may read.
pub(super) fn authorize(
    now: Duration,
    keys: &TokenKeys,
    offer: Offer<'_>,
    caller: &Caller<'_>,
) -> Result<Option<u32>, Refusal> {
    match (offer, caller.member.options.http_tokens) {
        (Offer::Nothing, HttpTokens::Optional) => Ok(None),
        (Offer::Nothing, HttpTokens::Required) => Err(Refusal::TokenMissing),
        (Offer::Several, _) => Err(Refusal::Token(TokenError::Malformed)),
        (Offer::Token(token), _) => Ok(Some(keys.verify(now, token, bearer(caller))?)),
    }
}

/// Whom a token of `caller` is for.
pub(super) fn bearer<'a>(caller: &Caller<'a>) -> Bearer<'a> {
    Bearer {
        instance: &caller.member.instance.instance_id,
        mac: caller.interface.mac_address,
    }
}

/// How long the asked-for token shall live: one header of decimal digits and nothing else, 1 to 21600. White space
/// around a field value is no part of the value (RFC 9110, section 5.5), so it cannot make one invalid.
pub(super) fn asked_ttl_seconds(request: &Request<'_>) -> Result<u32, Refusal> {
    let mut values = request.headers("x-aws-ec2-metadata-token-ttl-seconds");
    let value = values.next().ok_or(Refusal::TtlMissing)?;
    if values.next().is_some() || value.len() > 5 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::TtlInvalid);
    }
    let seconds = str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
    seconds
        .filter(|seconds| (1..=TTL_SECONDS_MAX).contains(seconds))
        .ok_or(Refusal::TtlInvalid)
}
