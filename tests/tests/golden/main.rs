//! Golden exchanges: the bytes that a guest sends and gets, with HTTP and its meaning run in process.
//!
//! `golden/exchanges/` has conversations, see [`script`]; `golden/trees/` has everything that an instance can see, see
//! [`crawl`]; `golden/instances/` has the instances; what the documents say of the tree is held by [`features`], and of the metrics by
//! [`metrics`].
//! `GOLDEN_BLESS=1` writes what is observed instead of comparing it:
//! then the difference is to be read against the wire contract.

mod allocations;
mod contract;
mod crawl;
mod features;
mod metrics;
mod script;
mod streams;
mod world;

use std::{fs, path::Path};

use imds_agent::registry::HttpEndpoint;

/// Where the golden files are.
fn golden(directory: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(directory)
}

/// Compares `observed` with the golden file, or writes it there. Returns what is wrong.
fn check(path: &Path, observed: &str) -> Option<String> {
    if std::env::var_os("GOLDEN_BLESS").is_some() {
        fs::write(path, observed).expect("a golden file that can be written");
        return None;
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    if expected == observed {
        return None;
    }
    let mut lines = expected.lines().zip(observed.lines()).enumerate();
    let (number, (expected, observed)) = lines
        .find(|(_, (expected, observed))| expected != observed)
        .unwrap_or((
            expected.lines().count().min(observed.lines().count()),
            ("(end)", "(end)"),
        ));
    let name = path.file_name().unwrap_or_default().display();
    Some(format!(
        "{name}:{}\n  expected {expected}\n  observed {observed}",
        number + 1
    ))
}

/// The files of `directory` with this extension, sorted.
fn files(directory: &str, extension: &str) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(golden(directory)).expect("a directory of golden files");
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|is| is == extension))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no golden file in {directory}");
    paths
}

#[test]
fn exchanges_in_whole_requests() {
    exchanges(usize::MAX);
}

#[test]
fn exchanges_byte_by_byte() {
    exchanges(1);
}

fn exchanges(piece_bytes: usize) {
    let wrong: Vec<_> = files("exchanges", "exchange")
        .iter()
        .filter_map(|path| {
            let text = fs::read_to_string(path).expect("a golden file");
            check(path, &script::run(&text, piece_bytes))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn trees() {
    let wrong: Vec<_> = files("instances", "json")
        .iter()
        .filter_map(|path| {
            let world = world::World::read(path);
            if world.member.options.http_endpoint == HttpEndpoint::Disabled {
                return None;
            }
            let name = path.file_stem().expect("a name").display();
            let path = golden("trees").join(format!("{name}.tree"));
            check(&path, &crawl::describe(&world))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
