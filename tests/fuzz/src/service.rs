//! The service as a worker has it, for one instance of the golden files.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use imds_agent::{
    credentials::{Deliveries, RoleCredentials, RoleState},
    http::{Connection, Request, Response, Service, Status},
    imds::{Caller, Imds, TokenKey, TokenKeys, identity},
    now::Now,
    registry::{HttpTokens, Instance, InstanceProfile, Role, snapshot::Member},
};
use rand::{SeedableRng as _, rngs::StdRng};
use secrecy::SecretString;

/// All that an instance can have.
pub const FULL: &str = include_str!("../../golden/instances/full.json");

/// What every request happens at: the second in which the golden exchanges begin.
pub fn now() -> Now {
    Now {
        monotonic: Duration::from_secs(1000),
        unix: Duration::from_secs(1_632_174_211),
    }
}

/// One instance that may ask.
#[derive(Debug)]
pub struct World {
    /// With its options, role and profile.
    pub member: Member,
    role_state: Arc<RoleState>,
    identities: identity::Published,
}

impl World {
    /// `member`, with credentials in its role.
    pub fn of(member: Member) -> Self {
        Self {
            member,
            role_state: Arc::new(RoleState::Ready(credentials())),
            identities: identity::Published::default(),
        }
    }

    /// The one that has everything. It may ask without a token as well as with one.
    pub fn full() -> &'static Self {
        static FULL_WORLD: LazyLock<World> = LazyLock::new(|| {
            let mut file: serde_json::Value = serde_json::from_str(FULL).expect("a golden file");
            let instance: Instance = serde_json::from_value(file["Instance"].take()).expect("an instance");
            let profile: InstanceProfile =
                serde_json::from_value(file["InstanceProfile"].take()).expect("an instance profile");
            let role: Role = serde_json::from_value(file["Role"].take()).expect("a role");
            let mut options = instance
                .metadata_options
                .or(imds_agent::registry::MetadataOptions::default());
            options.http_tokens = HttpTokens::Optional;
            World::of(Member {
                options,
                instance,
                instance_profile: Some(Arc::new(profile)),
                role: Some(Arc::new(role)),
                last_modified: jiff::Timestamp::UNIX_EPOCH,
            })
        });
        &FULL_WORLD
    }

    /// Who asks, through the first interface if there is one.
    pub fn caller(&self) -> Option<Caller<'_>> {
        Some(Caller {
            member: &self.member,
            interface: self.member.instance.network_interfaces.first()?,
            role_state: Some(&self.role_state),
            identity_state: Some(&self.role_state),
            identities: &self.identities,
        })
    }
}

fn credentials() -> RoleCredentials {
    RoleCredentials {
        access_key_id: "ASIAFUZZ".to_owned(),
        secret_access_key: SecretString::from("secret"),
        session_token: SecretString::from("token"),
        without_token: None,
        deliveries: Deliveries::default(),
        last_updated: "2021-09-20T21:42:00Z".parse().expect("a time"),
        expiration: "2021-09-21T03:42:00Z".parse().expect("a time"),
    }
}

/// Answers for one world. Two of them answer alike.
#[derive(Debug)]
pub struct Answer<'w> {
    imds: Imds,
    world: &'w World,
    /// The statuses of all answers.
    pub statuses: Vec<Status>,
}

impl<'w> Answer<'w> {
    /// For requests of `world`'s instance.
    pub fn new(world: &'w World) -> Self {
        let keys = TokenKeys::new(TokenKey::new([0, 0, 1], [0x5a; 32]), vec![]);
        Self {
            imds: Imds::new(Arc::new(keys), StdRng::seed_from_u64(7)),
            world,
            statuses: Vec::new(),
        }
    }
}

impl Service for Answer<'_> {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        let caller = self.world.caller();
        let outcome = self.imds.respond(now, caller.as_ref(), request, response);
        assert_eq!(outcome.status, response.status);
        assert_eq!(
            outcome.refusal.is_some(),
            response.status != Status::Ok,
            "{:?}",
            outcome.refusal
        );
        self.statuses.push(outcome.status);
    }
}

/// Runs of bytes with the hop limit that each leaves with.
pub type Runs = Vec<(Option<u8>, Vec<u8>)>;

/// Takes all that `connection` has to send.
pub fn drain(connection: &mut Connection, answer: &mut Answer<'_>, runs: &mut Runs) {
    while let Some(transmit) = connection.poll_transmit() {
        assert!(!transmit.bytes.is_empty());
        match runs.last_mut() {
            Some((hop_limit, bytes)) if *hop_limit == transmit.hop_limit => bytes.extend(transmit.bytes),
            _ => runs.push((transmit.hop_limit, transmit.bytes.to_vec())),
        }
        let count = transmit.bytes.len();
        connection.handle_transmitted(now(), count, answer);
    }
}

/// The session token of the instance that has everything.
pub fn token() -> &'static str {
    static TOKEN: LazyLock<String> = LazyLock::new(|| {
        let mut answer = Answer::new(World::full());
        let mut connection = Connection::new(now());
        connection.handle_bytes(
            now(),
            b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n",
            &mut answer,
        );
        let mut runs = Vec::new();
        drain(&mut connection, &mut answer, &mut runs);
        let response = String::from_utf8(runs.remove(0).1).expect("text");
        let (_, token) = response.split_once("\r\n\r\n").expect("a whole response");
        token.to_owned()
    });
    &TOKEN
}
