use serde_json::{Value as Json, json};

use super::*;
use crate::{
    imds::{Caller, identity::Published},
    now::Now,
    registry::{Instance, instance::MetadataOptions, snapshot::Member},
};

/// The row that the trie has at a row's own path.
fn row_at(path: &str) -> Option<&'static Row> {
    let mut node: &Node = &TREE;
    for segment in path.split('/') {
        let Node::Directory(directory) = node else {
            return None;
        };
        node = match Placeholder::of(segment) {
            Some(wanted) => {
                let (placeholder, child) = directory.placeholder.as_ref()?;
                (*placeholder == wanted).then_some(&**child)?
            }
            None => &directory.named.iter().find(|(name, _)| *name == segment)?.1,
        };
    }
    match node {
        Node::Leaf(row) => Some(row),
        Node::Directory(_) => None,
    }
}

#[test]
fn every_row_has_its_place() {
    for row in ROWS {
        let found = row_at(row.path).unwrap_or_else(|| panic!("{} is shadowed", row.path));
        assert!(std::ptr::eq(found, row), "{} is there twice", row.path);
    }
}

#[test]
fn placeholders_are_known_and_dates_are_dates() {
    for row in ROWS {
        let braced = row.path.split('/').filter(|segment| segment.contains('{'));
        for segment in braced {
            assert!(Placeholder::of(segment).is_some(), "{}", row.path);
        }
        let is_date = row.first.len() == 10 && row.first.parse::<jiff::civil::Date>().is_ok();
        assert!(is_date || row.first == "1.0", "{}: {}", row.path, row.first);
    }
}

/// An instance with as many tags and interfaces as said, every fifth of which has a public address.
fn instance(tags: usize, interfaces: usize) -> Member {
    let tags: Vec<Json> = (0..tags)
        .map(|number| json!({ "Key": format!("key-{number:04}"), "Value": format!("value {number}") }))
        .collect();
    let interfaces: Vec<Json> = (0..interfaces)
        .map(|number| {
            json!({
                "MacAddress": format!("02:00:00:00:{:02x}:{:02x}", number / 256, number % 256),
                "PrivateIpAddress": "10.0.0.2",
            })
        })
        .collect();
    let instance: Instance = serde_json::from_value(json!({
        "InstanceId": "i-1",
        "Tags": tags,
        "NetworkInterfaces": interfaces,
        "MetadataOptions": { "InstanceMetadataTags": "enabled" },
    }))
    .unwrap();
    Member {
        options: instance.metadata_options.or(MetadataOptions::default()),
        instance,
        instance_profile: None,
        role: None,
        last_modified: Timestamp::UNIX_EPOCH,
    }
}

/// The body at `path`, and the steps that it took to find it.
fn ask(root: &Node, member: &Member, path: &str) -> (Option<String>, u32) {
    let identities = Published::default();
    let caller = Caller {
        identities: &identities,
        member,
        interface: &member.instance.network_interfaces[0],
        role_state: None,
        identity_state: None,
    };
    let view = View::new(
        Now {
            monotonic: Duration::ZERO,
            unix: Duration::ZERO,
        },
        &caller,
    );
    let mut out = Vec::new();
    steps::take();
    let answer = answer_from(root, &view, Path::of(path).unwrap(), &mut out);
    let found = (answer != Answer::Absent).then(|| String::from_utf8(out).unwrap());
    (found, steps::take())
}

#[test]
fn two_thousand_paths_cost_a_request_no_more_than_fifty() {
    let (small, large) = (instance(4, 2), instance(1000, 1000));
    let paths_of = |member: &Member| {
        let instance = &member.instance;
        instance.tags.len() + 7 * instance.network_interfaces.len()
    };
    assert!(paths_of(&small) < 50 && paths_of(&large) > 2000);
    for path in [
        "instance-id",
        "placement/region",
        "mac",
        "nothing",
        "",
        "network/",
        "network/interfaces",
        "public-keys/0/openssh-key",
        "tags",
    ] {
        let path = format!("/latest/meta-data/{path}");
        assert_eq!(ask(&TREE, &large, &path), ask(&TREE, &small, &path), "{path}");
    }
    // What is one of many is found by halving: log2(1000) - log2(2) is 9.
    for (path, in_small, in_large) in [
        ("tags/instance", "key-0003", "key-0997"),
        (
            "network/interfaces/macs",
            "02:00:00:00:00:01",
            "02:00:00:00:03:e7",
        ),
    ] {
        let leaf = if path.starts_with("tags") { "" } else { "/mac" };
        let steps = |member: &Member, name: &str| {
            let (found, steps) = ask(&TREE, member, &format!("/latest/meta-data/{path}/{name}{leaf}"));
            assert!(found.is_some(), "{path}/{name}");
            steps
        };
        let more = steps(&large, in_large).saturating_sub(steps(&small, in_small));
        assert!(more <= 9, "{path}: {more} steps more");
        let absent = |member: &Member| ask(&TREE, member, &format!("/latest/meta-data/{path}/zz{leaf}")).1;
        assert!(absent(&large).saturating_sub(absent(&small)) <= 9, "{path}");
    }
    // A listing costs its lines.
    let (listing, steps) = ask(&TREE, &large, "/latest/meta-data/tags/instance/");
    assert_eq!(listing.unwrap().lines().count(), 1000);
    assert!(steps < 1000 + 50, "{steps} steps");
}

#[test]
fn a_table_of_two_thousand_rows_costs_a_path_no_more_than_one_of_fifty() {
    let table = |rows: usize| -> Node {
        let rows: Vec<Row> = (0..rows)
            .map(|number| Row {
                path: format!("meta-data/{:02}/{:02}", number / 50, number % 50).leak(),
                first: "1.0",
                value: Value::Text(|view, _| Some(view.instance.instance_id.as_str())),
                kind: Kind::String,
                absent: "never",
            })
            .collect();
        Node::build(rows.leak())
    };
    let member = instance(0, 1);
    let (small, large) = (table(50), table(2000));
    for path in ["00/49", "00/00", "00/nothing", "00"] {
        let path = format!("/latest/meta-data/{path}");
        let ((in_small, few), (in_large, many)) = (ask(&small, &member, &path), ask(&large, &member, &path));
        assert_eq!(in_small, in_large, "{path}");
        // Forty directories instead of one: halved six times.
        assert!(many <= few + 6, "{path}: {many} steps, not {few}");
    }
}
