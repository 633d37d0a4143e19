//! The wire contract's own tables, held against the table in code.

use std::collections::BTreeMap;

use imds_agent::imds::{path::VERSIONS, tree::ROWS};

use super::{crawl, world::World};

const CONTRACT: &str = include_str!("../../../docs/wire-contract.md");

/// Categories of the contract that are not rows yet, and why.
const NOT_ROWS: [(&str, &str); 16] = [
    ("autoscaling/target-lifecycle-state", "a live event"),
    ("elastic-gpus/associations/<id>", "removed from EC2"),
    ("elastic-inference/associations/<eia-id>", "removed from EC2"),
    ("events/maintenance/history", "a live event"),
    ("events/maintenance/scheduled", "a live event"),
    ("events/recommendations/rebalance", "a live event"),
    ("hibernation/configured", "no record says it"),
    (
        "identity-credentials/ec2/security-credentials/ec2-instance",
        "no source",
    ),
    ("metrics/", "the directory of metrics/vhostmd"),
    ("profile", "no record says it"),
    ("spot/instance-action", "a live event"),
    ("spot/termination-time", "a live event"),
    ("dynamic/instance-identity/signature", "not signed yet"),
    ("dynamic/instance-identity/pkcs7", "not signed yet"),
    ("dynamic/instance-identity/rsa2048", "not signed yet"),
    ("dynamic/instance-identity/dsa2048", "not signed yet"),
];

/// The first version of `network/interfaces/macs/<mac>/…`.
const PER_INTERFACE_SINCE: &str = "2011-01-01";

/// The contract's path templates, its dates where it has one, by the names of the code's templates.
fn contract_rows() -> BTreeMap<String, Option<String>> {
    let mut rows = BTreeMap::new();
    for line in section("### c.1", "### c.2")
        .lines()
        .chain(section("### c.3", "### c.4").lines())
    {
        let cells: Vec<_> = line
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ']))
            .collect();
        let [paths, _, first, ..] = cells[..] else {
            continue;
        };
        for path in paths.split('`').skip(1).step_by(2) {
            rows.insert(path.to_owned(), date(first));
        }
    }
    // c.2 is prose: groups of names, each with its date behind it.
    let (_, prose) = section("### c.2", "Note on version-true")
        .split_once('\n')
        .expect("the prose");
    let mut group = Vec::new();
    let mut pieces = prose.split('`').skip(1);
    while let (Some(name), Some(text)) = (pieces.next(), pieces.next()) {
        // A mark of provenance is no name.
        if !name.starts_with('[') {
            group.push(name);
        }
        let own = text
            .trim_start()
            .strip_prefix('(')
            .and_then(|text| date(text.get(..10)?));
        let of_group = text.split("**").nth(1).and_then(date);
        let names = match (&own, &of_group) {
            (Some(_), _) => group.split_off(group.len() - 1),
            (None, Some(_)) => std::mem::take(&mut group),
            (None, None) => continue,
        };
        for name in names {
            rows.insert(
                format!("network/interfaces/macs/<mac>/{name}"),
                own.clone().or_else(|| of_group.clone()),
            );
        }
    }
    for undated in group {
        rows.insert(format!("network/interfaces/macs/<mac>/{undated}"), None);
    }
    rows
}

fn section(from: &str, to: &str) -> &'static str {
    let (_, rest) = CONTRACT.split_once(from).expect("the section");
    rest.split_once(to).expect("the next section").0
}

fn date(cell: &str) -> Option<String> {
    (cell == "1.0" || cell.starts_with("20") && cell.len() == 10).then(|| cell.to_owned())
}

#[test]
fn every_category_of_the_contract_is_a_row_of_its_date() {
    let mut checked = 0;
    for (path, first) in contract_rows() {
        if NOT_ROWS.iter().any(|(not, _)| *not == path) {
            continue;
        }
        let Some(template) = template(&path) else { continue };
        let row = ROWS.iter().find(|row| row.path == template);
        let row = row.unwrap_or_else(|| panic!("{path} is no row"));
        if let Some(first) = first {
            // What is under a directory is no older than the directory, which is a row of its own in the contract.
            let first = match path.starts_with("network/interfaces/macs/") {
                true => first.max(PER_INTERFACE_SINCE.to_owned()),
                false => first,
            };
            assert_eq!(row.first, first, "{path}");
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} rows of the contract were read");
}

/// The code's template for a path of the contract; nothing for what is only the listing of a directory.
fn template(path: &str) -> Option<String> {
    if path.starts_with("0=") || path.starts_with('/') || path == "openssh-key" || path == "tags/instance" {
        return None;
    }
    let path = match path {
        "public-keys/" => "public-keys/{index}/openssh-key".to_owned(),
        "iam/security-credentials-extended/" | "iam/security-credentials/" => format!("{path}{{role}}"),
        _ if path.starts_with("block-device-mapping/") => "block-device-mapping/{device}".to_owned(),
        _ => path
            .replace("<mac>", "{mac}")
            .replace("<role>", "{role}")
            .replace("<key>", "{tag}")
            .replace("<public-ip>", "{public-ip}"),
    };
    // The per-interface subtree's own row.
    if path.ends_with("{mac}/…") {
        return None;
    }
    let is_root = path.starts_with("dynamic/") || path == "user-data";
    Some(if is_root {
        path
    } else {
        format!("meta-data/{path}")
    })
}

#[test]
fn versions_are_those_of_the_capture() {
    let (_, rest) = CONTRACT.split_once("Captured Aug 2024: `").expect("the capture");
    let captured: Vec<_> = rest.split_once('`').expect("its end").0.split(' ').collect();
    assert_eq!(captured, VERSIONS);
}

/// So that the golden tree of `full` has a value for everything.
#[test]
fn the_full_instance_has_every_row() {
    let world = World::named("full");
    let paths: Vec<_> = crawl::crawl(&world, "latest")
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    for row in ROWS {
        let is_there = paths.iter().any(|path| {
            let (template, path) = (row.path.split('/'), path.split('/'));
            template.clone().count() == path.clone().count()
                && template
                    .zip(path)
                    .all(|(template, segment)| template.starts_with('{') || template == segment)
        });
        assert!(is_there, "{}", row.path);
    }
}
