//! The wire contract's own tables, held against the table in code.

use std::collections::BTreeMap;

use imds_agent::imds::{
    path::VERSIONS,
    tree::{Kind, ROWS, Row},
};

use super::{crawl, world::World};

const CONTRACT: &str = include_str!("../../../docs/wire-contract.md");

/// Categories of the contract that are not rows, and why.
const NOT_ROWS: [(&str, &str); 1] = [("metrics/", "the directory of metrics/vhostmd")];

/// Rows that no table of the contract has: our own extensions.
const OURS: [&str; 1] = ["meta-data/tags/instance-index"];

/// The first version of `network/interfaces/macs/<mac>/…`.
const PER_INTERFACE_SINCE: &str = "2011-01-01";

/// What the contract says of one path.
struct ContractRow {
    first: Option<String>,
    kind: Option<Kind>,
}

/// The contract's path templates, with dates and types where it has them.
fn contract_rows() -> BTreeMap<String, ContractRow> {
    let mut rows = BTreeMap::new();
    for line in section("### c.1", "### c.2")
        .lines()
        .chain(section("### c.3", "### c.4").lines())
    {
        let cells: Vec<_> = line
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ']))
            .collect();
        let [paths, types, first, ..] = cells[..] else {
            continue;
        };
        // Of several paths in a row, the last one is the leaf, and its type stands last.
        let leaf_type = types.split([',', '/']).next_back().unwrap_or_default().trim();
        for path in paths.split('`').skip(1).step_by(2) {
            let row = ContractRow {
                first: date(first),
                kind: if path.ends_with('/') {
                    None
                } else {
                    kind(leaf_type)
                },
            };
            rows.insert(path.to_owned(), row);
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
            let row = ContractRow {
                first: own.clone().or_else(|| of_group.clone()),
                kind: None,
            };
            rows.insert(format!("network/interfaces/macs/<mac>/{name}"), row);
        }
    }
    for undated in group {
        let row = ContractRow {
            first: None,
            kind: None,
        };
        rows.insert(format!("network/interfaces/macs/<mac>/{undated}"), row);
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

fn kind(word: &str) -> Option<Kind> {
    Some(match word.split(' ').next()? {
        "S" => Kind::String,
        "L" => Kind::List,
        "J" => Kind::Json,
        "B" => Kind::Bytes,
        _ => return None,
    })
}

#[test]
fn every_category_of_the_contract_is_a_row_of_its_date_and_type() {
    let (mut dates, mut kinds) = (0, 0);
    for (path, ContractRow { first, kind }) in contract_rows() {
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
            dates += 1;
        }
        if let Some(kind) = kind {
            assert_eq!(row.kind, kind, "{path}");
            kinds += 1;
        }
    }
    assert!(dates > 55, "only {dates} dates of the contract were read");
    assert!(kinds > 40, "only {kinds} types of the contract were read");
}

#[test]
fn every_row_is_in_the_contract_or_ours() {
    let contract: Vec<_> = contract_rows().keys().filter_map(|path| template(path)).collect();
    for row in ROWS {
        let is_ours = OURS.contains(&row.path);
        assert_ne!(
            contract.iter().any(|path| path == row.path),
            is_ours,
            "{}",
            row.path
        );
    }
    for (path, _) in NOT_ROWS {
        assert!(
            contract_rows().contains_key(path),
            "{path} is not in the contract"
        );
        let is_row = template(path).is_some_and(|template| ROWS.iter().any(|row| row.path == template));
        assert!(!is_row, "{path} is a row");
    }
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
            .replace("<eia-id>", "{eia-id}")
            .replace("<id>", "{elastic-gpu-id}")
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
    let paths = paths("full");
    for row in ROWS {
        assert!(is_there(row, &paths), "{}", row.path);
    }
}

/// A record says at least the id and the MAC: then there is what is said to be absent never, and nothing else.
#[test]
fn the_barest_instance_has_the_rows_that_are_never_absent() {
    let paths = paths("bare");
    for row in ROWS {
        // It has one interface, which is its primary one for want of another.
        let is_expected = row.absent == "never" || row.path == "meta-data/mac";
        assert_eq!(is_there(row, &paths), is_expected, "{}", row.path);
    }
}

/// Every path that the instance of that name has.
fn paths(name: &str) -> Vec<String> {
    let found = crawl::crawl(&World::named(name), "latest");
    found.into_iter().map(|(path, _)| path).collect()
}

/// Whether one of `paths` is of `row`.
fn is_there(row: &Row, paths: &[String]) -> bool {
    paths.iter().any(|path| {
        let (template, path) = (row.path.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template
                .zip(path)
                .all(|(template, segment)| template.starts_with('{') || template == segment)
    })
}
