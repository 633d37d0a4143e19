use serde_json::json;

use super::*;
use crate::{
    identity_files,
    registry::{Instance, MetadataOptions},
};

fn keys() -> IdentityKeys {
    let directory = tempfile::tempdir().unwrap();
    identity_files::load_or_create(
        directory.path(),
        "host-1",
        std::time::Duration::from_secs(1_795_248_000),
    )
    .unwrap()
}

fn member(id: &str, image: &str) -> Arc<Member> {
    let record = json!({
        "InstanceId": id,
        "ImageId": image,
        "NetworkInterfaces": [{ "MacAddress": "52:54:00:00:00:01" }]
    });
    let instance: Instance = serde_json::from_value(record).unwrap();
    Arc::new(Member {
        options: instance.metadata_options.or(MetadataOptions::default()),
        instance,
        instance_profile: None,
        role: None,
        last_modified: jiff::Timestamp::UNIX_EPOCH,
    })
}

fn snapshot(members: &[&Arc<Member>]) -> Snapshot {
    let of_id = |member: &&Arc<Member>| (member.instance.instance_id.clone(), Arc::clone(member));
    Snapshot {
        instances: members.iter().map(of_id).collect(),
        ..Snapshot::default()
    }
}

fn get(published: &Published, member: &Member) -> Option<Arc<identity::SignedIdentity>> {
    published.get(&member.instance.instance_id, &identity::document(member))
}

#[test]
fn each_document_is_signed_once() {
    let published = Arc::new(Published::default());
    let mut queue = Queue::new(keys(), Arc::clone(&published));
    let [first, second] = [member("i-1", "ami-1"), member("i-2", "ami-1")];
    queue.handle_snapshot(&snapshot(&[&first, &second]));
    queue.sign_next().unwrap();
    queue.sign_next().unwrap();
    assert!(queue.pending.is_empty());
    let signed = get(&published, &first).unwrap();
    assert_eq!(
        *signed,
        identity::sign(&queue.keys, &identity::document(&first)).unwrap()
    );

    // A record that says the same in what the document tells keeps its signature; one that is the same is not looked at.
    let same = member("i-1", "ami-1");
    queue.handle_snapshot(&snapshot(&[&same, &second]));
    assert_eq!(queue.pending.len(), 1);
    queue.sign_next().unwrap();
    assert!(queue.pending.is_empty());
    assert!(Arc::ptr_eq(&get(&published, &same).unwrap(), &signed));
}

#[test]
fn changed_document_has_no_signature_until_it_has_its_own() {
    let published = Arc::new(Published::default());
    let mut queue = Queue::new(keys(), Arc::clone(&published));
    let [old, new] = [member("i-1", "ami-1"), member("i-1", "ami-2")];
    assert!(get(&published, &old).is_none(), "nobody knows the instance");
    queue.handle_snapshot(&snapshot(&[&old]));
    queue.sign_next().unwrap();
    assert!(
        get(&published, &new).is_none(),
        "the registry is ahead of the signer"
    );
    assert!(get(&published, &old).is_some());

    queue.handle_snapshot(&snapshot(&[&new]));
    queue.sign_next().unwrap();
    assert!(get(&published, &old).is_none());
    assert_eq!(
        *get(&published, &new).unwrap().document,
        *identity::document(&new)
    );

    queue.handle_snapshot(&snapshot(&[]));
    assert!(get(&published, &new).is_none(), "the instance is gone");
}

#[test]
fn asked_document_comes_first() {
    let published = Arc::new(Published::default());
    let mut queue = Queue::new(keys(), Arc::clone(&published));
    let members: Vec<_> = (0..50)
        .map(|number| member(&format!("i-{number}"), "ami-1"))
        .collect();
    queue.handle_snapshot(&snapshot(&members.iter().collect::<Vec<_>>()));
    let last = queue.pending.back().unwrap().clone();
    let last = members
        .iter()
        .find(|member| member.instance.instance_id == last)
        .unwrap();
    assert!(get(&published, last).is_none());
    queue.sign_next().unwrap();
    assert!(get(&published, last).is_some());
    assert_eq!(queue.pending.len(), 49);
}

#[test]
fn thread_signs_and_ends() {
    let published = Arc::new(Published::default());
    let signer = Signer::start(keys(), Arc::clone(&published)).unwrap();
    let members: Vec<_> = (0..20)
        .map(|number| member(&format!("i-{number}"), "ami-1"))
        .collect();
    signer.handle_snapshot(Arc::new(snapshot(&members.iter().collect::<Vec<_>>())));
    while !members.iter().all(|member| get(&published, member).is_some()) {
        thread::yield_now();
    }
    drop(signer);
    assert_eq!(Arc::strong_count(&published), 1, "the thread has ended");
}
