//! All files' records, and the snapshot that they make together. Pure: bytes go in, snapshots and problems come out.
//!
//! A file's newest version waits as a *candidate* until [`Records::commit`], which puts all candidates in force together
//! unless one claims what another file holds: an instance id, a MAC, a tap, a role's or an instance profile's name.
//! Together, so that two files may swap their taps. A loser stays a candidate and is tried again with every commit, while
//! the version before it goes on serving.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;

use self::file::{Candidate, File, InForce, Item};
use super::{
    claim::Claim,
    link::Names,
    problem::{Finding, Problem},
    record::{self, Kind, Record, Rules},
    snapshot::Snapshot,
    text::Texts,
};

/// Names one file.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileKey {
    /// Which directory.
    pub kind: Kind,
    /// Its name in there.
    pub name: OsString,
}

/// Every file's state. Sparing with memory, for there may be many thousands.
#[derive(Debug)]
pub struct Records {
    rules: Rules,
    texts: Texts,
    files: BTreeMap<Arc<FileKey>, File>,
    /// Those that are there and could not be read.
    unreadable: BTreeSet<FileKey>,
    /// Who holds what, by the versions in force.
    claims: HashMap<Claim, Arc<FileKey>>,
    names: Names,
    snapshot: Arc<Snapshot>,
    changes: Changes,
    commits: u64,
}

/// In what the versions in force differ from the snapshot.
#[derive(Default, Debug)]
struct Changes {
    /// What is in the snapshot and no longer in force.
    outgoing: Vec<Item>,
    /// The files of what is in force and not yet in the snapshot.
    incoming: BTreeSet<Arc<FileKey>>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.outgoing.is_empty() && self.incoming.is_empty()
    }

    /// Whether they may change what instances are linked to.
    fn concern_roles(&self) -> bool {
        let outgoing = self.outgoing.iter();
        outgoing.clone().any(|item| !matches!(item, Item::Instance(_)))
            || self.incoming.iter().any(|key| key.kind != Kind::Instance)
    }
}

impl Records {
    /// No files yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            texts: Texts::default(),
            files: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            claims: HashMap::new(),
            names: Names::default(),
            snapshot: Arc::default(),
            changes: Changes::default(),
            commits: 0,
        }
    }

    /// By what records are taken.
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// The texts that records share.
    pub(super) fn texts(&mut self) -> &mut Texts {
        &mut self.texts
    }

    /// From now on records are taken by `rules`, and those in force get the options that they do not say themselves. What else
    /// the rules say holds for a file when it is read next.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        for (key, file) in &mut self.files {
            if let Some(candidate) = &mut file.candidate
                && let Item::Instance(member) = &mut candidate.item
            {
                let options = member.instance.metadata_options.or(rules.options);
                Arc::make_mut(member).options = options;
            }
            if let Some(in_force) = &mut file.in_force
                && let Item::Instance(member) = &mut in_force.item
            {
                let options = member.instance.metadata_options.or(rules.options);
                if member.options != options {
                    let before = Item::Instance(Arc::clone(member));
                    Arc::make_mut(member).options = options;
                    if self.changes.incoming.insert(Arc::clone(key)) {
                        self.changes.outgoing.push(before);
                    }
                }
            }
        }
    }

    /// Takes a file's newest bytes. Nothing is in force before [`Self::commit`].
    pub fn handle_file(&mut self, key: FileKey, bytes: &[u8], modified: Timestamp) {
        let rules = self.rules;
        let parsed = self.texts.share(|| record::parse(key.kind, bytes, &rules));
        self.handle_parsed(key, parsed, modified);
    }

    /// The same for bytes that were read by [`Self::rules`] already.
    pub fn handle_parsed(
        &mut self,
        key: FileKey,
        parsed: Result<(Record, Vec<Finding>), Vec<Finding>>,
        modified: Timestamp,
    ) {
        let rules = self.rules;
        self.unreadable.remove(&key);
        let file = self.file(key);
        file.candidate = None;
        file.set_errors(Vec::new());
        match parsed {
            Err(findings) => file.set_errors(findings),
            Ok((record, warnings))
                if file
                    .in_force
                    .as_ref()
                    .is_some_and(|current| current.item.is(&record)) =>
            {
                file.set_warnings(warnings);
            }
            Ok((record, warnings)) => {
                let item = Item::of(record, modified, &rules);
                file.candidate = Some(Box::new(Candidate {
                    claims: item.claims().into(),
                    item,
                    modified,
                    warnings,
                }));
            }
        }
    }

    /// Takes note that a file is there but cannot be read.
    pub fn handle_unreadable(&mut self, key: FileKey, why: String) {
        self.unreadable.insert(key.clone());
        let file = self.file(key);
        file.candidate = None;
        file.set_errors(vec![Finding::whole(why)]);
    }

    /// Takes note that a file is gone.
    pub fn handle_removed(&mut self, key: &FileKey) {
        self.unreadable.remove(key);
        let Some(file) = self.files.remove(key) else {
            return;
        };
        if let Some(in_force) = file.in_force {
            self.release(&in_force.item.claims(), key);
            if !self.changes.incoming.remove(key) {
                self.changes.outgoing.push(in_force.item);
            }
        }
    }

    /// The files that are there and could not be read.
    pub fn unreadable(&self) -> &BTreeSet<FileKey> {
        &self.unreadable
    }

    /// The files of `kind` that are known, good or bad.
    pub fn files(&self, kind: Kind) -> impl Iterator<Item = &FileKey> {
        self.files
            .keys()
            .map(|key| &**key)
            .filter(move |key| key.kind == kind)
    }

    /// Puts in force what can be; the new snapshot, if it differs from the last one. Costs what changed, and a copy of what
    /// points to the rest.
    pub fn commit(&mut self) -> Option<Arc<Snapshot>> {
        self.commits += 1;
        self.resolve_candidates();
        if self.changes.is_empty() {
            return None;
        }
        self.link();
        self.snapshot = Arc::new(self.next_snapshot());
        Some(Arc::clone(&self.snapshot))
    }

    /// The snapshot of the last commit that changed anything.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Everything wrong at present, by file.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, file) in &self.files {
            problems.extend(file.findings().map(|(severity, finding)| Problem {
                severity,
                file: key.path(),
                finding: finding.clone(),
            }));
        }
        problems
    }

    fn file(&mut self, key: FileKey) -> &mut File {
        self.files.entry(Arc::new(key)).or_default()
    }

    /// Applies every candidate that claims nothing of a file that stays as it is, nor of an earlier candidate.
    fn resolve_candidates(&mut self) {
        let mut order: Vec<Arc<FileKey>> = self
            .files
            .iter()
            .filter(|(_, file)| file.candidate.is_some())
            .map(|(key, _)| Arc::clone(key))
            .collect();
        order.sort_by_key(|key| {
            self.files[key]
                .in_force
                .as_ref()
                .map_or(u64::MAX, |in_force| in_force.since)
        });
        let mut moving: HashSet<Arc<FileKey>> = order.iter().cloned().collect();
        loop {
            let mut taken: HashMap<&Claim, &Arc<FileKey>> = HashMap::new();
            let mut lost = Vec::new();
            for key in order.iter().filter(|key| moving.contains(*key)) {
                let candidate = self.files[key].candidate.iter();
                let claims = candidate.flat_map(|candidate| &candidate.claims);
                let staying = |claim| self.claims.get(claim).filter(|holder| !moving.contains(*holder));
                let rival = claims
                    .clone()
                    .find_map(|claim| Some((claim, taken.get(claim).copied().or_else(|| staying(claim))?)));
                match rival {
                    Some((claim, holder)) => lost.push((Arc::clone(key), conflict(claim, holder))),
                    None => taken.extend(claims.map(|claim| (claim, key))),
                }
            }
            if lost.is_empty() {
                break;
            }
            // What a loser holds is held again, so the rest is weighed once more.
            for (key, conflict) in lost {
                moving.remove(&key);
                if let Some(file) = self.files.get_mut(&key) {
                    file.set_errors(vec![conflict]);
                }
            }
        }
        order.retain(|key| moving.contains(key));
        self.apply(order);
    }

    fn apply(&mut self, winners: Vec<Arc<FileKey>>) {
        // All let go before any takes hold, for what they swap.
        for key in &winners {
            if let Some(in_force) = self.files.get(key).and_then(|file| file.in_force.as_ref()) {
                let claims = in_force.item.claims();
                self.release(&claims, key);
            }
        }
        for key in winners {
            let Some(file) = self.files.get_mut(&key) else {
                continue;
            };
            let Some(candidate) = file.candidate.take() else {
                continue;
            };
            let Candidate {
                item,
                claims,
                modified,
                warnings,
            } = *candidate;
            let claims = claims.into_iter().map(|claim| (claim, Arc::clone(&key)));
            self.claims.extend(claims);
            let before = file.in_force.take();
            let since = before.as_ref().map_or(self.commits, |before| before.since);
            file.in_force = Some(InForce {
                item,
                modified,
                since,
            });
            file.set_errors(Vec::new());
            file.set_warnings(warnings);
            if self.changes.incoming.insert(key)
                && let Some(before) = before
            {
                self.changes.outgoing.push(before.item);
            }
        }
    }

    fn release(&mut self, claims: &[Claim], holder: &FileKey) {
        for claim in claims {
            if self.claims.get(claim).is_some_and(|held_by| **held_by == *holder) {
                self.claims.remove(claim);
            }
        }
    }

    /// Renews the members whose instance profile or role is no longer the one they are linked to, and only those.
    fn link(&mut self) {
        if !self.changes.concern_roles() {
            let Self {
                files,
                names,
                changes,
                ..
            } = self;
            for key in &changes.incoming {
                if let Some(file) = files.get_mut(key) {
                    file.link(names);
                }
            }
            return;
        }
        self.names = Names::default();
        for in_force in self.files.values().filter_map(|file| file.in_force.as_ref()) {
            match &in_force.item {
                Item::Instance(_) => {}
                Item::Role(role) => self.names.add_role(role, in_force.modified),
                Item::InstanceProfile(profile) => self.names.add_instance_profile(profile, in_force.modified),
            }
        }
        for (key, file) in &mut self.files {
            if let Some(before) = file.link(&self.names)
                && self.changes.incoming.insert(Arc::clone(key))
            {
                self.changes.outgoing.push(before);
            }
        }
    }

    fn next_snapshot(&mut self) -> Snapshot {
        let changes = std::mem::take(&mut self.changes);
        let mut snapshot = Snapshot::clone(&self.snapshot);
        snapshot.revision += 1;
        // All of what goes before anything that comes, for what they swap.
        for item in changes.outgoing {
            match item {
                Item::Instance(member) => snapshot.remove(&member),
                Item::Role(role) => drop(snapshot.roles.remove(&role.arn)),
                Item::InstanceProfile(profile) => drop(snapshot.instance_profiles.remove(&profile.arn)),
            }
        }
        let files = changes.incoming.iter().filter_map(|key| self.files.get(key));
        for in_force in files.filter_map(|file| file.in_force.as_ref()) {
            match &in_force.item {
                Item::Instance(member) => snapshot.add(member),
                Item::Role(role) => {
                    snapshot.roles.insert(role.arn.clone(), Arc::clone(role));
                }
                Item::InstanceProfile(profile) => {
                    snapshot
                        .instance_profiles
                        .insert(profile.arn.clone(), Arc::clone(profile));
                }
            }
        }
        snapshot
    }
}

fn conflict(claim: &Claim, holder: &FileKey) -> Finding {
    Finding::whole(format!("{claim} is already taken by {}", holder.path().display()))
}

impl FileKey {
    /// The file's path below the state directory.
    pub fn path(&self) -> PathBuf {
        Path::new(self.kind.directory()).join(&self.name)
    }
}

#[cfg(test)]
mod tests;
