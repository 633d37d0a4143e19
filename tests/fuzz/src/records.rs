//! Record files of instances, roles and instance profiles.

use std::sync::Arc;

use imds_agent::{
    imds::path::{LATEST, VERSIONS},
    registry::{
        record::{self, Kind, Record, Rules},
        records::{FileKey, Records},
    },
};
use jiff::Timestamp;

use crate::{
    paths::{children, get},
    service::World,
};

/// A role and an instance profile that records may name.
const ROLE: &str = include_str!("../../../docs/examples/roles/web.json");
const INSTANCE_PROFILE: &str = include_str!("../../../docs/examples/instance-profiles/web-servers.json");

/// The first byte of `data` says the kind and a version of the tree, the rest is the file. An instance that is good gets a whole
/// tree, and so does one with a role that is: nothing is listed, in that version or the latest, that is not there.
pub fn run(data: &[u8]) {
    let Some((&how, file)) = data.split_first() else {
        return;
    };
    let how = usize::from(how);
    let kind = Kind::ALL[how % Kind::ALL.len()];
    let parsed = record::parse(kind, file, &Rules::default());
    let is_good = parsed.is_ok();
    let mut records = Records::new(Rules::default());
    let files = [
        (Kind::Role, "web.json", ROLE.as_bytes()),
        (
            Kind::InstanceProfile,
            "web-servers.json",
            INSTANCE_PROFILE.as_bytes(),
        ),
        (kind, "file.json", file),
    ];
    for (kind, name, bytes) in files {
        let key = FileKey {
            kind,
            name: name.into(),
        };
        records.handle_file(key, bytes, Timestamp::UNIX_EPOCH);
    }
    let snapshot = records.commit().expect("two files are good");
    for problem in records.problems() {
        assert!(!problem.to_string().is_empty());
    }
    let versions = [LATEST, VERSIONS[how / Kind::ALL.len() % VERSIONS.len()]];
    if let Ok((Record::Role(role), _)) = parsed {
        let mut member = World::full().member.clone();
        member.role = Some(Arc::from(role));
        return crawl_versions(&World::of(member), versions);
    }
    let of_file = if kind == Kind::Instance {
        usize::from(is_good)
    } else {
        0
    };
    assert_eq!(snapshot.instances.len(), of_file);
    for member in snapshot.instances.values() {
        crawl_versions(&World::of((**member).clone()), versions);
    }
}

fn crawl_versions(world: &World, versions: [&str; 2]) {
    for version in versions {
        crawl(world, &format!("/{version}"), 0);
    }
}

/// More levels than the tree has.
const DEPTH_MAX: usize = 12;

fn crawl(world: &World, path: &str, depth: usize) {
    assert!(depth < DEPTH_MAX, "{path}");
    let Some(listing) = get(world, path) else {
        // An instance without an interface cannot ask, and a version may be empty.
        assert_eq!(depth, 0);
        return;
    };
    let listing = String::from_utf8(listing).expect("a listing is text");
    for child in children(path, &listing) {
        let is_directory =
            child.ends_with('/') || matches!(&*child.replace(path, ""), "/dynamic" | "/meta-data");
        if is_directory {
            crawl(world, &child, depth + 1);
        } else {
            assert!(get(world, &child).is_some(), "{child} is listed");
        }
    }
}
