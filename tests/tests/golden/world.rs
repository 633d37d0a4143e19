//! One instance, a clock that is set by hand, and connections to the service.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use imds_agent::{
    credentials::{Deliveries, Refusal, RoleCredentials, RoleState},
    http::{Connection, Request, Response, Service},
    imds::{
        self, Caller, Imds, Outcome, TokenKey, TokenKeys,
        identity::{self, Algorithm, IdentityKey, IdentityKeys, Signatures, published::Slot},
    },
    now::Now,
    registry::{Instance, InstanceProfile, Role, instance::MetadataOptions, snapshot::Member},
};
use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use secrecy::SecretString;
use serde::Deserialize;

/// When every exchange begins: the second of the capture in smithy-rs, Mon, 20 Sep 2021 21:43:31 GMT.
pub const BEGIN: Duration = Duration::from_secs(1_632_174_211);

/// What a file of `golden/instances` says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct File {
    last_modified: Timestamp,
    instance: Instance,
    instance_profile: Option<InstanceProfile>,
    role: Option<Role>,
    credentials: Option<Credentials>,
    refusal: Option<Refused>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    token: String,
    last_updated: Timestamp,
    expiration: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Refused {
    message: String,
    last_updated: Timestamp,
}

/// One instance and what is known of its role session.
pub struct World {
    pub member: Member,
    pub role_state: Option<Arc<RoleState>>,
    pub identity_state: Option<Arc<RoleState>>,
}

impl World {
    pub fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file: File =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let identity = RoleCredentials {
            access_key_id: "ASIAIDENTITY".to_owned(),
            secret_access_key: SecretString::from("identitysecret"),
            session_token: SecretString::from("identitytoken"),
            without_token: None,
            deliveries: Deliveries::default(),
            last_updated: "2021-09-20T21:42:00Z".parse().expect("a time"),
            expiration: "2021-09-21T03:42:00Z".parse().expect("a time"),
        };
        let ready = file.credentials.map(|credentials| {
            RoleState::Ready(RoleCredentials {
                access_key_id: credentials.access_key_id,
                secret_access_key: SecretString::from(credentials.secret_access_key),
                session_token: SecretString::from(credentials.token),
                without_token: None,
                deliveries: Deliveries::default(),
                last_updated: credentials.last_updated,
                expiration: credentials.expiration,
            })
        });
        let refused = file.refusal.map(|refused| {
            RoleState::Refused(Refusal {
                code: "AssumeRoleUnauthorizedAccess",
                message: refused.message,
                last_updated: refused.last_updated,
            })
        });
        Self {
            member: Member {
                options: file.instance.metadata_options.or(MetadataOptions::default()),
                instance: file.instance,
                instance_profile: file.instance_profile.map(Arc::new),
                role: file.role.map(Arc::new),
                last_modified: file.last_modified,
            },
            role_state: ready.or(refused).map(Arc::new),
            identity_state: Some(Arc::new(RoleState::Ready(identity))),
        }
    }

    pub fn named(name: &str) -> Self {
        Self::read(&super::golden("instances").join(format!("{name}.json")))
    }
}

/// Time since the exchange began.
pub fn now(since_begin: Duration) -> Now {
    Now {
        monotonic: Duration::from_secs(1_000) + since_begin,
        unix: BEGIN + since_begin,
    }
}

/// The service as a worker has it, for the caller that is set.
pub struct Server {
    imds: Imds,
    identities: identity::Published,
    caller: Option<(World, usize)>,
    /// The interface asks more often than it may.
    pub is_over_rate: bool,
    pub outcomes: Vec<Outcome>,
}

impl Server {
    pub fn new() -> Self {
        let keys = TokenKeys::new(TokenKey::new([0, 0, 1], [0x5a; 32]), vec![]);
        Self {
            imds: Imds::new(Arc::new(keys), StdRng::seed_from_u64(7)),
            identities: identity::Published::default(),
            caller: None,
            is_over_rate: false,
            outcomes: Vec::new(),
        }
    }

    /// Nobody that the registry knows asks from now on.
    pub fn unset_caller(&mut self) {
        self.caller = None;
    }

    /// Lets `interface` of `world` ask from now on. Its identity document is signed.
    pub fn set_caller(&mut self, world: World, interface: usize) {
        let instance = world.member.instance.instance_id.clone();
        self.identities
            .publish([(instance, signed(&world.member))].into_iter().collect());
        self.caller = Some((world, interface));
    }

    /// What comes back for `request` on a connection of its own.
    pub fn exchange(&mut self, now: Now, request: &[u8]) -> Vec<u8> {
        let mut connection = Connection::new(now);
        connection.handle_bytes(now, request, self);
        let mut bytes = Vec::new();
        while let Some(transmit) = connection.poll_transmit() {
            let count = transmit.bytes.len();
            bytes.extend_from_slice(transmit.bytes);
            connection.handle_transmitted(now, count, self);
        }
        bytes
    }

    /// A token that the service mints for the caller.
    pub fn mint(&mut self, now: Now, ttl_seconds: u32) -> String {
        let request = format!(
            "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: {ttl_seconds}\r\n\r\n"
        );
        let response = String::from_utf8(self.exchange(now, request.as_bytes())).expect("text");
        self.outcomes.clear();
        let (_, token) = response.split_once("\r\n\r\n").expect("a whole response");
        token.to_owned()
    }
}

impl Service for Server {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        let caller = self.caller.as_ref().map(|(world, interface)| Caller {
            member: &world.member,
            interface: &world.member.instance.network_interfaces[*interface],
            role_state: world.role_state.as_ref(),
            identity_state: world.identity_state.as_ref(),
            identities: &self.identities,
        });
        let outcome = if self.is_over_rate {
            imds::turn_away(caller.map(|caller| caller.member), request, response)
        } else {
            self.imds.respond(now, caller.as_ref(), request, response)
        };
        assert_eq!(outcome.status, response.status);
        self.outcomes.push(outcome);
    }
}

/// The signed document of `member`, signed once for all servers: that takes a while without optimization.
fn signed(member: &Member) -> Arc<Slot> {
    static SIGNED: Mutex<BTreeMap<Vec<u8>, Arc<Slot>>> = Mutex::new(BTreeMap::new());
    static KEYS: LazyLock<IdentityKeys> = LazyLock::new(identity_keys);
    let document = identity::document(member);
    let mut signed = SIGNED.lock().expect("nobody panics with the lock");
    let slot = signed.entry(document).or_insert_with_key(|document| {
        let slot = Slot::default();
        let signed = Signatures::new(&KEYS, document).and_then(|signed| signed.with_dsa2048(&KEYS));
        slot.fill(signed.expect("a document can be signed"));
        Arc::new(slot)
    });
    Arc::clone(slot)
}

/// Keys for tests alone, so that signatures are the same in every run.
fn identity_keys() -> IdentityKeys {
    let read = |name: &str| {
        let path = super::golden("identity").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let key = |algorithm, key, certificate| {
        IdentityKey::from_pem(algorithm, &read(key), &read(certificate)).expect("the golden key is good")
    };
    IdentityKeys {
        rsa: key(Algorithm::Rsa, "key.pem", "certificate.pem"),
        dsa: key(Algorithm::Dsa, "dsa-key.pem", "dsa-certificate.pem"),
    }
}
