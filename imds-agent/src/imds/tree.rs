//! The metadata tree as data: a table of paths, first versions and accessors.
//!
//! The table is [`rows::ROWS`]. A trie is built of it once; finding a path costs the path's depth, and listings and
//! version gating are derived: a directory is there if anything under it is, and lists what is there and nothing else
//! (cloud-init throws the whole tree away if one listed name is missing).

pub mod keys;
pub mod rows;
mod steps;
pub mod view;

use std::{io::Write as _, ops::ControlFlow, sync::LazyLock, time::Duration};

use jiff::Timestamp;

pub use keys::{Keys, Placeholder};
pub use rows::{Kind, ROWS, Row, UNLISTED, Value};
pub use view::View;

use super::{
    Delivery,
    path::{ApiVersion, Path, VERSIONS},
};
use crate::http::ContentType;

/// What there is at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Nothing.
    Absent,
    /// Something that will be there in a moment.
    Pending,
    /// A body.
    Found(Found),
}

/// What a body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// `Content-Type`. EC2 says plain text of JSON too.
    pub content_type: ContentType,
    /// When it last changed, if not with the instance's record.
    pub last_modified: Option<Timestamp>,
    /// Whether it is worth more than other metadata.
    pub delivery: Delivery,
}

impl Found {
    /// Text that changes with the record.
    pub const TEXT: Self = Self {
        content_type: ContentType::TextPlain,
        last_modified: None,
        delivery: Delivery::Metadata,
    };
}

/// Writes what `view` has at `path` to the end of `out`.
pub fn answer(view: &View<'_>, path: Path<'_>, out: &mut Vec<u8>) -> Answer {
    answer_from(&TREE, view, path, out)
}

fn answer_from(root: &Node, view: &View<'_>, path: Path<'_>, out: &mut Vec<u8>) -> Answer {
    let mut segments = path.segments();
    let Some(version) = segments.next() else {
        return list_versions(out);
    };
    let Some(version) = ApiVersion::named(version) else {
        return Answer::Absent;
    };
    let sight = Sight { view, version };
    let mut node = root;
    let mut keys = Keys::default();
    for segment in segments {
        match node.child(view, &keys, segment) {
            Some((child, child_keys)) => (node, keys) = (child, child_keys),
            None => return Answer::Absent,
        }
    }
    match node {
        Node::Leaf(row) => sight.read(row, &keys, out),
        // EC2 lists the children of a version without slashes.
        Node::Directory(directory) => sight.list(directory, &keys, !std::ptr::eq(node, root), out),
    }
}

/// A time of the registry's as the HTTP layer wants it. Nothing was modified before 1970.
pub fn since_epoch(time: Timestamp) -> Duration {
    Duration::from_secs(u64::try_from(time.as_second()).unwrap_or_default())
}

fn list_versions(out: &mut Vec<u8>) -> Answer {
    for (index, version) in VERSIONS.iter().enumerate() {
        if index > 0 {
            out.push(b'\n');
        }
        out.extend_from_slice(version.as_bytes());
    }
    Answer::Found(Found::TEXT)
}

static TREE: LazyLock<Node> = LazyLock::new(|| Node::build(ROWS));

enum Node {
    Leaf(&'static Row),
    Directory(Directory),
}

#[derive(Default)]
struct Directory {
    /// Sorted by name.
    named: Vec<(&'static str, Node)>,
    placeholder: Option<(Placeholder, Box<Node>)>,
}

impl Node {
    fn build(rows: &'static [Row]) -> Self {
        let mut root = Directory::default();
        for row in rows {
            root.insert(row.path, row);
        }
        Self::Directory(root)
    }

    /// The child that `segment` names, with the keys on the way to it.
    fn child<'v>(&self, view: &View<'v>, keys: &Keys<'v>, segment: &str) -> Option<(&Self, Keys<'v>)> {
        let Self::Directory(directory) = self else {
            return None;
        };
        let named = directory.named.binary_search_by(|(name, _)| {
            steps::count();
            (*name).cmp(segment)
        });
        if let Ok(index) = named {
            return directory.named.get(index).map(|(_, child)| (child, *keys));
        }
        let (placeholder, child) = directory.placeholder.as_ref()?;
        let keys = placeholder.find(view, keys, segment)?;
        Some((child, keys))
    }
}

impl Directory {
    fn insert(&mut self, path: &'static str, row: &'static Row) {
        let (name, rest) = path
            .split_once('/')
            .map_or((path, None), |(name, rest)| (name, Some(rest)));
        let child = match Placeholder::of(name) {
            Some(placeholder) => {
                let empty = || (placeholder, Box::new(Node::Directory(Self::default())));
                &mut *self.placeholder.get_or_insert_with(empty).1
            }
            None => {
                let index = match self.named.binary_search_by_key(&name, |(name, _)| *name) {
                    Ok(index) => index,
                    Err(index) => {
                        self.named.insert(index, (name, Node::Directory(Self::default())));
                        index
                    }
                };
                let Some((_, child)) = self.named.get_mut(index) else {
                    return;
                };
                child
            }
        };
        match (rest, child) {
            (None, leaf) => *leaf = Node::Leaf(row),
            (Some(rest), Node::Directory(directory)) => directory.insert(rest, row),
            // A row under another row. A test keeps the table free of that.
            (Some(_), Node::Leaf(_)) => {}
        }
    }
}

/// Is told every child's shape and the name that it is listed by.
type VisitChild<'a> = &'a mut dyn FnMut(Shape, &dyn std::fmt::Display, &mut Vec<u8>) -> ControlFlow<()>;

/// What can be seen of the tree: an instance, in a version.
struct Sight<'s, 'v> {
    view: &'s View<'v>,
    version: ApiVersion,
}

impl<'v> Sight<'_, 'v> {
    fn read(&self, row: &Row, keys: &Keys<'v>, out: &mut Vec<u8>) -> Answer {
        steps::count();
        if self.version.has(row.first) {
            row.value.write(self.view, keys, out)
        } else {
            Answer::Absent
        }
    }

    /// Whether there is anything at `node`. Leaves `out` as it is; it is only room to write in.
    fn resolves(&self, node: &Node, keys: &Keys<'v>, out: &mut Vec<u8>) -> bool {
        match node {
            Node::Leaf(row) => {
                let before = out.len();
                let answer = self.read(row, keys, out);
                out.truncate(before);
                answer != Answer::Absent
            }
            Node::Directory(directory) => {
                let found = self.visit(directory, keys, out, &mut |_, _, _| ControlFlow::Break(()));
                found.is_break()
            }
        }
    }

    fn list(&self, directory: &Directory, keys: &Keys<'v>, slashes: bool, out: &mut Vec<u8>) -> Answer {
        let before = out.len();
        _ = self.visit(directory, keys, out, &mut |child, name, out| {
            if out.len() > before {
                out.push(b'\n');
            }
            _ = write!(out, "{name}");
            if slashes && child == Shape::Directory {
                out.push(b'/');
            }
            ControlFlow::Continue(())
        });
        if out.len() > before {
            Answer::Found(Found::TEXT)
        } else {
            Answer::Absent
        }
    }

    /// Calls `visit` for every child that is there to be listed, with its shape and the name that it is listed by.
    fn visit(
        &self,
        directory: &Directory,
        keys: &Keys<'v>,
        out: &mut Vec<u8>,
        visit: VisitChild<'_>,
    ) -> ControlFlow<()> {
        for (name, child) in &directory.named {
            if !UNLISTED.contains(name) && self.resolves(child, keys, out) {
                visit(Shape::of(child), name, out)?;
            }
        }
        let Some((placeholder, child)) = &directory.placeholder else {
            return ControlFlow::Continue(());
        };
        placeholder.visit(self.view, keys, &mut |name, child_keys| {
            if !self.resolves(child, &child_keys, out) {
                return ControlFlow::Continue(());
            }
            match child_keys.public_key {
                // The one directory that is listed with something else than its name and a slash: `0=my-key`.
                Some(key) => visit(Shape::Leaf, &format_args!("{name}={}", key.key_name), out),
                None => visit(Shape::of(child), name, out),
            }
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Leaf,
    Directory,
}

impl Shape {
    fn of(node: &Node) -> Self {
        match node {
            Node::Leaf(_) => Self::Leaf,
            Node::Directory(_) => Self::Directory,
        }
    }
}

#[cfg(test)]
mod tests;
