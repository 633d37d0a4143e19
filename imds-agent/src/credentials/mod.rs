//! Role credentials: fetched and refreshed ahead of time, read without waiting.

pub mod capsule;
pub mod deliveries;
pub mod health;
pub mod identity_role;
pub mod issuer;
pub mod issuer_keys;
pub mod process;
pub mod refresh;
pub mod schedule;
pub mod sources;
pub mod sts;
pub mod totals;
pub mod trust;

use std::{collections::HashMap, net::IpAddr, pin::Pin, sync::Arc};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use jiff::Timestamp;
use secrecy::SecretString;

pub use deliveries::{Asked, Deliveries};
pub use issuer::Issuer;
pub use issuer_keys::IssuerKeys;
pub use refresh::{Assumption, Refresher};
pub use sources::Sources;
pub use totals::Totals;

use crate::registry::{HttpTokens, InstanceId, Role, instance::Tag, role::SourceKind, snapshot::Member};

/// One set of temporary credentials of a role session.
#[derive(Debug)]
pub struct RoleCredentials {
    /// `ASIA...`; not a secret.
    pub access_key_id: String,
    /// The signing key.
    pub secret_access_key: SecretString,
    /// The session token, which goes out as `Token`.
    pub session_token: SecretString,
    /// When this set was fetched.
    pub last_updated: Timestamp,
    /// When it ends.
    pub expiration: Timestamp,
    /// The set for a guest that asks without a session token, where the source tells the two apart.
    pub without_token: Option<Box<RoleCredentials>>,
    /// Which ways it has gone to its guest.
    pub deliveries: Deliveries,
}

impl RoleCredentials {
    /// The set for a guest that asked so, if there is one.
    pub fn for_guest_that(&self, asked: Asked) -> Option<&Self> {
        let set = match asked {
            Asked::WithoutToken => self.without_token.as_deref().unwrap_or(self),
            Asked::WithToken => self,
        };
        set.deliveries.allow(asked).then_some(set)
    }
}

/// What an instance gets when it asks for its role's credentials.
#[derive(Debug)]
pub enum RoleState {
    /// A set that has not expired.
    Ready(RoleCredentials),
    /// The source refuses. The guest gets EC2's failure document.
    Refused(Refusal),
}

/// Why a source refuses, in EC2's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// `AssumeRoleUnauthorizedAccess` and its kin: `Code` of the failure document.
    pub code: &'static str,
    /// `Message` of the failure document.
    pub message: String,
    /// `LastUpdated` of the failure document.
    pub last_updated: Timestamp,
}

/// Where one role session's current state is published. Empty until the first fetch ends.
pub type RoleSlot = Arc<ArcSwapOption<RoleState>>;

/// Which role session a slot belongs to.
#[derive(Clone, Debug)]
pub struct RoleSession {
    /// The role at the time the slot was published: a role that is replaced, also by one of its name, gets a new slot.
    pub role: Arc<Role>,
    /// Its state.
    pub state: RoleSlot,
}

impl RoleSession {
    fn state(&self, now: Timestamp) -> Option<Arc<RoleState>> {
        let state = self.state.load_full()?;
        match &*state {
            RoleState::Ready(set) if set.expiration <= now => None,
            _ => Some(state),
        }
    }
}

/// The role sessions of this host's instances, read by the workers.
#[derive(Default, Debug)]
pub struct Published(ArcSwap<HashMap<InstanceId, RoleSession>>);

impl Published {
    /// The state of `instance`'s session of `role`: nothing while the first fetch is under way, nor when the source has
    /// been away for so long that the last set has expired.
    pub fn state(&self, instance: &InstanceId, role: &Role, now: Timestamp) -> Option<Arc<RoleState>> {
        let sessions = self.0.load();
        let is_its =
            |session: &&RoleSession| std::ptr::eq(&*session.role, role) || role.is_version_of(&session.role);
        sessions.get(instance).filter(is_its)?.state(now)
    }

    /// The same where an instance is in one role for ever.
    pub fn state_of_instance(&self, instance: &InstanceId, now: Timestamp) -> Option<Arc<RoleState>> {
        self.0.load().get(instance)?.state(now)
    }

    /// All of them.
    pub fn sessions(&self) -> Guard<Arc<HashMap<InstanceId, RoleSession>>> {
        self.0.load()
    }

    /// Replaces the set of sessions.
    pub fn publish(&self, sessions: HashMap<InstanceId, RoleSession>) {
        self.0.store(Arc::new(sessions));
    }
}

/// What a source is asked for.
#[derive(Clone, Debug)]
pub struct RoleSessionRequest {
    /// The role to assume.
    pub role: Arc<Role>,
    /// The instance, whose id becomes the session name.
    pub instance: InstanceId,
    /// The instance's private address, as far as its record says one.
    pub address: Option<IpAddr>,
    /// The instance's region, as far as its record says one.
    pub region: Option<String>,
    /// The instance's tags.
    pub tags: Vec<Tag>,
    /// Whether the set may also go to a guest that asks without a session token.
    pub http_tokens: HttpTokens,
    /// When the set is asked for.
    pub now: Timestamp,
    /// How long the set should live, where the source can be told.
    pub duration_seconds: u32,
}

/// Why a source gave no credentials.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The source said no: asking again soon will not help.
    #[error("the role is refused: {why}")]
    Refused {
        /// `Code` of the failure document.
        code: &'static str,
        /// `Message` of the failure document: a guest reads it, so it tells nothing of the host.
        message: String,
        /// What operators are told.
        why: String,
    },
    /// The source could not be asked, or its answer could not be read. Never carries what a source printed.
    #[error("the source failed: {0}")]
    Unavailable(String),
}

impl RoleSessionRequest {
    /// Asks for a session of `role` for the instance that `member` is.
    pub fn new(role: Arc<Role>, member: &Member, now: Timestamp, duration_seconds: u32) -> Self {
        let instance = &member.instance;
        let v4 = || {
            let interface = instance.network_interfaces.first()?;
            interface.private_ip_address
        };
        Self {
            role,
            instance: instance.instance_id.clone(),
            address: instance
                .private_ip_address
                .or_else(v4)
                .map(IpAddr::V4)
                .or_else(|| instance.ipv6_address.map(IpAddr::V6)),
            region: instance.placement.region().map(str::to_owned),
            tags: instance.tags.to_vec(),
            http_tokens: member.options.http_tokens,
            now,
            duration_seconds,
        }
    }

    /// The role alone, for the instance `i-1`.
    #[cfg(test)]
    fn of(role: &str) -> Self {
        Self {
            role: Arc::new(serde_json::from_str(role).unwrap()),
            instance: "i-1".parse().unwrap(),
            address: None,
            region: None,
            tags: Vec::new(),
            http_tokens: HttpTokens::Optional,
            now: "2026-11-21T08:00:00Z".parse().unwrap(),
            duration_seconds: 3600,
        }
    }
}

impl FetchError {
    /// EC2's words for every role that it may not assume, as seen on instances. The two spaces are EC2's.
    fn unauthorized(role: &Role, why: impl Into<String>) -> Self {
        Self::Refused {
            code: "AssumeRoleUnauthorizedAccess",
            message: format!(
                "EC2 cannot assume the role {}.  Please see documentation at \
                 https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html#troubleshoot_iam-ec2_errors-info-doc.",
                role.role_name
            ),
            why: why.into(),
        }
    }
}

/// A fetch under way.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<RoleCredentials, FetchError>> + Send + 'a>>;

/// Somebody who hands out role credentials.
pub trait Source: Send + Sync {
    /// Asks for a new set.
    fn fetch<'a>(&'a self, request: &'a RoleSessionRequest) -> Fetch<'a>;

    /// What stands behind it for `role`.
    fn kind(&self, role: &Role) -> SourceKind;
}

/// As EC2 writes times: botocore reads no fractions.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
