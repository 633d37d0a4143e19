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

fn id(member: &Member) -> &InstanceId {
    &member.instance.instance_id
}

fn snapshot(members: &[&Arc<Member>]) -> Arc<Snapshot> {
    let of_id = |member: &&Arc<Member>| (id(member).clone(), Arc::clone(member));
    Arc::new(Snapshot {
        instances: members.iter().map(of_id).collect(),
        ..Snapshot::default()
    })
}

fn get(published: &Published, member: &Member, part: Part) -> Option<Arc<Signatures>> {
    published.get(id(member), &identity::document(member), part)
}

/// A queue whose published slots tell of who wants something, and who that is.
fn queue() -> (Queue, Arc<Published>, mpsc::Receiver<InstanceId>) {
    let published = Arc::new(Published::default());
    let (wanted, told) = mpsc::channel();
    published.tell(Box::new(move |instance| wanted.send(instance.clone()).unwrap()));
    (Queue::new(keys(), Arc::clone(&published)), published, told)
}

/// Signs until nothing is left; how often it took longer than a moment.
fn sign_all(queue: &mut Queue) -> usize {
    queue.publish();
    let mut steps = 0;
    while !queue.pending.is_empty() {
        let before = queue.pending.wanted.len() + queue.pending.rsa.len() + queue.pending.dsa.len();
        queue.sign_next().unwrap();
        steps += usize::from(before > 0);
    }
    steps
}

#[test]
fn who_has_a_tap_is_signed_and_nobody_else() {
    let (mut queue, published, _told) = queue();
    let [first, second] = [member("i-1", "ami-1"), member("i-2", "ami-1")];
    queue.handle_snapshot(snapshot(&[&first, &second]));
    queue.handle_bound(id(&first));
    queue.handle_bound(&"i-unknown".parse().unwrap());
    assert_eq!(sign_all(&mut queue), 1);
    let signed = get(&published, &first, Part::Rsa2048).unwrap();
    let expected = Signatures::new(&queue.keys, &identity::document(&first)).unwrap();
    assert_eq!(
        *signed, expected,
        "and it runs already, so nobody boots who wants more"
    );
    assert!(get(&published, &second, Part::Signature).is_none());

    // A record that says the same in what the document tells keeps its signatures; one that is the same is not looked at.
    let same = member("i-1", "ami-1");
    queue.handle_snapshot(snapshot(&[&same, &second]));
    assert_eq!(queue.pending.rsa.len(), 1);
    sign_all(&mut queue);
    assert!(Arc::ptr_eq(
        &get(&published, &same, Part::Rsa2048).unwrap(),
        &signed
    ));
}

#[test]
fn one_more_tap_copies_nothing_of_the_others() {
    let (mut queue, published, _told) = queue();
    let [first, second] = [member("i-1", "ami-1"), member("i-2", "ami-1")];
    queue.handle_snapshot(snapshot(&[&first, &second]));
    queue.handle_bound(id(&first));
    queue.publish();
    let with_first_alone = queue.slots.clone();
    queue.handle_bound(id(&second));
    queue.publish();
    let slot = &queue.entries[id(&first)].slot;
    assert_eq!(Arc::strong_count(slot), 2, "in its entry, and once in all sets");
    assert_eq!((with_first_alone.size(), queue.slots.size()), (1, 2));

    queue.handle_snapshot(snapshot(&[&second]));
    sign_all(&mut queue);
    assert_eq!(queue.slots.size(), 1);
    assert!(get(&published, &second, Part::Rsa2048).is_some());
}

#[test]
fn changed_document_has_no_signature_until_it_has_its_own() {
    let (mut queue, published, _told) = queue();
    let [old, new] = [member("i-1", "ami-1"), member("i-1", "ami-2")];
    queue.handle_snapshot(snapshot(&[&old]));
    queue.handle_bound(id(&old));
    sign_all(&mut queue);
    assert!(
        get(&published, &new, Part::Rsa2048).is_none(),
        "the registry is ahead of the signer"
    );
    assert!(get(&published, &old, Part::Rsa2048).is_some());

    queue.handle_snapshot(snapshot(&[&new]));
    sign_all(&mut queue);
    assert!(get(&published, &old, Part::Rsa2048).is_none());
    assert!(get(&published, &new, Part::Rsa2048).is_some());

    queue.handle_snapshot(snapshot(&[]));
    sign_all(&mut queue);
    assert!(
        get(&published, &new, Part::Rsa2048).is_none(),
        "the instance is gone"
    );
}

#[test]
fn guest_that_boots_finds_everything_signed_after_everybodys_rsa() {
    let (mut queue, published, _told) = queue();
    let members = ["i-1", "i-2"].map(|id| member(id, "ami-1"));
    queue.handle_snapshot(snapshot(&members.each_ref()));
    queue.is_listed = true;
    members.iter().for_each(|member| queue.handle_bound(id(member)));
    queue.publish();
    let has = |part| {
        members
            .each_ref()
            .map(|member| get(&published, member, part).is_some())
    };
    queue.sign_next().unwrap();
    queue.sign_next().unwrap();
    assert_eq!((has(Part::Rsa2048), has(Part::Dsa2048)), ([true; 2], [false; 2]));
    queue.sign_next().unwrap();
    assert_eq!(has(Part::Dsa2048), [true, false]);
    sign_all(&mut queue);
    assert_eq!(has(Part::Dsa2048), [true; 2]);
}

#[test]
fn guest_that_shows_life_gets_everything_next() {
    let (mut queue, published, told) = queue();
    let members: Vec<_> = (0..50)
        .map(|number| member(&format!("i-{number}"), "ami-1"))
        .collect();
    queue.handle_snapshot(snapshot(&members.iter().collect::<Vec<_>>()));
    members.iter().for_each(|member| queue.handle_bound(id(member)));
    queue.publish();
    let last = members.last().unwrap();
    for _ in 0..3 {
        published.shows_life(id(last));
    }
    assert_eq!(
        told.try_iter().collect::<Vec<_>>(),
        [id(last).clone()],
        "said once"
    );
    queue.handle_wanted(id(last).clone());
    queue.sign_next().unwrap();
    assert!(get(&published, last, Part::Dsa2048).is_some());
    assert_eq!(queue.pending.rsa.len(), 50);
}

#[test]
fn who_asks_in_vain_is_told_of_once_until_it_is_signed() {
    let (mut queue, published, told) = queue();
    let one = member("i-1", "ami-1");
    assert!(get(&published, &one, Part::Rsa2048).is_none());
    assert_eq!(told.try_iter().count(), 0, "nobody knows the instance");
    queue.handle_snapshot(snapshot(&[&one]));
    queue.handle_bound(id(&one));
    queue.publish();
    for _ in 0..3 {
        assert!(get(&published, &one, Part::Rsa2048).is_none());
    }
    assert_eq!(told.try_iter().count(), 1);
    sign_all(&mut queue);
    for _ in 0..3 {
        assert!(get(&published, &one, Part::Rsa2048).is_some());
        assert!(get(&published, &one, Part::Dsa2048).is_none());
    }
    assert_eq!(told.try_iter().count(), 1);
    queue.handle_wanted(id(&one).clone());
    sign_all(&mut queue);
    assert!(get(&published, &one, Part::Dsa2048).is_some());
    assert_eq!(told.try_iter().count(), 0);
}

#[test]
fn thread_signs_what_is_wanted_and_ends() {
    let published = Arc::new(Published::default());
    let own_nice = || nice_of(thread::current().name().unwrap_or_default());
    let before = own_nice();
    assert!(before.is_some());
    let signer = Signer::start(keys(), Arc::clone(&published)).unwrap();
    let members: Vec<_> = (0..5)
        .map(|number| member(&format!("i-{number}"), "ami-1"))
        .collect();
    signer.handle_snapshot(snapshot(&members.iter().collect::<Vec<_>>()));
    members
        .iter()
        .for_each(|member| signer.handle_bound(id(member).clone()));
    signer.handle_listed();
    let wait_for = |part| {
        while !members
            .iter()
            .all(|member| get(&published, member, part).is_some())
        {
            thread::yield_now();
        }
    };
    wait_for(Part::Rsa2048);
    // Asking is what makes it.
    wait_for(Part::Dsa2048);
    assert_eq!(nice_of("imds-identity"), Some(19));
    assert_eq!(own_nice(), before, "and nobody else has to wait");
    drop(signer);
    published.shows_life(id(&members[0]));
    assert_eq!(Arc::strong_count(&published), 1, "the thread has ended");
}

/// How nice this process's thread of that name is, which the kernel cuts: proc_pid_stat(5), the 19th field.
fn nice_of(name: &str) -> Option<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let name = format!("({}", name.get(..15).unwrap_or(name));
    stats.into_iter().find_map(|stat| {
        let (head, fields) = stat.rsplit_once(") ")?;
        let is_it = head.ends_with(&name);
        is_it.then(|| fields.split(' ').nth(16)?.parse().ok()).flatten()
    })
}
