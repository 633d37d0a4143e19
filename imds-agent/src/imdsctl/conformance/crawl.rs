//! Walks every listing of every version, as cloud-init and ohai do, and keeps what is there.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    client::Reply,
    subject::{Subject, is_version},
};

/// Paths of one version. EC2's trees have about a hundred.
const PATHS_MAX: usize = 5000;

/// No category is deeper than eight.
const DEPTH_MAX: usize = 12;

/// Bytes of a name in a listing; a longer line means that the body is not a listing.
const NAME_BYTES_MAX: usize = 300;

/// After this long no further version is walked; `latest` comes first and is always whole.
const TIME_MAX: Duration = Duration::from_secs(25);

/// What a crawl found.
#[derive(Default, Debug)]
pub(super) struct Crawl {
    /// Newest first.
    pub versions: Vec<VersionTree>,
    /// Versions that were left out for want of time.
    pub versions_left_out: usize,
}

/// The tree of one version. Paths have no slash at either end and begin below the version: `meta-data/mac`.
#[derive(Default, Debug)]
pub(super) struct VersionTree {
    pub version: String,
    /// The lines of every listing, by path; the version's own has the empty path.
    pub listings: BTreeMap<String, Vec<String>>,
    pub leaves: BTreeMap<String, Leaf>,
    /// Paths that are listed and do not resolve, with the reason.
    pub broken: Vec<String>,
    /// Paths whose body ends with a newline.
    pub newlines: Vec<String>,
    /// Listings that cannot be read as such, with the reason.
    pub unreadable: Vec<String>,
}

/// One value. It has no `Debug` of its own text, which may be a secret.
pub(super) struct Leaf {
    pub text: String,
    pub content_type: String,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leaf({} bytes)", self.text.len())
    }
}

impl Crawl {
    /// Walks `latest`, then every other version that `/` lists, newest first.
    pub(super) fn walk(subject: &Subject<'_>) -> Self {
        let began = Instant::now();
        let mut names: Vec<&String> = subject
            .facts
            .versions
            .iter()
            .filter(|name| is_version(name))
            .collect();
        names.sort_by(|one, other| other.cmp(one));
        let mut crawl = Self::default();
        for name in names {
            if began.elapsed() > TIME_MAX {
                crawl.versions_left_out += 1;
                continue;
            }
            crawl.versions.push(VersionTree::walk(subject, name));
        }
        crawl
    }

    pub(super) fn latest(&self) -> Option<&VersionTree> {
        self.versions.iter().find(|tree| tree.version == "latest")
    }

    /// How much was walked, for the report.
    pub(super) fn summary(&self) -> String {
        let paths: usize = self
            .versions
            .iter()
            .map(|tree| tree.listings.len() + tree.leaves.len())
            .sum();
        let left_out = match self.versions_left_out {
            0 => String::new(),
            count => format!(", {count} older versions left out for want of time"),
        };
        format!("{paths} paths in {} versions{left_out}", self.versions.len())
    }
}

impl VersionTree {
    fn walk(subject: &Subject<'_>, version: &str) -> Self {
        let mut tree = Self {
            version: version.to_owned(),
            ..Self::default()
        };
        tree.visit(subject, "", 0);
        if tree.listings.is_empty() {
            // Some mocks have no listing above their categories.
            for directory in ["meta-data", "dynamic"] {
                tree.visit(subject, directory, 1);
            }
        }
        tree
    }

    fn visit(&mut self, subject: &Subject<'_>, directory: &str, depth: usize) {
        if depth > DEPTH_MAX || self.listings.len() + self.leaves.len() > PATHS_MAX {
            self.unreadable
                .push(format!("{}/: the tree has no end", self.target(directory)));
            return;
        }
        let Some(reply) = self.fetch(subject, directory, "/") else {
            return;
        };
        let lines = reply.lines();
        if lines
            .iter()
            .any(|line| line.len() > NAME_BYTES_MAX || line.contains(['<', '{']))
        {
            self.unreadable
                .push(format!("{}/: {}", self.target(directory), reply.summary()));
            return;
        }
        self.listings.insert(directory.to_owned(), lines.clone());
        for line in &lines {
            let (name, is_directory) = child(directory, line);
            if name.is_empty() {
                continue;
            }
            let path = joined(directory, name);
            if is_directory {
                self.visit(subject, &path, depth + 1);
            } else if let Some(reply) = self.fetch(subject, &path, "") {
                let leaf = Leaf {
                    text: reply.text(),
                    content_type: reply.header("Content-Type").unwrap_or_default().to_owned(),
                };
                self.leaves.insert(path, leaf);
            }
        }
    }

    fn fetch(&mut self, subject: &Subject<'_>, path: &str, end: &str) -> Option<Reply> {
        let target = self.target(path) + end;
        let reply = match subject.get_kept(&target) {
            Ok(reply) => reply,
            Err(error) => {
                self.broken.push(format!("{target}: {error}"));
                return None;
            }
        };
        if reply.status != 200 {
            self.broken.push(format!("{target}: {}", reply.status));
            return None;
        }
        // User data are the bytes that its owner gave.
        if reply.body.ends_with(b"\n") && path != "user-data" {
            self.newlines.push(target);
        }
        Some(reply)
    }

    fn target(&self, path: &str) -> String {
        let mut target = format!("/{}", self.version);
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            target.push('/');
            target.push_str(&encoded(segment));
        }
        target
    }
}

/// The path of `name` in `directory`.
pub(super) fn joined(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.to_owned()
    } else {
        format!("{directory}/{name}")
    }
}

/// The name of the child that a line of a listing stands for, and whether it is a directory. Three kinds of listings
/// have a rule of their own: a version's, `public-keys/`, and names that are data and may hold anything.
fn child<'l>(directory: &str, line: &'l str) -> (&'l str, bool) {
    match directory {
        "" if matches!(line, "meta-data" | "dynamic") => (line, true),
        "meta-data/public-keys" => match line.split_once('=') {
            Some((index, _name)) => (index, true),
            None => (line.trim_end_matches('/'), true),
        },
        _ => match line.strip_suffix('/') {
            Some(name) => (name, true),
            None => (line, false),
        },
    }
}

/// `segment` as a request target can carry it.
fn encoded(segment: &str) -> String {
    let mut encoded = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_graphic() && !b"%?#\"<>".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
