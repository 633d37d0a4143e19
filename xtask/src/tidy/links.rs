//! Links in documents lead to files and headings that are there.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::Finding;

/// Checks the links of documents, by their paths from the workspace's root; `exists` tells about any path from there.
pub fn check(documents: &BTreeMap<String, String>, exists: impl Fn(&Path) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, text) in documents {
        for (line, target) in links(text) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let beside = Path::new(file).parent().unwrap_or(Path::new(""));
            let path = match path {
                "" => PathBuf::from(file),
                path => normal(&beside.join(path)),
            };
            let heading = || {
                let document = documents.get(&*path.to_string_lossy());
                document.is_some_and(|text| headings(text).any(|heading| heading == anchor))
            };
            let is_broken = !exists(&path) || (!anchor.is_empty() && !heading());
            if is_broken {
                findings.push(Finding {
                    file: file.clone(),
                    line,
                    message: format!("the link to {target} leads nowhere"),
                });
            }
        }
    }
    findings
}

/// `[text](target)` with a target that is no URL, outside code.
fn links(text: &str) -> impl Iterator<Item = (usize, &str)> {
    prose(text).flat_map(|(at, line)| {
        let targets = line.split("](").skip(1);
        let targets = targets.filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
        targets
            .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
            .map(move |target| (at, target))
    })
}

/// The anchors that headings have, in the way of GitHub: lower case, blanks as hyphens, of the rest letters, digits, `-` and `_`.
fn headings(text: &str) -> impl Iterator<Item = String> {
    let lines = prose(text).filter_map(|(_, line)| line.strip_prefix('#'));
    lines.map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let letters = title.chars().filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then_some(letter),
        });
        letters.collect()
    })
}

/// The numbered lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            return None;
        }
        (!is_code).then_some((at + 1, line))
    })
}

/// Without `..` as far as there is something to go up from.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if normal.pop() => {}
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(readme: &str) -> Vec<String> {
        let other = "# Title\n\n## What a `GET` is, and why_not\n```\n# no heading\n```\n";
        let documents = [("README.md", readme), ("docs/other.md", other)];
        let documents = documents
            .map(|(file, text)| (file.to_owned(), text.to_owned()))
            .into();
        let there = ["README.md", "docs/other.md", "docs/config.toml"];
        let findings = check(&documents, |path| {
            there.iter().any(|file| path == Path::new(file))
        });
        findings.into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn links_that_lead_somewhere_pass() {
        let good = "# Top\n[a](docs/other.md) [b](docs/../docs/config.toml) [c](#top) [d](https://example.org/x)\n\
                    [e](docs/other.md#what-a-get-is-and-why_not)\n```\n[f](gone.md)\n```\n";
        assert_eq!(broken(good), [""; 0]);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        for target in [
            "gone.md",
            "docs/other.md#no-heading",
            "#down",
            "docs/config.toml#x",
            "../README.md",
        ] {
            assert_eq!(
                broken(&format!("[x]({target})")),
                [format!("the link to {target} leads nowhere")]
            );
        }
    }
}
