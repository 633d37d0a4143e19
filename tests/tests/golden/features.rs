//! What the documents say of the tree, written from the table in code: `docs/metadata-tree.md`, and the table in the
//! README. `GOLDEN_BLESS=1` writes them anew.

use std::{fmt::Write as _, fs, path::PathBuf};

use imds_agent::imds::{
    path::{LATEST, VERSIONS},
    tree::{Kind, ROWS, Row},
};

const PREAMBLE: &str = "\
# The metadata tree

Written from the table in `imds-agent/src/imds/tree/rows.rs`, from which listings and version gating are derived too: a test
compares the two, and `GOLDEN_BLESS=1 cargo test --package imds-tests --test golden` writes this file anew.

Paths are below the version; a segment in braces stands for names of the instance. *Dated* is the first version by EC2's
documentation, *served from* the first one that `GET /` lists: an older version neither lists nor serves the category.
What is *absent* is a 404 and in no listing. Where a date or a category is our own, the [wire contract](wire-contract.md)
says so.

";

/// Around what is generated in the README.
const README_MARKS: [&str; 2] = [
    "<!-- metadata tree: written by tests/tests/golden/features.rs -->\n",
    "<!-- end of metadata tree -->\n",
];

#[test]
fn the_tree_is_documented_as_it_is() {
    let mut document = PREAMBLE.to_owned();
    document.push_str("| path | type | dated | served from | absent when |\n|---|---|---|---|---|\n");
    for row in ROWS {
        let (path, kind, first, absent) = (row.path, kind(row.kind), row.first, row.absent);
        let from = served_from(row);
        _ = writeln!(document, "| `{path}` | {kind} | {first} | {from} | {absent} |");
    }
    assert_eq!(super::check(&root("docs/metadata-tree.md"), &document), None);
}

#[test]
fn the_readme_has_every_category() {
    let path = root("README.md");
    let readme = fs::read_to_string(&path).expect("the README");
    let [begin, end] = README_MARKS;
    let (before, rest) = readme.split_once(begin).expect("where the table begins");
    let (_, after) = rest.split_once(end).expect("where the table ends");
    let observed = format!("{before}{begin}{}{end}{after}", table_of_directories());
    assert_eq!(super::check(&path, &observed), None);
}

/// One line for every directory that has categories of its own.
fn table_of_directories() -> String {
    let mut directories: Vec<(&str, Vec<&str>)> = Vec::new();
    for row in ROWS {
        // `user-data` is in no directory, and what a placeholder stands for belongs to the name before it.
        let path = match row.path.rsplit_once("/{") {
            Some((before, last)) if !last.contains('/') => before,
            _ => row.path,
        };
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        match directories.iter_mut().find(|(is, _)| *is == directory) {
            Some((_, names)) if names.contains(&name) => {}
            Some((_, names)) => names.push(name),
            None => directories.push((directory, vec![name])),
        }
    }
    let mut table = format!(
        "{} categories in {} versions and `{LATEST}`:\n\n| below the version | categories |\n|---|---|\n",
        ROWS.len(),
        VERSIONS.len() - 1
    );
    for (directory, names) in directories {
        let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
        _ = writeln!(table, "| `{directory}/` | {} |", names.join(" "));
    }
    table
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::String => "string",
        Kind::List => "lines",
        Kind::Json => "JSON",
        Kind::Bytes => "bytes",
    }
}

/// The first version of the listing that is not older than the row.
fn served_from(row: &Row) -> &'static str {
    let versions = VERSIONS.iter().find(|version| **version >= row.first);
    versions.expect("`latest` is newer than all")
}

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
