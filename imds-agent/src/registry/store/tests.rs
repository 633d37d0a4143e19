use std::{os::unix::fs::symlink, thread};

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::registry::Directory;

struct Host {
    directory: TempDir,
    store: Store,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Directory::create(directory.path()).unwrap();
        let store = Store::new(directory.path(), Rules::default());
        Self { directory, store }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap()
    }

    /// The names in a directory.
    fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(directory)).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn instance(id: &str, last: u8, tap: &str) -> Vec<u8> {
    let mac = format!("06:00:00:00:00:{last:02x}");
    let record = json!({ "InstanceId": id, "NetworkInterfaces": [{ "MacAddress": mac, "Tap": tap }] });
    record.to_string().into_bytes()
}

fn role(account: &str, name: &str) -> Vec<u8> {
    let arn = format!("arn:aws:iam::{account}:role/{name}");
    json!({ "RoleName": name, "Arn": arn }).to_string().into_bytes()
}

fn profile(name: &str, role: Option<&str>) -> Vec<u8> {
    let roles: Vec<_> = role.iter().map(|role| json!({ "RoleName": role })).collect();
    let arn = format!("arn:aws:iam::1:instance-profile/{name}");
    json!({ "InstanceProfileName": name, "Arn": arn, "Roles": roles })
        .to_string()
        .into_bytes()
}

#[test]
fn a_record_is_made_changed_and_deleted() {
    let host = Host::new();
    let put = host
        .store
        .put_instance(&id("i-1"), &instance("i-1", 1, "tap1"))
        .unwrap();
    assert!(put.is_new);
    assert_eq!(host.names("instances"), ["i-1.json"]);
    let key = Key::Instance(id("i-1"));
    let stored = host.store.get(&key).unwrap();
    assert_eq!(stored.revision, put.revision);
    assert_eq!(stored.document["InstanceId"], "i-1");
    let again = host
        .store
        .put_instance(&id("i-1"), &instance("i-1", 2, "tap1"))
        .unwrap();
    assert!(!again.is_new);
    assert_ne!(again.revision, put.revision);
    let mode = fs::metadata(host.path("instances/i-1.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600, "records hold user data");
    host.store.delete_instance(&id("i-1")).unwrap();
    assert!(host.names("instances").is_empty());
    assert!(matches!(host.store.get(&key), Err(StoreError::NotFound(_))));
    let error = host.store.delete_instance(&id("i-1")).unwrap_err();
    assert_eq!(error.to_string(), "there is no instance i-1");
}

#[test]
fn a_record_stays_in_the_file_that_it_lies_in() {
    let host = Host::new();
    let text = String::from_utf8(instance("i-1", 1, "tap1")).unwrap();
    host.write("instances/whatever.json", &text);
    fs::set_permissions(
        host.path("instances/whatever.json"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    host.store
        .put_instance(&id("i-1"), &instance("i-1", 2, "tap1"))
        .unwrap();
    assert_eq!(host.names("instances"), ["whatever.json"]);
    let mode = fs::metadata(host.path("instances/whatever.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    // Its own name is somebody else's.
    let other = String::from_utf8(instance("i-3", 3, "tap3")).unwrap();
    host.write("instances/i-2.json", &other);
    host.store
        .put_instance(&id("i-2"), &instance("i-2", 9, "tap9"))
        .unwrap();
    assert_eq!(host.json("instances/i-2.2.json")["InstanceId"], "i-2");
    assert_eq!(host.json("instances/i-2.json")["InstanceId"], "i-3");
    // What nobody can read is taken for a broken version.
    host.write("instances/i-4.json", "{");
    host.store
        .put_instance(&id("i-4"), &instance("i-4", 4, "tap4"))
        .unwrap();
    assert_eq!(host.json("instances/i-4.json")["InstanceId"], "i-4");
}

#[test]
fn a_broken_version_is_still_the_same_instance() {
    let host = Host::new();
    let broken = r#"{"InstanceId":"i-1","NetworkInterfaces":[{"MacAddress":"06:00:00:00:00:01","Tap":"tap1"}],"UserData":"%"}"#;
    host.write("instances/a.json", broken);
    let error = host
        .store
        .put_instance(&id("i-2"), &instance("i-2", 1, "tap2"))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "MacAddress 06:00:00:00:00:01 is already taken by instances/a.json"
    );
    host.store
        .amend_instance(&id("i-1"), |record| record["UserData"] = "YQ==".into())
        .unwrap();
    assert_eq!(host.json("instances/a.json")["UserData"], "YQ==");
}

#[test]
fn names_that_no_file_can_have_and_those_that_hide() {
    let host = Host::new();
    for (number, name) in [".hidden", "a:b*c", &"x".repeat(255)].into_iter().enumerate() {
        let number = u8::try_from(number).unwrap();
        let tap = format!("tap{number}");
        host.store
            .put_instance(&id(name), &instance(name, number + 1, &tap))
            .unwrap();
        assert_eq!(
            host.store.get(&Key::Instance(id(name))).unwrap().document["InstanceId"],
            name
        );
    }
    assert!(
        host.names("instances")
            .iter()
            .all(|name| is_record_name(name.as_ref()))
    );
}

#[test]
fn what_the_reader_refuses_is_not_written_and_the_field_is_named() {
    let host = Host::new();
    let put = |document: &str| {
        host.store
            .put_instance(&id("i-1"), document.as_bytes())
            .unwrap_err()
            .to_string()
    };
    let bad_mac = r#"{"InstanceId":"i-1","NetworkInterfaces":[{"MacAddress":"x"}]}"#;
    assert!(
        put(bad_mac).starts_with("NetworkInterfaces[0].MacAddress: "),
        "{}",
        put(bad_mac)
    );
    let bad_tap =
        r#"{"InstanceId":"i-1","NetworkInterfaces":[{"MacAddress":"06:00:00:00:00:01","Tap":"a b"}]}"#;
    assert!(
        put(bad_tap).starts_with("NetworkInterfaces[0].Tap: "),
        "{}",
        put(bad_tap)
    );
    let other = String::from_utf8(instance("i-2", 1, "tap1")).unwrap();
    assert_eq!(put(&other), "InstanceId: is not that of instance i-1");
    assert!(put("{").contains("line 1, column 1"), "{}", put("{"));
    assert!(put(&" ".repeat(2 << 20)).contains("longer"), "too long");
    assert!(host.names("instances").is_empty());
}

#[test]
fn nobody_takes_what_is_anothers() {
    let host = Host::new();
    host.store
        .put_instance(&id("i-1"), &instance("i-1", 1, "tap1"))
        .unwrap();
    for document in [instance("i-2", 1, "tap2"), instance("i-2", 2, "tap1")] {
        let error = host.store.put_instance(&id("i-2"), &document).unwrap_err();
        assert!(
            matches!(&error, StoreError::Taken { file, .. } if file.ends_with("i-1.json")),
            "{error}"
        );
    }
    // Nor by a change, nor where a file came by another hand.
    host.write(
        "instances/hand.json",
        &String::from_utf8(instance("i-3", 3, "tap3")).unwrap(),
    );
    let take = |record: &mut Map<String, Value>| record["NetworkInterfaces"][0]["Tap"] = "tap3".into();
    let error = host.store.amend_instance(&id("i-1"), take).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Tap tap3 is already taken by instances/hand.json"
    );
    fs::remove_file(host.path("instances/hand.json")).unwrap();
    host.store.amend_instance(&id("i-1"), take).unwrap();
}

#[test]
fn what_a_change_does_not_touch_stays_known_or_not() {
    let host = Host::new();
    let text = r#"{"Reservations":[{"ReservationId":"r-1","Groups":[],"Instances":[
        {"Zebra":{"deep":[1,2.5,"x"]},"InstanceId":"i-1","Apple":null,
         "NetworkInterfaces":[{"MacAddress":"06:00:00:00:00:01","Unknown":true}]}]}],"After":1}"#;
    host.write("instances/a.json", text);
    let put = host
        .store
        .amend_instance(&id("i-1"), |record| {
            record.insert("InstanceType".to_owned(), "m5.large".into());
        })
        .unwrap();
    assert!(
        matches!(&put.record, Record::Instance(instance) if instance.reservation_id.as_deref() == Some("r-1"))
    );
    let mut expected: Value = serde_json::from_str(text).unwrap();
    expected["Reservations"][0]["Instances"][0]["InstanceType"] = "m5.large".into();
    assert_eq!(host.json("instances/a.json"), expected);
    // In the order that its author gave it.
    let order = |text: &str| {
        [
            text.find("Zebra"),
            text.find("InstanceId"),
            text.find("Apple"),
            text.find("After"),
        ]
    };
    let written = fs::read_to_string(host.path("instances/a.json")).unwrap();
    assert!(order(&written).is_sorted(), "{written}");
    // And nothing at all is written for nothing.
    let again = host.store.amend_instance(&id("i-1"), |_| ()).unwrap();
    assert_eq!(again.revision, put.revision);
}

#[test]
fn a_write_is_for_the_version_that_was_seen() {
    let host = Host::new();
    let key = Key::Instance(id("i-1"));
    let put = |document: &[u8], expect: &Expect| host.store.put(&key, document, expect);
    let first = instance("i-1", 1, "tap1");
    assert!(matches!(
        put(&first, &Expect::At("x".into())),
        Err(StoreError::Changed(_))
    ));
    let revision = put(&first, &Expect::Absent).unwrap().revision;
    assert!(matches!(put(&first, &Expect::Absent), Err(StoreError::Exists(_))));
    let seen = Expect::At(revision);
    put(&instance("i-1", 2, "tap1"), &seen).unwrap();
    assert!(matches!(put(&first, &seen), Err(StoreError::Changed(_))));
    assert!(matches!(
        host.store.delete(&key, &seen),
        Err(StoreError::Changed(_))
    ));
    assert!(matches!(
        host.store.amend(&key, &seen, |_| Ok(())),
        Err(StoreError::Changed(_))
    ));
}

/// Two stores on one directory stand for two processes: each opens the lock file for itself.
#[test]
fn of_many_writers_none_loses_what_it_wrote() {
    const WRITERS: usize = 4;
    const WRITES: usize = 25;
    let host = Host::new();
    host.store
        .put_instance(&id("i-1"), &instance("i-1", 1, "tap1"))
        .unwrap();
    let other = Store::new(host.directory.path(), Rules::default());
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = if writer % 2 == 0 { &host.store } else { &other };
            scope.spawn(move || {
                for write in 0..WRITES {
                    let tag = json!({ "Key": format!("{writer}-{write}"), "Value": "" });
                    let add = |record: &mut Map<String, Value>| {
                        let tags = record.entry("Tags").or_insert_with(|| json!([]));
                        tags.as_array_mut().unwrap().push(tag);
                    };
                    store.amend_instance(&id("i-1"), add).unwrap();
                }
            });
        }
    });
    assert_eq!(
        host.json("instances/i-1.json")["Tags"].as_array().unwrap().len(),
        WRITERS * WRITES
    );
}

#[test]
fn what_a_killed_writer_left_goes_and_a_link_stays() {
    let host = Host::new();
    host.write("instances/.unfinished-1", "half");
    host.store
        .put_instance(&id("i-1"), &instance("i-1", 1, "tap1"))
        .unwrap();
    assert_eq!(host.names("instances"), ["i-1.json"]);
    fs::rename(host.path("instances/i-1.json"), host.path("elsewhere")).unwrap();
    symlink(host.path("elsewhere"), host.path("instances/i-1.json")).unwrap();
    let error = host
        .store
        .put_instance(&id("i-1"), &instance("i-1", 2, "tap1"))
        .unwrap_err();
    assert!(matches!(error, StoreError::Link(_)), "{error}");
    assert!(host.path("instances/i-1.json").is_symlink());
}

#[test]
fn two_files_for_one_instance_are_told_and_not_guessed() {
    let host = Host::new();
    let text = String::from_utf8(instance("i-1", 1, "tap1")).unwrap();
    host.write("instances/a.json", &text);
    host.write("instances/b.json", &text);
    let error = host.store.delete_instance(&id("i-1")).unwrap_err().to_string();
    assert!(error.contains("instances/a.json and instances/b.json"), "{error}");
}

#[test]
fn a_role_goes_by_name_or_arn_and_not_while_it_is_named() {
    let host = Host::new();
    let store = &host.store;
    let anything = &Expect::Anything;
    let web = Key::Role("web".to_owned());
    store.put(&web, &role("1", "web"), anything).unwrap();
    // By its name it is the first account's, which nobody else's takes the place of.
    let error = store
        .put(&web, &role("2", "web"), anything)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Arn: is not that of role web in roles/web.json"),
        "{error}"
    );
    let foreign = Key::Role("arn:aws:iam::2:role/web".to_owned());
    store.put(&foreign, &role("2", "web"), anything).unwrap();
    assert_eq!(host.names("roles"), ["web.2.json", "web.json"]);
    assert!(matches!(store.get(&web), Err(StoreError::Ambiguous { .. })));
    store.delete(&foreign, anything).unwrap();
    assert_eq!(
        store.get(&web).unwrap().document["Arn"],
        "arn:aws:iam::1:role/web"
    );

    let servers = Key::InstanceProfile("servers".to_owned());
    store
        .put(&servers, &profile("servers", Some("web")), anything)
        .unwrap();
    let error = store.delete(&web, anything).unwrap_err().to_string();
    assert_eq!(
        error,
        "role web is in use: instance-profiles/servers.json names it"
    );
    assert!(
        store
            .delete(&servers, anything)
            .unwrap_err()
            .to_string()
            .contains("has a role in it")
    );
    store.put(&servers, &profile("servers", None), anything).unwrap();
    store.delete(&web, anything).unwrap();
    store.delete(&servers, anything).unwrap();
    assert!(store.list(Kind::Role).unwrap().is_empty());
}
