//! Request targets, through the tree of the instance that has everything.

use imds_agent::imds::{
    path::Path,
    tree::{self, Answer, View},
};

use crate::service::{World, now};

/// `data` is a target. What a listing names is there, under the path and with a slash more or less.
pub fn run(data: &[u8]) {
    let Ok(target) = str::from_utf8(data) else { return };
    let Some(body) = get(World::full(), target) else {
        return;
    };
    let path = target.split('?').next().unwrap_or_default();
    // An absolute target may have no path of its own to put a slash behind.
    if path.starts_with('/') {
        assert_eq!(
            get(World::full(), &format!("{path}/")).as_ref(),
            Some(&body),
            "with a slash more"
        );
        assert_eq!(
            get(World::full(), &format!("//{path}")).as_ref(),
            Some(&body),
            "with slashes before it"
        );
        check_listing(World::full(), path, &body);
    }
}

/// The body at `target`, or nothing. What is not there leaves nothing behind.
pub fn get(world: &World, target: &str) -> Option<Vec<u8>> {
    let caller = world.caller()?;
    let mut out = b"before".to_vec();
    let found = match Path::of(target) {
        None => Answer::Absent,
        Some(path) => tree::answer(&View::new(now(), &caller), path, &mut out),
    };
    let body = out.split_off(6);
    assert_eq!(out, b"before");
    match found {
        Answer::Absent => {
            assert!(body.is_empty());
            None
        }
        Answer::Pending => Some(Vec::new()),
        Answer::Found(_) => Some(body),
    }
}

/// Under a leaf there is nothing, so whatever has a child is a directory, and its body lists its children.
fn check_listing(world: &World, path: &str, body: &[u8]) {
    let Ok(text) = str::from_utf8(body) else { return };
    let is_there: Vec<bool> = children(path, text)
        .map(|child| get(world, &child).is_some())
        .collect();
    assert!(
        !is_there.contains(&true) || !is_there.contains(&false),
        "{path} lists what is not there: {text:?}"
    );
}

/// Where the lines of a listing lead.
pub fn children(path: &str, listing: &str) -> impl Iterator<Item = String> {
    let path = path.trim_end_matches('/');
    listing.split('\n').map(move |line| match line.split_once('=') {
        // The one listing that names its children by number.
        Some((index, _)) if path.ends_with("/public-keys") => format!("{path}/{index}/"),
        _ => format!("{path}/{line}"),
    })
}
