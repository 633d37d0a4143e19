//! T1: a worker allocates nothing for an exchange, from the frame in its ring to the frame on the tap: connection, session
//! token, answer and all that is counted of it.
//!
//! Every allocation of the process is counted, in whatever thread, the guest's included. So this is a process of its own
//! with one test, and what is compared is what few exchanges and many of them allocate.
//!
//! Two things are left out on purpose. What is kept for operators of a request without a session token goes to another
//! thread, which is a few allocations ([`imds_agent::observe::Guests`] only counts here). And buffers that a response of more than four
//! kilobytes has grown are not kept for the next connection, so that those are allocated anew.

use std::{
    alloc::System,
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use imds_agent::{
    credentials::{Deliveries, RoleCredentials, RoleSession, RoleState, identity_role::identity_role},
    datapath::{Classifier, Injector},
    imds::{Imds, TokenKey, TokenKeys},
    registry::{Instance, InstanceId, InstanceProfile, MetadataOptions, Role, Snapshot, snapshot::Member},
    worker::{Command, Facts, Handle, Worker},
};
use imds_ebpf::abi::{IMDS_MAC, TapBinding};
use imds_tests::{
    host::{ADDRESS, INSTANCE_ID},
    kernel::in_namespaces,
    load::{self, Load},
    records,
    tap::Tap,
};
use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};
use secrecy::SecretString;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// More than a worker remembers of connections that have ended.
const WARM_UP: usize = 300;

const FEW: usize = 100;
const MANY: usize = 600;

const ATTEMPTS_MAX: usize = 5;

#[test]
fn nothing_is_allocated_for_an_exchange() -> Result<()> {
    in_namespaces(|bpffs| {
        let tap = Tap::new("guest")?;
        let mut classifier = Classifier::load(&bpffs.join("imds"))?;
        classifier.attach(tap.index())?;
        classifier.bind(
            tap.index(),
            TapBinding::to(records::guest_mac(2)).with_packets_per_second(0),
        )?;
        let worker = work(&mut classifier, &tap)?;

        let put = "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n";
        let response = load::run(&tap, &load_of(put, 1))?.response;
        let response = String::from_utf8(response)?;
        let (_, token) = response.split_once("\r\n\r\n").context("no whole response")?;
        let get = |path: &str| {
            format!(
                "GET /latest/{path} HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: test\r\n\
                 X-aws-ec2-metadata-token: {token}\r\n\r\n"
            )
        };
        let role = format!("meta-data/iam/security-credentials/{}", records::ROLE);
        let identity = "meta-data/identity-credentials/ec2/security-credentials/ec2-instance";
        for (status, request) in [
            (200, put.to_owned()),
            (200, get("meta-data/instance-id")),
            (200, get("meta-data/")),
            (200, get("user-data")),
            (200, get("dynamic/instance-identity/document")),
            (200, get(&role)),
            (200, get(identity)),
            (404, get("nothing")),
            (401, "GET /latest/meta-data/ HTTP/1.1\r\n\r\n".to_owned()),
            (400, "GET\r\n\r\n".to_owned()),
        ] {
            let response = load::run(&tap, &load_of(&request, 1))?.response;
            let response = String::from_utf8_lossy(&response);
            ensure!(
                response.starts_with(&format!("HTTP/1.1 {status} ")),
                "not {status}: {response}"
            );
            for in_flight in [1, 16] {
                expect_none(&tap, &load_of(&request, in_flight))?;
            }
        }
        let kept = get("meta-data/instance-id").replace("\r\n\r\n", "\r\nConnection: keep-alive\r\n\r\n");
        let once = Load {
            kept_alive: Some(1),
            exchanges_max: 1,
            ..load_of(&kept, 1)
        };
        let kept = Load {
            kept_alive: Some(load::run(&tap, &once)?.response.len()),
            ..load_of(&kept, 16)
        };
        expect_none(&tap, &kept)?;
        worker.stop();
        Ok(())
    })?;
    Ok(())
}

/// Many exchanges allocate what few do, which is what a guest needs that begins.
fn expect_none(tap: &Tap, load: &Load) -> Result<()> {
    let request = load
        .requests
        .first()
        .map(|request| String::from_utf8_lossy(request));
    let mut last = None;
    // A worker that is kept from working for longer than the guest waits loses an exchange, and with it its place; and what comes
    // together in the largest batch yet makes a vector grow, once.
    for _ in 0..ATTEMPTS_MAX {
        let [_, few, many] = [WARM_UP, FEW, MANY].map(|exchanges| allocations(tap, load, exchanges));
        let counted = few?.zip(many?);
        if counted.is_some_and(|(few, many)| few == many) {
            return Ok(());
        }
        last = counted.or(last);
    }
    let (few, many) = last.with_context(|| format!("exchanges of {request:?} are lost again and again"))?;
    bail!(
        "{FEW} exchanges of {request:?} with {} in flight allocate {few} times, {MANY} {many} times",
        load.in_flight
    )
}

/// How often so many exchanges allocate; nothing if one was lost.
fn allocations(tap: &Tap, load: &Load, exchanges_max: usize) -> Result<Option<usize>> {
    let load = Load {
        exchanges_max,
        ..load.clone()
    };
    let region = Region::new(ALLOCATOR);
    let outcome = load::run(tap, &load)?;
    let change = region.change();
    Ok((outcome.exchanges == exchanges_max).then_some(change.allocations + change.reallocations))
}

/// A worker that serves `tap` alone, with all that it may be asked for.
fn work(classifier: &mut Classifier, tap: &Tap) -> Result<Handle> {
    let instance: InstanceId = INSTANCE_ID.parse()?;
    let record = records::instance(INSTANCE_ID, records::guest_mac(2), "guest", ADDRESS);
    let role: Role = serde_json::from_value(records::role())?;
    let profile: InstanceProfile = serde_json::from_value(records::instance_profile())?;
    let (role, profile) = (Arc::new(role), Arc::new(profile));
    let own: Instance = serde_json::from_value(record)?;
    let member = Member {
        options: own.metadata_options.or(MetadataOptions::default()),
        instance: own,
        instance_profile: Some(profile),
        role: Some(Arc::clone(&role)),
        last_modified: Timestamp::UNIX_EPOCH,
    };
    let identity_role = Arc::new(identity_role(&member.instance));
    let mut snapshot = Snapshot::default();
    snapshot.add(&Arc::new(member));
    let facts = Facts {
        // As many as come, but counted.
        requests_per_second: u32::MAX,
        ..Facts::default()
    };
    facts.registry.publish(snapshot);
    facts.credentials.publish(sessions(&instance, role));
    facts
        .identity_credentials
        .publish(sessions(&instance, identity_role));
    let keys = TokenKeys::new(TokenKey::new([1, 2, 3], [7; 32]), Vec::new());
    let worker = Worker {
        started: Instant::now(),
        ring: classifier.rings().pop().context("no ring")?,
        injector: Injector::new()?,
        imds: Imds::new(Arc::new(keys), StdRng::seed_from_u64(1)),
        facts,
    };
    let (handle, _ended) = worker.start(0, vec![Command::Serve(tap.index(), instance)])?;
    Ok(handle)
}

fn sessions(instance: &InstanceId, role: Arc<Role>) -> HashMap<InstanceId, RoleSession> {
    let set = RoleCredentials {
        access_key_id: "ASIAIOSFODNN7EXAMPLE".to_owned(),
        secret_access_key: SecretString::from("secret"),
        session_token: SecretString::from("token".repeat(100)),
        without_token: None,
        deliveries: Deliveries::default(),
        last_updated: Timestamp::UNIX_EPOCH,
        expiration: Timestamp::MAX,
    };
    let session = RoleSession {
        role,
        state: Arc::new(Some(Arc::new(RoleState::Ready(set))).into()),
    };
    HashMap::from([(instance.clone(), session)])
}

fn load_of(request: &str, in_flight: usize) -> Load {
    Load {
        mac: records::guest_mac(2),
        address: [10, 0, 0, 2],
        server: IMDS_MAC,
        requests: vec![request.into()],
        in_flight,
        duration: Duration::MAX,
        exchanges_max: 1,
        pause: Duration::ZERO,
        spins: false,
        kept_alive: None,
    }
}
