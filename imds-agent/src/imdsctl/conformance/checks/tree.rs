//! Section 3 as a whole: one crawl of every version, and what must hold for all it found.

use super::categories::{CATEGORIES, Category};
use crate::imdsctl::conformance::{
    crawl::{VersionTree, joined},
    finding::{Check, Finding, Judge, Mark::*, Outcome, told},
    subject::Subject,
};

pub(super) const CHECKS: [Check; 6] = [
    Check::new(
        "3/crawl-resolves",
        S,
        "every listed child resolves, in every version: cloud-init drops the whole tree for one that does not",
        "crawl of every version of `/`",
        resolves,
    ),
    Check::new(
        "3/crawl-newline",
        C,
        "nothing ends with a newline",
        "crawl of every version of `/`",
        newlines,
    ),
    Check::new(
        "3/crawl-listings",
        C,
        "a listing is text/plain, one name a line, none empty, none twice",
        "crawl of every version of `/`",
        listings,
    ),
    Check::new(
        "3/crawl-types",
        C,
        "a value is text/plain, user data is application/octet-stream",
        "crawl of /latest/",
        content_types,
    ),
    Check::new(
        "3/crawl-listed",
        I,
        "what is served is listed",
        "GET every category of the table, then the crawl",
        listed,
    ),
    Check::new(
        "3/crawl-growing",
        I,
        "what a version lists, every newer one lists too",
        "crawl of every version of `/`",
        growing,
    ),
];

/// B.1/9: whether what is known to be a directory or a leaf is listed as one.
pub(super) fn slashes(subject: &Subject) -> Outcome {
    let Some(tree) = latest(subject) else {
        return Ok(no_tree());
    };
    let mut judge = Judge::default();
    for (directory, lines) in &tree.listings {
        if directory.is_empty() || directory == "meta-data/public-keys" {
            continue;
        }
        for line in lines {
            let path = joined(directory, line.trim_end_matches('/'));
            let is_slashed = line.ends_with('/');
            let has_inner = CATEGORIES.iter().any(|category| category.has_directory(&path));
            let is_leaf = CATEGORIES.iter().any(|category| category.matches(&path));
            judge.require(
                is_slashed || !has_inner || is_leaf,
                format!("{path}/"),
                format!("{path} without a slash"),
            );
            judge.require(
                !is_slashed || !is_leaf || has_inner,
                path.clone(),
                format!("{path}/ with a slash"),
            );
        }
    }
    judge.saw(format!("{} listings", tree.listings.len()));
    Ok(judge.finding())
}

fn latest<'s>(subject: &'s Subject<'_>) -> Option<&'s VersionTree> {
    subject.crawl().latest().filter(|tree| !tree.listings.is_empty())
}

fn no_tree() -> Finding {
    Finding::skip("/latest/ lists nothing (see 3/crawl-resolves)")
}

/// A pass if none of `problems` came up in any version.
fn none_of(subject: &Subject, expected: &str, problems: fn(&VersionTree) -> Vec<String>) -> Outcome {
    let crawl = subject.crawl();
    let found: Vec<String> = crawl.versions.iter().flat_map(problems).collect();
    let mut judge = Judge::default();
    judge.require(found.is_empty(), expected, told(found));
    judge.saw(crawl.summary());
    Ok(judge.finding())
}

fn resolves(subject: &Subject) -> Outcome {
    none_of(subject, "200 for every child", |tree| tree.broken.clone())
}

fn newlines(subject: &Subject) -> Outcome {
    none_of(subject, "no newline at the end", |tree| tree.newlines.clone())
}

fn listings(subject: &Subject) -> Outcome {
    none_of(subject, "one name a line, none empty, none twice", |tree| {
        let mut problems = tree.unreadable.clone();
        for (directory, lines) in &tree.listings {
            let mut sorted = lines.clone();
            sorted.sort();
            sorted.dedup();
            // A directory without children is an empty body, not an empty line.
            if sorted.len() != lines.len() || lines.iter().any(String::is_empty) {
                problems.push(format!("/{}/{directory}/", tree.version));
            }
        }
        problems
    })
}

fn content_types(subject: &Subject) -> Outcome {
    let Some(tree) = latest(subject) else {
        return Ok(no_tree());
    };
    let mut judge = Judge::default();
    for (path, leaf) in &tree.leaves {
        let wanted = if path == "user-data" {
            "application/octet-stream"
        } else {
            "text/plain"
        };
        judge.require(
            leaf.content_type == wanted,
            format!("{path}: {wanted}"),
            format!("{path}: {}", leaf.content_type),
        );
    }
    judge.saw(format!("{} values", tree.leaves.len()));
    Ok(judge.finding())
}

fn listed(subject: &Subject) -> Outcome {
    let Some(tree) = latest(subject) else {
        return Ok(no_tree());
    };
    let mut judge = Judge::default();
    for category in plain_categories() {
        if !tree.leaves.contains_key(category.path) {
            let status = subject.get_kept(&format!("/latest/{}", category.path))?.status;
            judge.require(
                status != 200,
                format!("{}: listed, or a 404", category.path),
                format!("{}: served and not listed", category.path),
            );
        }
    }
    judge.saw(format!("{} values listed", tree.leaves.len()));
    Ok(judge.finding())
}

fn growing(subject: &Subject) -> Outcome {
    let mut judge = Judge::default();
    // Newest first.
    for pair in subject.crawl().versions.windows(2) {
        let [newer, older] = pair else { continue };
        for path in older
            .leaves
            .keys()
            .filter(|path| !newer.leaves.contains_key(*path))
        {
            judge.require(
                false,
                format!("{path} in {} as in {}", newer.version, older.version),
                "it is gone",
            );
        }
    }
    judge.saw(subject.crawl().summary());
    Ok(judge.finding())
}

/// B.1/14a
pub(super) fn not_listed_early(subject: &Subject) -> Outcome {
    none_of(subject, "no category before its first version", |tree| {
        let leaves = tree.leaves.keys();
        let early = leaves.filter_map(|path| {
            let category = CATEGORIES.iter().find(|category| category.matches(path))?;
            let is_early = !category.first.is_empty() && tree.version.as_str() < category.first;
            is_early.then(|| format!("/{}/{path} (first in {})", tree.version, category.first))
        });
        early.collect()
    })
}

/// B.1/14b
pub(super) fn not_served_early(subject: &Subject) -> Outcome {
    let Some(tree) = latest(subject) else {
        return Ok(no_tree());
    };
    let mut judge = Judge::default();
    let mut asked = 0;
    for category in plain_categories().filter(|category| tree.leaves.contains_key(category.path)) {
        let before = subject
            .facts
            .versions
            .iter()
            .filter(|version| version.as_str() < category.first)
            .max();
        if let Some(version) = before {
            let target = format!("/{version}/{}", category.path);
            judge.status(&target, &subject.get_kept(&target)?, &[404]);
            asked += 1;
        }
    }
    if asked == 0 {
        return Ok(Finding::skip("there is no older version"));
    }
    Ok(judge.finding())
}

/// The categories whose path has no name in it that the instance decides.
fn plain_categories() -> impl Iterator<Item = &'static Category> {
    CATEGORIES.iter().filter(|category| !category.path.contains('*'))
}
