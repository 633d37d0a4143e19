//! What a request means: access, session token, path, answer.
//!
//! Read first: the EC2 user guide, "Use instance metadata", and the project's wire contract in `docs/`.
//! The order of refusals is the contract's: rate, method, `X-Forwarded-For`, endpoint, token, path.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod access;
pub mod documents;
pub mod identity;
pub mod path;
pub mod token;
pub mod tree;

use std::{fmt, sync::Arc};

use rand::{Rng as _, rngs::StdRng};

pub use access::{Allow, Refusal};
pub use token::{TokenError, TokenKey, TokenKeys};

use crate::{
    credentials::{Asked, RoleState},
    http::{Request, Response, Status},
    now::Now,
    registry::{NetworkInterface, snapshot::Member},
};
use access::{Offer, Operation};
use path::Path;
use tree::{Answer, View};

/// Who is asking, as the tap tells it.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The instance.
    pub member: &'a Member,
    /// The interface that the request came through.
    pub interface: &'a NetworkInterface,
    /// The state of the instance's role session; nothing while the first fetch is under way.
    pub role_state: Option<&'a Arc<RoleState>>,
    /// The state of its session of the instance identity role; nothing while the first fetch is under way.
    pub identity_state: Option<&'a Arc<RoleState>>,
    /// The signed identity documents.
    pub identities: &'a identity::Published,
}

/// Whether there is `iam/security-credentials-extended/`, which some SDKs ask for first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum ExtendedCredentials {
    /// It is there.
    #[default]
    Enabled,
    /// It is not, and whoever asks for it goes on to the documented path.
    Disabled,
}

/// What became of one request: for counters and the audit trail, which are somebody else's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// How the guest asked.
    pub version: ImdsVersion,
    /// The status of the response.
    pub status: Status,
    /// Why it was refused, if it was.
    pub refusal: Option<Refusal>,
    /// What was handed out.
    pub delivery: Delivery,
    /// Whether the request carries `X-Forwarded-For`.
    pub is_forwarded: bool,
}

/// The two ways to ask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ImdsVersion {
    /// Without a session token.
    V1,
    /// For or with a session token, whatever it is worth.
    V2,
}

/// What is worth an entry in an audit trail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Delivery {
    /// Nothing, because the request was refused or asked for no content.
    Nothing,
    /// Metadata.
    Metadata,
    /// A session token.
    SessionToken,
    /// Role credentials.
    RoleCredentials,
    /// Credentials of the instance identity role.
    IdentityCredentials,
}

/// The meaning of requests. One per worker.
pub struct Imds {
    keys: Arc<TokenKeys>,
    nonces: StdRng,
    extended_credentials: ExtendedCredentials,
}

impl fmt::Debug for Imds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imds")
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

/// Fills `response` for an interface, `member`'s if it is anybody's, that asks more often than it may.
pub fn turn_away(member: Option<&Member>, request: &Request<'_>, response: &mut Response) -> Outcome {
    let operation = access::operation(request);
    if operation == Ok(Operation::Mint) {
        response.hop_limit = member.map(|member| member.options.http_put_response_hop_limit);
    }
    let refusal = Refusal::OverRate;
    access::refuse(refusal, response);
    Outcome {
        version: version(operation, Offer::of(request)),
        status: response.status,
        refusal: Some(refusal),
        delivery: Delivery::Nothing,
        is_forwarded: access::is_forwarded(request),
    }
}

fn version(operation: Result<Operation, Refusal>, offer: Offer<'_>) -> ImdsVersion {
    let asks_for_token = matches!(operation, Ok(Operation::Mint) | Err(Refusal::TokenPath));
    if asks_for_token || offer != Offer::Nothing {
        ImdsVersion::V2
    } else {
        ImdsVersion::V1
    }
}

impl Imds {
    /// Session tokens are minted with `keys` and with nonces from `nonces`.
    pub fn new(keys: Arc<TokenKeys>, nonces: StdRng) -> Self {
        Self {
            keys,
            nonces,
            extended_credentials: ExtendedCredentials::default(),
        }
    }

    /// The same, with or without `iam/security-credentials-extended/`.
    pub fn with_extended_credentials(self, extended_credentials: ExtendedCredentials) -> Self {
        Self {
            extended_credentials,
            ..self
        }
    }

    /// Fills `response` for `caller`, or for a caller that the registry does not know (yet).
    pub fn respond(
        &mut self,
        now: Now,
        caller: Option<&Caller<'_>>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Outcome {
        let offer = Offer::of(request);
        let is_forwarded = access::is_forwarded(request);
        let operation = access::operation(request);
        let result = operation.and_then(|operation| {
            if let (Operation::Mint, Some(caller)) = (operation, caller) {
                // It holds for whatever the response is: one that tells more than another is of no use to who is too far.
                response.hop_limit = Some(caller.member.options.http_put_response_hop_limit);
            }
            let caller = access::admit(operation, is_forwarded, offer, caller)?;
            match operation {
                Operation::Mint => self.mint(now, caller, request, response),
                Operation::DescribeMint => {
                    response.allow = Some(Allow::OptionsPut.methods());
                    Ok(Delivery::Nothing)
                }
                Operation::Read => self.read(now, caller, offer, request, response),
            }
        });
        if let Err(refusal) = result {
            access::refuse(refusal, response);
        }
        Outcome {
            version: version(operation, offer),
            status: response.status,
            refusal: result.err(),
            delivery: result.unwrap_or(Delivery::Nothing),
            is_forwarded,
        }
    }

    fn mint(
        &mut self,
        now: Now,
        caller: &Caller<'_>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Result<Delivery, Refusal> {
        let ttl_seconds = access::asked_ttl_seconds(request)?;
        let mut nonce = [0; 12];
        self.nonces.fill_bytes(&mut nonce);
        let token = self
            .keys
            .mint(now.unix, ttl_seconds, access::bearer(caller), nonce)?;
        caller.identities.shows_life(&caller.member.instance.instance_id);
        response.token_ttl_seconds = Some(ttl_seconds);
        response.body.extend_from_slice(&token);
        Ok(Delivery::SessionToken)
    }

    fn read(
        &self,
        now: Now,
        caller: &Caller<'_>,
        offer: Offer<'_>,
        request: &Request<'_>,
        response: &mut Response,
    ) -> Result<Delivery, Refusal> {
        response.token_ttl_seconds = access::authorize(now.unix, &self.keys, offer, caller)?;
        let path = Path::of(request.target).ok_or(Refusal::NotFound)?;
        let asked = match offer {
            Offer::Nothing => {
                caller.identities.shows_life(&caller.member.instance.instance_id);
                Asked::WithoutToken
            }
            _ => Asked::WithToken,
        };
        let view = View::new(now, caller).asked(asked, self.extended_credentials);
        match tree::answer(&view, path, &mut response.body) {
            Answer::Absent => Err(Refusal::NotFound),
            Answer::Pending => Err(Refusal::Pending),
            Answer::Found(found) => {
                let last_modified = found.last_modified.unwrap_or(caller.member.last_modified);
                response.content_type = found.content_type;
                response.last_modified = Some(tree::since_epoch(last_modified));
                Ok(match request.method {
                    "HEAD" => Delivery::Nothing,
                    _ => found.delivery,
                })
            }
        }
    }
}
