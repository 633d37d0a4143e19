//! What an instance costs the agent in memory, counted by the allocator and so the same in every run. What the process takes of
//! the system for it is `cargo xtask bench`'s to measure.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use allocation_counter::measure;
use imds_agent::{
    credentials::{
        self, Issuer, Source as _,
        schedule::{Kind as Sessions, Schedule},
    },
    identity_files,
    imds::identity::{self, IdentityKeys, Signatures, published::Slot},
    keys::IssuerKey,
    now::Now,
    registry::{
        Rules, Snapshot,
        record::Kind,
        records::{FileKey, Records},
    },
};
use imds_ebpf::abi::MacAddr;
use imds_tests::records::{instance, instance_profile, role};
use jiff::Timestamp;
use rand::{SeedableRng as _, rngs::StdRng};

/// As full as hash tables are with ten thousand.
const INSTANCES: u16 = 1250;

/// What a record may cost, with all that finds it. Images, groups, keys and so on are those of other records, too.
const RECORD_BYTES_MAX: u64 = 2400;

/// What a session may cost in whose set a guest's session token is required.
const SESSION_BYTES_MAX: u64 = 1300;

/// What signatures may cost.
const SIGNATURES_BYTES_MAX: u64 = 900;

/// What `make` keeps, in bytes for each instance.
fn kept<T>(make: impl FnOnce() -> T) -> (T, u64) {
    let mut made = None;
    let counted = measure(|| made = Some(make()));
    let bytes = u64::try_from(counted.bytes_current).unwrap_or_default();
    (made.unwrap(), bytes / u64::from(INSTANCES))
}

fn put(records: &mut Records, kind: Kind, name: &str, record: &serde_json::Value) {
    let key = FileKey {
        kind,
        name: format!("{name}.json").into(),
    };
    records.handle_file(key, record.to_string().as_bytes(), Timestamp::UNIX_EPOCH);
}

fn records() -> Records {
    let mut records = Records::new(Rules::default());
    put(&mut records, Kind::Role, "role", &role());
    put(
        &mut records,
        Kind::InstanceProfile,
        "profile",
        &instance_profile(),
    );
    for number in 0..INSTANCES {
        let [high, low] = number.to_be_bytes();
        let id = format!("i-{number:017x}");
        let mac = MacAddr([0x06, 0, 0, 1, high, low]);
        let record = instance(&id, mac, &format!("tap{number}"), &format!("10.1.{high}.{low}"));
        put(&mut records, Kind::Instance, &id, &record);
    }
    records.commit().expect("a snapshot");
    assert_eq!(records.problems(), []);
    records
}

/// Sessions with a set each, and the map of them that the workers read.
fn sessions(kind: Sessions, snapshot: &Snapshot) -> (Schedule<StdRng>, credentials::Published) {
    let issuer = Issuer::new(&IssuerKey::new([1; 4], [1; 32]), &[]);
    let mut schedule = Schedule::new(kind, 3600, StdRng::seed_from_u64(1));
    let published = credentials::Published::default();
    let now = Now {
        monotonic: Duration::ZERO,
        unix: Duration::from_secs(1_795_248_000),
    };
    schedule.handle_snapshot(now, snapshot);
    published.publish(schedule.sessions());
    while let Some((ticket, request)) = schedule.poll_fetch(now) {
        let fetch = pin!(issuer.fetch(&request));
        let Poll::Ready(outcome) = fetch.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("the issuer waits for nobody");
        };
        schedule.handle_fetched(now, &ticket, outcome);
    }
    (schedule, published)
}

/// Signatures of every kind, where requests look for them.
fn signatures(snapshot: &Snapshot, keys: &IdentityKeys) -> identity::Published {
    let published = identity::Published::default();
    let (id, member) = snapshot.instances.iter().next().expect("an instance");
    let document = identity::document(member);
    let signed = Signatures::new(keys, &document).and_then(|signed| signed.with_dsa2048(keys));
    let signed = signed.expect("a document can be signed");
    let slots = (0..INSTANCES).map(|number| {
        let slot = Slot::default();
        slot.fill(signed.clone());
        (format!("{id}-{number}").parse().expect("an id"), Arc::new(slot))
    });
    published.publish(slots.collect());
    published
}

#[test]
fn instance_costs_little() {
    let (records, record) = kept(records);
    let snapshot = Arc::clone(records.snapshot());
    let (_sessions, of_role) = kept(|| sessions(Sessions::InstanceProfile, &snapshot));
    let (_sessions, of_identity) = kept(|| sessions(Sessions::InstanceIdentity, &snapshot));
    let directory = tempfile::tempdir().unwrap();
    let keys = identity_files::load_or_create(directory.path(), "host-1", Duration::ZERO).unwrap();
    let (_published, signed) = kept(|| signatures(&snapshot, &keys));
    println!(
        "bytes an instance: record {record}, role {of_role}, identity role {of_identity}, signatures {signed}"
    );
    assert!(record <= RECORD_BYTES_MAX, "a record keeps {record} bytes");
    for session in [of_role, of_identity] {
        assert!(session <= SESSION_BYTES_MAX, "a session keeps {session} bytes");
    }
    assert!(signed <= SIGNATURES_BYTES_MAX, "signatures keep {signed} bytes");
}

/// One record of many that changes costs the copy of what points to the others, and no other record.
#[test]
fn change_of_one_record_copies_no_other() {
    let mut records = records();
    let mac = MacAddr([0x06, 0, 0, 1, 0, 7]);
    let mut record = instance("i-00000000000000007", mac, "tap7", "10.1.0.7");
    record["InstanceType"] = "m5.xlarge".into();
    let counted = measure(|| {
        put(&mut records, Kind::Instance, "i-00000000000000007", &record);
        records.commit().expect("a snapshot");
    });
    // Reading it takes some hundreds.
    assert!(counted.count_total < u64::from(INSTANCES), "{counted:?}");
}
