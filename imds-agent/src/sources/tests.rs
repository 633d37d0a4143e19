use super::*;
use crate::registry::Rules;

struct Host {
    _directory: tempfile::TempDir,
    store: Store,
}

fn host() -> Host {
    let directory = tempfile::tempdir().unwrap();
    for kind in Kind::ALL {
        std::fs::create_dir(directory.path().join(kind.directory())).unwrap();
    }
    let store = Store::new(directory.path(), Rules::default());
    Host {
        _directory: directory,
        store,
    }
}

/// A guest whose one interface has the MAC and the tap.
fn guest(uuid: &str, id: &str, mac: u8, tap: &str) -> Guest {
    let document = json!({
        "InstanceId": id,
        "NetworkInterfaces": [{ "MacAddress": format!("52:54:00:00:00:{mac:02x}"), "Tap": tap }],
    });
    Guest {
        origin: Origin {
            source: "libvirt".to_owned(),
            id: uuid.to_owned(),
        },
        id: id.parse().unwrap(),
        document: document.as_object().unwrap().clone(),
        warnings: Vec::new(),
    }
}

fn stored(host: &Host, id: &str) -> Option<Map<String, Value>> {
    let key = Key::Instance(id.parse().unwrap());
    host.store.get(&key).ok().map(|stored| stored.document)
}

fn write(host: &Host, record: &Value) {
    let id = record["InstanceId"].as_str().unwrap().parse().unwrap();
    host.store
        .put_instance(&id, record.to_string().as_bytes())
        .unwrap();
}

#[test]
fn a_guest_that_ends_takes_its_own_record_and_no_other() {
    let host = host();
    let (one, two) = (guest("u1", "i-1", 1, "vnet0"), guest("u2", "i-2", 2, "vnet1"));
    for guest in [&one, &two] {
        assert_eq!(
            put(&host.store, guest, Earlier::Replace).unwrap(),
            Outcome::Written
        );
    }
    assert_eq!(stored(&host, "i-1").unwrap()["Origin"]["Id"], "u1");
    let gone: Vec<InstanceId> = vec!["i-1".parse().unwrap()];
    assert_eq!(remove(&host.store, &one.origin).unwrap(), gone);
    assert_eq!(remove(&host.store, &one.origin).unwrap(), []);
    assert!(stored(&host, "i-2").is_some());
}

#[test]
fn an_operators_record_wins_and_stays() {
    let host = host();
    let own = json!({ "InstanceId": "i-1", "NetworkInterfaces": [{ "MacAddress": "52:54:00:00:00:01" }] });
    write(&host, &own);
    let same_id = guest("u1", "i-1", 1, "vnet0");
    // Or with another id, for the same interface.
    for guest in [&same_id, &guest("u1", "i-9", 1, "vnet0")] {
        let outcome = put(&host.store, guest, Earlier::Replace).unwrap();
        assert_eq!(outcome, Outcome::LeftAlone("instances/i-1.json".into()));
    }
    assert_eq!(remove(&host.store, &same_id.origin).unwrap(), []);
    assert_eq!(
        retain(&host.store, &known(&host.store, "libvirt").unwrap(), &[]).unwrap(),
        []
    );
    assert_eq!(Value::Object(stored(&host, "i-1").unwrap()), own);
}

#[test]
fn a_record_that_an_operator_took_over_is_the_operators() {
    let host = host();
    let guest = guest("u1", "i-1", 1, "vnet0");
    put(&host.store, &guest, Earlier::Replace).unwrap();
    let id = guest.id.clone();
    let taken_over = |record: &mut Map<String, Value>| drop(record.remove("Origin"));
    host.store.amend_instance(&id, taken_over).unwrap();
    assert!(matches!(
        put(&host.store, &guest, Earlier::Replace).unwrap(),
        Outcome::LeftAlone(_)
    ));
    assert_eq!(remove(&host.store, &guest.origin).unwrap(), []);
}

#[test]
fn what_was_changed_in_a_run_lasts_as_long_as_the_run() {
    let host = host();
    let guest = guest("u1", "i-1", 1, "vnet0");
    put(&host.store, &guest, Earlier::Replace).unwrap();
    let events = json!({ "RebalanceRecommendation": { "NoticeTime": "2026-11-21T08:10:00Z" } });
    let change = |record: &mut Map<String, Value>| {
        record.insert("Events".to_owned(), events.clone());
        record.insert("LaunchTime".to_owned(), "2026-11-21T08:00:00Z".into());
        record.insert("ImageId".to_owned(), "ami-1".into());
    };
    host.store.amend_instance(&guest.id, change).unwrap();

    assert_eq!(put(&host.store, &guest, Earlier::Keep).unwrap(), Outcome::Kept);
    assert_eq!(stored(&host, "i-1").unwrap()["ImageId"], "ami-1");
    put(
        &host.store,
        &guest,
        Earlier::Update(&known(&host.store, "libvirt").unwrap()),
    )
    .unwrap();
    let record = stored(&host, "i-1").unwrap();
    assert_eq!(record["Events"], events);
    assert_eq!(record["LaunchTime"], "2026-11-21T08:00:00Z");
    assert!(!record.contains_key("ImageId"));
    put(&host.store, &guest, Earlier::Replace).unwrap();
    assert!(!stored(&host, "i-1").unwrap().contains_key("Events"));
}

/// The word of the last guest's end was lost, and the hypervisor counts its taps anew.
#[test]
fn a_tap_that_the_hypervisor_gave_to_another_guest_is_the_others() {
    let host = host();
    put(&host.store, &guest("u1", "i-1", 1, "vnet0"), Earlier::Replace).unwrap();
    let next = guest("u2", "i-2", 2, "vnet0");
    assert_eq!(
        put(&host.store, &next, Earlier::Replace).unwrap(),
        Outcome::Written
    );
    assert_eq!(stored(&host, "i-1"), None);
    // But not an operator's.
    let own = json!({ "InstanceId": "i-3", "NetworkInterfaces": [{ "MacAddress": "52:54:00:00:00:03", "Tap": "vnet9" }] });
    write(&host, &own);
    let outcome = put(&host.store, &guest("u4", "i-4", 4, "vnet9"), Earlier::Replace).unwrap();
    assert_eq!(outcome, Outcome::LeftAlone("instances/i-3.json".into()));
}

#[test]
fn a_guest_with_a_new_id_leaves_no_record_under_the_old_one() {
    let host = host();
    put(&host.store, &guest("u1", "i-1", 1, "vnet0"), Earlier::Replace).unwrap();
    put(
        &host.store,
        &guest("u1", "i-2", 1, "vnet0"),
        Earlier::Update(&known(&host.store, "libvirt").unwrap()),
    )
    .unwrap();
    assert!(stored(&host, "i-1").is_none() && stored(&host, "i-2").is_some());
}

#[test]
fn guests_that_are_not_here_lose_their_records() {
    let host = host();
    let (one, two) = (guest("u1", "i-1", 1, "vnet0"), guest("u2", "i-2", 2, "vnet1"));
    for guest in [&one, &two] {
        put(&host.store, guest, Earlier::Replace).unwrap();
    }
    let gone: Vec<InstanceId> = vec!["i-2".parse().unwrap()];
    assert_eq!(
        retain(
            &host.store,
            &known(&host.store, "libvirt").unwrap(),
            &[one.origin]
        )
        .unwrap(),
        gone
    );
    // Another source's are none of its business.
    assert_eq!(
        retain(&host.store, &known(&host.store, "proxmox").unwrap(), &[]).unwrap(),
        []
    );
    assert!(stored(&host, "i-1").is_some());
}

/// An import asks the hypervisor about one guest after the other, and meanwhile some start and some end.
#[test]
fn who_asked_the_hypervisor_later_knows_better() {
    let host = host();
    let (before, after) = (guest("u1", "i-1", 1, "vnet3"), guest("u1", "i-1", 1, "vnet7"));
    let new = guest("u2", "i-2", 2, "vnet3");
    put(&host.store, &before, Earlier::Replace).unwrap();
    let known = known(&host.store, "libvirt").unwrap();

    // One is started anew, and another one has its old tap.
    put(&host.store, &after, Earlier::Replace).unwrap();
    put(&host.store, &new, Earlier::Replace).unwrap();
    assert_eq!(
        put(&host.store, &before, Earlier::Update(&known)).unwrap(),
        Outcome::Kept
    );
    let third = guest("u3", "i-3", 3, "vnet3");
    assert_eq!(
        put(&host.store, &third, Earlier::Update(&known)).unwrap(),
        Outcome::LeftAlone("instances/i-2.json".into())
    );
    assert_eq!(retain(&host.store, &known, &[]).unwrap(), []);
    assert_eq!(
        stored(&host, "i-1").unwrap()["NetworkInterfaces"][0]["Tap"],
        "vnet7"
    );
}

/// In whatever order they are asked about.
#[test]
fn guests_that_changed_taps_are_all_imported() {
    let host = host();
    put(&host.store, &guest("u1", "i-1", 1, "vnet3"), Earlier::Replace).unwrap();
    let known = known(&host.store, "libvirt").unwrap();
    for guest in [guest("u2", "i-2", 2, "vnet3"), guest("u1", "i-1", 1, "vnet7")] {
        let outcome = put(&host.store, &guest, Earlier::Update(&known)).unwrap();
        assert_eq!(outcome, Outcome::Written);
    }
}

#[test]
fn nobody_loses_a_record_to_one_that_is_wrong() {
    let host = host();
    put(&host.store, &guest("u1", "i-1", 1, "vnet0"), Earlier::Replace).unwrap();
    let mut wrong = guest("u2", "i-2", 2, "vnet0");
    let options = json!({ "HttpTokens": "sometimes" });
    wrong.document.insert("MetadataOptions".to_owned(), options);
    let error = put(&host.store, &wrong, Earlier::Replace).unwrap_err();
    assert!(error.to_string().contains("HttpTokens"), "{error}");
    assert!(stored(&host, "i-1").is_some());
}

#[test]
fn whose_tap_it_is_only_the_hypervisor_says() {
    let mut record = guest("u1", "i-1", 1, "vnet0").document;
    let said = json!({ "NetworkInterfaces": [{ "MacAddress": "52:54:00:00:00:01", "Tap": "vnet1" }] });
    let error = overlay::lay_over(&mut record, said.as_object().unwrap().clone()).unwrap_err();
    assert_eq!(
        error,
        "the Tap of \"52:54:00:00:00:01\" is the hypervisor's to say"
    );
}
