//! The rules of the code that no compiler checks, as [`tables`], and the check of every source against them.

mod links;
mod lints;
mod paths;
mod readme;
mod tables;
mod timers;

use std::{collections::BTreeMap, fs, path::Path as FilePath};

use anyhow::{Context as _, Result, ensure};

use self::{
    paths::{Path, paths},
    tables::{
        CRATES, EMPTY_NAMES, GUEST_FACING, IO, LINES_MAX, MACHINE_PATHS, PANIC_LINTS, ROOMS, SANS_IO,
        SOURCES, UNSAFE,
    },
};
use crate::host_command::workspace;

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Finding {
    file: String,
    line: usize,
    message: String,
}

/// Checks everything, and fails when a rule is broken.
pub fn run() -> Result<()> {
    let root = workspace();
    let mut findings = Vec::new();
    for file in GUEST_FACING {
        ensure!(
            root.join(file).is_file(),
            "{file} is in `GUEST_FACING` and not there: where do a guest's bytes arrive now?"
        );
    }
    for file in SOURCES
        .iter()
        .map(|directory| files(&root.join(directory)))
        .collect::<Result<Vec<_>>>()?
        .concat()
    {
        let name = file.strip_prefix(&root)?.to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
        findings.extend(check(&name, &text)?);
    }
    let readme = fs::read_to_string(root.join("README.md")).unwrap_or_default();
    findings.extend(readme::check(&readme, |path| root.join(path).exists()));
    findings.extend(links::check(&documents(&root, readme)?, |path| {
        root.join(path).exists()
    }));
    for Finding { file, line, message } in &findings {
        println!("{file}:{line}: {message}");
    }
    ensure!(findings.is_empty(), "tidy: {} rules are broken", findings.len());
    println!("tidy: all rules are kept");
    Ok(())
}

/// What people read, named from the workspace's root.
fn documents(root: &FilePath, readme: String) -> Result<BTreeMap<String, String>> {
    let mut documents = BTreeMap::from([("README.md".to_owned(), readme)]);
    for entry in fs::read_dir(root.join("docs")).context("cannot list docs")? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "md") {
            let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {name}"))?;
            documents.insert(name, text);
        }
    }
    Ok(documents)
}

/// Checks one source, named from the workspace's root.
fn check(file: &str, text: &str) -> Result<Vec<Finding>> {
    let named = paths(text).with_context(|| format!("cannot read {file} as Rust"))?;
    let mut findings = Vec::new();
    let mut find = |line: usize, message: String| {
        let finding = Finding {
            file: file.to_owned(),
            line,
            message,
        };
        // A path in a `use` tree may break a rule once for every leaf.
        if !findings.contains(&finding) {
            findings.push(finding);
        }
    };
    check_name(file, &mut find);
    check_text(file, text, &mut find);
    check_guest_facing(file, text, &mut find)?;
    if let Some(inside) = file.strip_prefix("imds-agent/src/") {
        timers::check(inside, &named, &mut find);
    }
    for path in &named {
        check_unsafe(file, path, &mut find);
        if let Some(inside) = file.strip_prefix("imds-agent/src/") {
            check_rooms(inside, path, &mut find);
            check_crates(inside, path, &mut find);
            check_sans_io(inside, path, &mut find);
        }
    }
    Ok(findings)
}

fn check_name(file: &str, find: &mut impl FnMut(usize, String)) {
    for part in file.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            find(
                1,
                format!("`{part}` says nothing about what is inside: name it for its subject"),
            );
        }
    }
}

fn check_text(file: &str, text: &str, find: &mut impl FnMut(usize, String)) {
    let is_all_tests = file.ends_with("tests.rs") || file.starts_with("tests/tests/");
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if lines > LINES_MAX && !is_all_tests {
        find(
            lines,
            format!(
                "{lines} lines before the tests, more than {LINES_MAX}: look for the second idea in here"
            ),
        );
    }
    for (at, line) in text.lines().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(**path)) {
            find(at + 1, format!("`{path}` is a path of somebody's own machine"));
        }
    }
}

fn check_guest_facing(file: &str, text: &str, find: &mut impl FnMut(usize, String)) -> Result<()> {
    let is_entry = GUEST_FACING.contains(&file);
    if !is_entry && !GUEST_FACING.iter().any(|entry| is_inside(file, entry)) {
        return Ok(());
    }
    let levels = lints::levels(text)?;
    for lint in PANIC_LINTS {
        match levels.get(*lint).map(String::as_str) {
            Some("deny" | "forbid") => {}
            // What the module around it says holds here, too.
            None if !is_entry => {}
            level => find(
                1,
                format!(
                    "a guest's bytes arrive here: the lint {lint} is to be denied, and is {}",
                    level.unwrap_or("not there")
                ),
            ),
        }
    }
    Ok(())
}

/// Whether `file` is a module inside of the module or crate whose root is `root`.
fn is_inside(file: &str, root: &str) -> bool {
    let stem = root.trim_end_matches(".rs");
    let directory = stem.strip_suffix("/mod").or(stem.strip_suffix("/lib"));
    let inside = file.strip_prefix(directory.unwrap_or(stem));
    inside.is_some_and(|inside| inside.starts_with('/'))
}

fn check_unsafe(file: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    let is_allowed = UNSAFE.iter().any(|(place, _)| file.starts_with(place));
    if path.contains("unsafe") && !is_allowed {
        find(
            path.line,
            "`unsafe` outside the kernel's edge (`UNSAFE` in xtask/src/tidy/tables.rs)".to_owned(),
        );
    }
}

fn check_rooms(inside: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    let room = room(inside);
    // The crate's two roots belong to no room.
    if matches!(room, "lib" | "main") {
        return;
    }
    let Some((_, may_use)) = ROOMS.iter().find(|(name, _)| *name == room) else {
        find(
            1,
            format!("`{room}` is in no table: it needs a place in the architecture, then in `ROOMS`"),
        );
        return;
    };
    if let Some(used) = used_room(inside, path)
        && used != room
        && !may_use.split(' ').any(|room| room == used)
    {
        find(
            path.line,
            format!("`{room}` may not use `{used}` (architecture, section 4)"),
        );
    }
}

fn check_crates(inside: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    let [first, _, ..] = path.segments.as_slice() else {
        return;
    };
    let restricted = CRATES.iter().find(|(name, _)| name == first);
    if let Some((name, places)) = restricted
        && !places.iter().any(|place| inside.starts_with(place))
    {
        find(
            path.line,
            format!(
                "only {} may name the crate `{name}` (architecture, section 4)",
                places.join(", ")
            ),
        );
    }
}

fn check_sans_io(inside: &str, path: &Path, find: &mut impl FnMut(usize, String)) {
    // What only tests are made of may do as it likes.
    if !SANS_IO.contains(&room(inside)) || inside.ends_with("tests.rs") || inside.contains("/tests/") {
        return;
    }
    if let Some(io) = IO.iter().find(|io| path.contains(io)) {
        find(
            path.line,
            format!(
                "`{io}`: `{}` performs no IO and reads no clock, they come in as arguments",
                room(inside)
            ),
        );
    }
}

/// The room of a file under `imds-agent/src`.
fn room(inside: &str) -> &str {
    inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
}

/// The room that `path` leads to, when it starts at the crate's root or climbs up to it.
fn used_room<'a>(inside: &str, path: &'a Path) -> Option<&'a str> {
    let depth = inside.trim_end_matches("/mod.rs").split('/').count();
    let supers = path
        .segments
        .iter()
        .take_while(|segment| *segment == "super")
        .count();
    let from_root = if path.segments.first().is_some_and(|first| first == "crate") {
        path.segments.get(1)
    } else if supers == depth {
        path.segments.get(supers)
    } else {
        None
    };
    from_root.map(String::as_str)
}

/// All Rust sources under `directory`.
fn files(directory: &FilePath) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
