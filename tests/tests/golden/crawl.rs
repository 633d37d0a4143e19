//! Everything that an instance can see: the tree followed by its own listings, as cloud-init follows it, and what is
//! served without being listed.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use imds_agent::imds::{path::VERSIONS, tree::UNLISTED};

use super::world::{Server, World, now};

/// The values in `latest`, then what each version adds to the one before it.
pub fn describe(world: &World) -> String {
    let mut text = String::from("# Values in latest\n");
    for (path, body) in crawl(world, "latest") {
        _ = writeln!(text, "{path} = {}", body.escape_ascii());
    }
    let mut before = BTreeSet::new();
    for version in VERSIONS {
        _ = writeln!(text, "\n# {version}");
        let paths: BTreeSet<_> = crawl(world, version).into_iter().map(|(path, _)| path).collect();
        for gone in before.difference(&paths) {
            _ = writeln!(text, "- {gone}");
        }
        for added in paths.difference(&before) {
            _ = writeln!(text, "+ {added}");
        }
        before = paths;
    }
    text
}

/// Every path of a version with its body, directories included: what is listed must be there.
pub fn crawl(world: &World, version: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let root = get(world, &format!("/{version}/")).expect("a version that exists");
    for name in lines(&root) {
        match name {
            "dynamic" | "meta-data" => directory(world, version, &format!("{name}/"), &mut found),
            _ => leaf(world, version, name, &mut found),
        }
    }
    found
}

fn directory(world: &World, version: &str, path: &str, found: &mut Vec<(String, Vec<u8>)>) {
    let listing = get(world, &format!("/{version}/{path}")).unwrap_or_else(|| panic!("{path} is listed"));
    let without_slash = get(world, &format!("/{version}/{}", path.trim_end_matches('/')));
    assert_eq!(without_slash.as_ref(), Some(&listing), "{path} without its slash");
    found.push((path.to_owned(), listing.clone()));
    for name in lines(&listing) {
        match name.split_once('=') {
            Some((index, _)) if path.ends_with("/public-keys/") => {
                directory(world, version, &format!("{path}{index}/"), found);
            }
            _ if name.ends_with('/') => directory(world, version, &format!("{path}{name}"), found),
            _ => leaf(world, version, &format!("{path}{name}"), found),
        }
    }
    for name in UNLISTED {
        let path = format!("{path}{name}/");
        if get(world, &format!("/{version}/{path}")).is_some() {
            directory(world, version, &path, found);
        }
    }
}

fn leaf(world: &World, version: &str, path: &str, found: &mut Vec<(String, Vec<u8>)>) {
    let body = get(world, &format!("/{version}/{path}")).unwrap_or_else(|| panic!("{path} is listed"));
    let with_slash = get(world, &format!("/{version}//{path}/"));
    assert_eq!(with_slash.as_ref(), Some(&body), "{path} with a slash");
    found.push((path.to_owned(), body));
}

fn lines(listing: &[u8]) -> Vec<&str> {
    let listing = str::from_utf8(listing).expect("a listing is text");
    assert!(!listing.ends_with('\n'), "a listing ends without a newline");
    listing.split('\n').collect()
}

/// The body of a 200, or nothing for a 404; what is not there yet is `(pending)`.
fn get(world: &World, path: &str) -> Option<Vec<u8>> {
    let mut server = Server::new();
    server.set_caller(
        World {
            member: copy(&world.member),
            role_state: world.role_state.clone(),
            identity_state: world.identity_state.clone(),
        },
        0,
    );
    let now = now(Duration::ZERO);
    let token = server.mint(now, 60);
    let request = format!("GET {path} HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    let response = server.exchange(now, request.as_bytes());
    let end = response
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("a head");
    match &response[9..12] {
        b"200" => Some(response[end + 4..].to_vec()),
        b"404" => None,
        b"503" => Some(b"(pending)".to_vec()),
        status => panic!("{path}: {}", status.escape_ascii()),
    }
}

fn copy(member: &imds_agent::registry::snapshot::Member) -> imds_agent::registry::snapshot::Member {
    imds_agent::registry::snapshot::Member {
        instance: member.instance.clone(),
        options: member.options,
        instance_profile: member.instance_profile.clone(),
        role: member.role.clone(),
        last_modified: member.last_modified,
    }
}
