use std::time::Instant;

use imds_ebpf::abi::MacAddr;

use super::*;
use crate::registry::{
    InstanceId,
    problem::Severity::{self, Error, Warning},
    snapshot::Member,
};

fn records() -> Records {
    Records::new(Rules::default())
}

fn key(kind: Kind, name: &str) -> FileKey {
    FileKey {
        kind,
        name: format!("{name}.json").into(),
    }
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn mac(number: usize) -> MacAddr {
    let [.., a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 0, a, b, c, d])
}

/// An instance with one interface, and account 1's instance profile `p` unless `profile` says another.
fn instance(id: &str, mac_number: usize, tap: &str) -> String {
    instance_with_profile(id, mac_number, tap, "p")
}

fn instance_with_profile(id: &str, mac_number: usize, tap: &str, profile: &str) -> String {
    let mac = mac(mac_number);
    format!(
        r#"{{"InstanceId":"{id}","IamInstanceProfile":{{"Arn":"arn:aws:iam::1:instance-profile/{profile}"}},
            "NetworkInterfaces":[{{"MacAddress":"{mac}","Tap":"{tap}"}}]}}"#
    )
}

fn profile(account: &str, name: &str, role: &str) -> String {
    format!(
        r#"{{"InstanceProfileName":"{name}","Arn":"arn:aws:iam::{account}:instance-profile/{name}",
            "Roles":[{{"RoleName":"{role}"}}]}}"#
    )
}

fn role(account: &str, name: &str, id: &str) -> String {
    format!(r#"{{"RoleName":"{name}","RoleId":"{id}","Arn":"arn:aws:iam::{account}:role/{name}"}}"#)
}

impl Records {
    fn put(&mut self, kind: Kind, name: &str, text: &str, seconds: i64) {
        self.handle_file(key(kind, name), text.as_bytes(), time(seconds));
    }

    fn member(&self, id: &str) -> Option<&Arc<Member>> {
        self.snapshot.instances.get(&id.parse::<InstanceId>().unwrap())
    }

    fn problem_lines(&self) -> Vec<(Severity, String)> {
        self.problems()
            .iter()
            .map(|problem| (problem.severity, problem.to_string()))
            .collect()
    }
}

/// Two instances with role `r` through profile `p`, and one without either.
fn settled() -> Records {
    let mut records = records();
    records.put(Kind::Role, "r", &role("1", "r", "AROA1"), 30);
    records.put(Kind::InstanceProfile, "p", &profile("1", "p", "r"), 20);
    records.put(Kind::Instance, "a", &instance("i-a", 1, "tap1"), 10);
    records.put(Kind::Instance, "b", &instance("i-b", 2, "tap2"), 40);
    let bare = r#"{"InstanceId":"i-c","NetworkInterfaces":[{"MacAddress":"02:00:00:00:00:03"}]}"#;
    records.put(Kind::Instance, "c", bare, 50);
    records.commit().unwrap();
    assert_eq!(records.problems(), []);
    records
}

/// Whose a MAC is.
fn owner(records: &Records, mac: MacAddr) -> Option<String> {
    let snapshot = records.snapshot();
    let mut ids = snapshot.instances.keys();
    let owner = ids.find(|id| snapshot.interface(id, mac).is_some());
    owner.map(ToString::to_string)
}

#[test]
fn commit_links_instances_to_profile_and_role() {
    let records = settled();
    let snapshot = records.snapshot();
    assert_eq!(snapshot.revision, 1);
    let (member, interface) = snapshot.interface(&"i-a".parse().unwrap(), mac(1)).unwrap();
    assert_eq!(member.instance.instance_id.as_str(), "i-a");
    assert_eq!(interface.mac_address, mac(1));
    assert_eq!(member.role.as_ref().unwrap().role_name.as_str(), "r");
    assert_eq!(
        member
            .instance_profile
            .as_ref()
            .unwrap()
            .instance_profile_name
            .as_str(),
        "p"
    );
    assert_eq!(
        member.last_modified,
        time(30),
        "the role's file is the newest of the three"
    );
    assert_eq!(records.member("i-b").unwrap().last_modified, time(40));
    assert!(Arc::ptr_eq(
        &snapshot.by_tap["tap2"].0,
        records.member("i-b").unwrap()
    ));
    assert_eq!(snapshot.by_tap.len(), 2);
    assert!(records.member("i-c").unwrap().role.is_none());
}

/// Each snapshot is the one before with what changed: it must not differ from one that is made of all records.
#[test]
fn changed_snapshot_is_as_one_made_anew() {
    let mut records = settled();
    let shared_tail = format!(
        r#"{{"InstanceId":"i-d","NetworkInterfaces":[{{"MacAddress":"{}"}},{{"MacAddress":"{}"}}]}}"#,
        MacAddr([6, 0, 0, 0, 0, 1]),
        MacAddr([6, 0, 0, 0, 0, 9]),
    );
    let steps = [
        (Kind::Instance, "d", shared_tail),
        (Kind::Instance, "a", instance("i-a", 1, "tap9")),
        (Kind::Instance, "b", instance("i-b", 7, "tap1")),
        (Kind::InstanceProfile, "p", profile("1", "p", "other")),
        (Kind::Instance, "d", instance("i-d", 8, "tap8")),
        (Kind::Instance, "a", String::new()),
    ];
    for (kind, name, text) in steps {
        let key = key(kind, name);
        if text.is_empty() {
            records.handle_removed(&key);
        } else {
            records.handle_file(key, text.as_bytes(), time(50));
        }
        let snapshot = records.commit().expect("a change");
        let mut anew = Snapshot::default();
        snapshot.instances.values().for_each(|member| anew.add(member));
        let found = |snapshot: &Snapshot| {
            let of = |(member, index): &(Arc<Member>, usize)| (Arc::as_ptr(member), *index);
            let taps = snapshot
                .by_tap
                .iter()
                .map(|(tap, found)| (tap.to_string(), of(found)));
            let tails = snapshot.by_mac_tail.iter().map(|(tail, found)| {
                let found: BTreeSet<_> = found.as_slice().iter().map(of).collect();
                (*tail, found)
            });
            (
                taps.collect::<BTreeMap<_, _>>(),
                tails.collect::<BTreeMap<_, _>>(),
            )
        };
        assert_eq!(found(&snapshot), found(&anew), "{name}");
    }
}

#[test]
fn commit_without_change_gives_nothing() {
    let mut records = settled();
    assert!(records.commit().is_none());
    records.put(Kind::Instance, "a", &instance("i-a", 1, "tap1"), 99);
    assert!(
        records.commit().is_none(),
        "the same record in a newer file says nothing new"
    );
}

#[test]
fn change_of_role_renews_only_its_members() {
    let mut records = settled();
    let before = Arc::clone(records.snapshot());
    records.put(Kind::Role, "r", &role("1", "r", "AROA2"), 60);
    let after = records.commit().unwrap();
    let ids = ["i-a", "i-b", "i-c"].map(|id| id.parse::<InstanceId>().unwrap());
    let shared = ids
        .each_ref()
        .map(|id| Arc::ptr_eq(&before.instances[id], &after.instances[id]));
    assert_eq!(shared, [false, false, true]);
    assert_eq!(
        after.instances[&ids[0]].role.as_ref().unwrap().role_id.as_deref(),
        Some("AROA2")
    );
    assert_eq!(after.instances[&ids[0]].last_modified, time(60));
    assert_eq!(
        before.instances[&ids[0]]
            .role
            .as_ref()
            .unwrap()
            .role_id
            .as_deref(),
        Some("AROA1")
    );
}

#[test]
fn removed_role_and_profile_unlink_and_are_reported() {
    let mut records = settled();
    records.handle_removed(&key(Kind::Role, "r"));
    records.commit().unwrap();
    let member = records.member("i-a").unwrap();
    assert!(member.role.is_none() && member.instance_profile.is_some());
    assert_eq!(
        member.last_modified,
        time(30),
        "not before what a guest has already seen"
    );
    let expected = "instance-profiles/p.json: Roles[0]: names a role that no file describes";
    assert_eq!(records.problem_lines(), [(Warning, expected.to_owned())]);

    records.handle_removed(&key(Kind::InstanceProfile, "p"));
    records.commit().unwrap();
    assert!(records.member("i-a").unwrap().instance_profile.is_none());
    let lines = records.problem_lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines[0]
            .1
            .starts_with("instances/a.json: IamInstanceProfile.Arn: names an instance profile")
    );
}

#[test]
fn same_names_in_two_accounts_are_two_things() {
    let mut records = settled();
    records.put(Kind::Role, "r2", &role("2", "r", "AROA9"), 1);
    records.put(Kind::InstanceProfile, "p2", &profile("2", "p", "r"), 1);
    let text = instance("i-d", 4, "tap4").replace("iam::1:", "iam::2:");
    records.put(Kind::Instance, "d", &text, 1);
    records.commit().unwrap();
    assert_eq!(records.problems(), []);
    assert_eq!(
        records.member("i-d").unwrap().role.as_ref().unwrap().arn,
        "arn:aws:iam::2:role/r"
    );
    assert_eq!(
        records.member("i-a").unwrap().role.as_ref().unwrap().arn,
        "arn:aws:iam::1:role/r"
    );
}

#[test]
fn bad_version_leaves_the_last_good_one_in_force() {
    let mut records = settled();
    records.put(Kind::Instance, "a", "{\n\"InstanceId\": 5", 60);
    records.handle_unreadable(key(Kind::Instance, "b"), "Permission denied".to_owned());
    records.put(Kind::Instance, "new", "[", 60);
    assert!(records.commit().is_none());
    assert!(records.member("i-a").is_some() && records.member("i-b").is_some());
    let lines = records.problem_lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[0].1.starts_with("instances/a.json:2:"), "{lines:?}");
    assert_eq!(
        lines[1],
        (Error, "instances/b.json: Permission denied".to_owned())
    );

    records.put(Kind::Instance, "a", &instance("i-a", 7, "tap1"), 70);
    records.put(Kind::Instance, "b", &instance("i-b", 2, "tap2"), 70);
    records.handle_removed(&key(Kind::Instance, "new"));
    records.commit().unwrap();
    assert_eq!(records.problems(), []);
    assert_eq!(
        [owner(&records, mac(7)), owner(&records, mac(1))],
        [Some("i-a".to_owned()), None]
    );
}

#[test]
fn duplicate_is_refused_naming_both_until_the_earlier_goes() {
    let duplicates = [
        (instance("i-a", 9, "tap9"), "InstanceId i-a"),
        (instance("i-z", 1, "tap9"), "MacAddress 02:00:00:00:00:01"),
        (instance("i-z", 9, "tap1"), "Tap tap1"),
    ];
    for (duplicate, claim) in duplicates {
        let mut records = settled();
        // By name it comes before the file that is in force: the earlier loaded goes on all the same.
        records.put(Kind::Instance, "A", &duplicate, 60);
        records.put(
            Kind::Instance,
            "a",
            &instance("i-a", 1, "tap1").replace("i-a\",", "i-a\",\"KeyName\":\"k\","),
            60,
        );
        records.commit().unwrap();
        let expected = format!("instances/A.json: {claim} is already taken by instances/a.json");
        assert_eq!(records.problem_lines(), [(Error, expected)]);
        assert_eq!(records.snapshot().instances.len(), 3);
        assert_eq!(
            records.member("i-a").unwrap().instance.key_name.as_deref(),
            Some("k")
        );

        records.handle_removed(&key(Kind::Instance, "a"));
        records.commit().unwrap();
        assert_eq!(records.problems(), []);
        assert_eq!(records.snapshot().instances.len(), 3);
    }
}

#[test]
fn clones_have_one_mac_in_namespaces_of_their_own() {
    let mut records = settled();
    for (name, id, tap) in [
        ("one", "i-1", "fc-1/tap0"),
        ("two", "i-2", "fc-2/tap0"),
        ("zwei", "i-3", "fc-2/tap1"),
    ] {
        records.put(Kind::Instance, name, &instance(id, 1, tap), 60);
    }
    records.commit().unwrap();
    let snapshot = records.snapshot();
    for (id, tap) in [("i-a", "tap1"), ("i-1", "fc-1/tap0"), ("i-2", "fc-2/tap0")] {
        let (member, interface) = snapshot.interface(&id.parse().unwrap(), mac(1)).unwrap();
        assert_eq!(member.instance.instance_id.as_str(), id);
        assert_eq!(interface.tap.as_deref(), Some(tap));
        assert_eq!(snapshot.by_tap[tap].0.instance.instance_id.as_str(), id);
    }
    // Two in one are not told apart.
    assert_eq!(records.problems().len(), 1);
    let problem = records.problems()[0].to_string();
    assert!(
        problem.contains("MacAddress 02:00:00:00:00:01 in network namespace fc-2"),
        "{problem}"
    );
    // Only the one in the agent's own namespace is found by what a tap shows of its MAC.
    let tail = crate::registry::snapshot::mac_tail(mac(1));
    assert_eq!(snapshot.by_mac_tail[&tail].as_slice().len(), 1);
}

#[test]
fn changed_file_that_takes_anothers_mac_keeps_its_last_good_version() {
    let mut records = settled();
    records.put(Kind::Instance, "b", &instance("i-b", 1, "tap2"), 60);
    assert!(records.commit().is_none());
    assert_eq!(owner(&records, mac(2)).as_deref(), Some("i-b"));
    assert_eq!(records.problems().len(), 1);
    // Mended by the other file letting go.
    records.put(Kind::Instance, "a", &instance("i-a", 8, "tap1"), 70);
    records.commit().unwrap();
    assert_eq!(records.problems(), []);
    assert_eq!(owner(&records, mac(1)).as_deref(), Some("i-b"));
}

#[test]
fn files_may_swap_taps_one_after_the_other() {
    let mut records = settled();
    records.put(Kind::Instance, "a", &instance("i-a", 1, "tap2"), 60);
    assert!(records.commit().is_none());
    records.put(Kind::Instance, "b", &instance("i-b", 2, "tap1"), 60);
    let snapshot = records.commit().unwrap();
    assert_eq!(records.problems(), []);
    assert_eq!(snapshot.by_tap["tap2"].0.instance.instance_id.as_str(), "i-a");
    assert_eq!(snapshot.by_tap["tap1"].0.instance.instance_id.as_str(), "i-b");
    records.handle_removed(&key(Kind::Instance, "a"));
    let snapshot = records.commit().unwrap();
    assert!(!snapshot.by_tap.contains_key("tap2") && snapshot.by_tap.contains_key("tap1"));
}

#[test]
fn loser_that_stays_makes_those_who_wait_for_it_lose_too() {
    let mut records = settled();
    // c wants b's tap, b wants a's, and a stays: nobody moves.
    records.put(Kind::Instance, "b", &instance("i-b", 2, "tap1"), 60);
    records.put(Kind::Instance, "c", &instance("i-c", 3, "tap2"), 60);
    assert!(records.commit().is_none());
    assert_eq!(records.problems().len(), 2);
    // a lets go: all move at once.
    records.put(Kind::Instance, "a", &instance("i-a", 1, "tap9"), 70);
    let snapshot = records.commit().unwrap();
    assert_eq!(records.problems(), []);
    assert_eq!(snapshot.by_tap["tap2"].0.instance.instance_id.as_str(), "i-c");
}

#[test]
fn ten_thousand_instances_load_quickly_and_one_change_quicker() {
    let mut records = records();
    let example = include_str!("../../../../docs/examples/instances/web-1.json");
    let text = |number: usize| {
        example
            .replace("i-0123456789abcdef0", &format!("i-{number:017x}"))
            .replace("02:16:3e:00:01:11", &mac(number).to_string())
            .replace("tap-web-1", &format!("tap{number}"))
    };
    let texts: Vec<String> = (1..=10_000).map(text).collect();
    let started = Instant::now();
    for (number, text) in texts.iter().enumerate() {
        records.put(Kind::Instance, &number.to_string(), text, 1);
    }
    let before = records.commit().unwrap();
    let load = started.elapsed();
    assert_eq!(before.instances.len(), 10_000);

    records.put(
        Kind::Instance,
        "17",
        &texts[17].replace("m5.large", "m5.xlarge"),
        2,
    );
    let started = Instant::now();
    let after = records.commit().unwrap();
    let change = started.elapsed();
    let renewed = after
        .instances
        .iter()
        .filter(|(id, member)| !Arc::ptr_eq(member, &before.instances[*id]))
        .count();
    assert_eq!(renewed, 1);
    println!("10,000 records loaded in {load:?}, one changed in {change:?}");
    // On any machine, however busy: a change costs nothing like all the records again, which takes a hundred times as long.
    assert!(change < load / 4, "{load:?}, {change:?}");
}
