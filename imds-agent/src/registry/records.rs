//! All files' records, and the snapshot that they make together. Pure: bytes go in, snapshots and problems come out.
//!
//! A file's newest version waits as a *candidate* until [`Records::commit`], which puts all candidates in force together
//! unless one claims what another file holds: an instance id, a MAC, a tap, a role's or an instance profile's name.
//! Together, so that two files may swap their taps. A loser stays a candidate and is tried again with every commit, while
//! the version before it goes on serving.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    claim::Claim,
    link::Names,
    problem::{Finding, Problem, Severity},
    record::{self, Kind, Record, Rules},
    role::{InstanceProfile, Role},
    snapshot::{Member, Snapshot},
};

/// Names one file.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct FileKey {
    /// Which directory.
    pub kind: Kind,
    /// Its name in there.
    pub name: OsString,
}

/// Every file's state.
#[derive(Debug)]
pub struct Records {
    rules: Rules,
    files: BTreeMap<FileKey, File>,
    /// Who holds what, by the versions in force.
    claims: HashMap<Claim, FileKey>,
    snapshot: Arc<Snapshot>,
    /// Whether the versions in force differ from the snapshot.
    dirty: bool,
    commits: u64,
}

#[derive(Default, Debug)]
struct File {
    in_force: Option<InForce>,
    candidate: Option<Candidate>,
    /// What is wrong with the newest version.
    errors: Vec<Finding>,
    /// What the version in force says without effect.
    warnings: Vec<Finding>,
    /// What the version in force names and is not there.
    dangling: Option<Finding>,
}

#[derive(Debug)]
struct InForce {
    item: Item,
    claims: Vec<Claim>,
    modified: Timestamp,
    /// The commit that first put a version of this file in force: the earlier file wins.
    since: u64,
}

#[derive(Debug)]
enum Item {
    /// The only place that owns the instance record, with its links.
    Instance(Arc<Member>),
    Role(Arc<Role>),
    InstanceProfile(Arc<InstanceProfile>),
}

#[derive(Debug)]
struct Candidate {
    record: Record,
    claims: Vec<Claim>,
    modified: Timestamp,
    warnings: Vec<Finding>,
}

impl Records {
    /// No files yet.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            files: BTreeMap::new(),
            claims: HashMap::new(),
            snapshot: Arc::default(),
            dirty: false,
            commits: 0,
        }
    }

    /// From now on records are taken by `rules`, and those in force get the options that they do not say themselves. What else
    /// the rules say holds for a file when it is read next.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        for in_force in self.files.values_mut().filter_map(|file| file.in_force.as_mut()) {
            if let Item::Instance(member) = &mut in_force.item {
                let options = member.instance.metadata_options.or(rules.options);
                if member.options != options {
                    Arc::make_mut(member).options = options;
                    self.dirty = true;
                }
            }
        }
    }

    /// Takes a file's newest bytes. Nothing is in force before [`Self::commit`].
    pub fn handle_file(&mut self, key: FileKey, bytes: &[u8], modified: Timestamp) {
        let parsed = record::parse(key.kind, bytes, &self.rules);
        let file = self.files.entry(key).or_default();
        file.candidate = None;
        file.errors.clear();
        match parsed {
            Err(findings) => file.errors = findings,
            Ok((record, warnings))
                if file
                    .in_force
                    .as_ref()
                    .is_some_and(|current| current.item.is(&record)) =>
            {
                file.warnings = warnings;
            }
            Ok((record, warnings)) => {
                let claims = Claim::of(&record);
                file.candidate = Some(Candidate {
                    record,
                    claims,
                    modified,
                    warnings,
                });
            }
        }
    }

    /// Takes note that a file is there but cannot be read.
    pub fn handle_unreadable(&mut self, key: FileKey, why: String) {
        let file = self.files.entry(key).or_default();
        file.candidate = None;
        file.errors = vec![Finding::whole(why)];
    }

    /// Takes note that a file is gone.
    pub fn handle_removed(&mut self, key: &FileKey) {
        let Some(file) = self.files.remove(key) else {
            return;
        };
        if let Some(in_force) = file.in_force {
            self.release(&in_force.claims, key);
            self.dirty = true;
        }
    }

    /// The files of `kind` that are known, good or bad.
    pub fn files(&self, kind: Kind) -> impl Iterator<Item = &FileKey> {
        self.files.keys().filter(move |key| key.kind == kind)
    }

    /// Puts in force what can be; the new snapshot, if it differs from the last one.
    pub fn commit(&mut self) -> Option<Arc<Snapshot>> {
        self.commits += 1;
        self.resolve_candidates();
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        self.link();
        self.snapshot = Arc::new(self.build_snapshot());
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
            let errors = file.errors.iter().map(|finding| (Severity::Error, finding));
            let warnings = file
                .warnings
                .iter()
                .chain(&file.dangling)
                .map(|finding| (Severity::Warning, finding));
            problems.extend(errors.chain(warnings).map(|(severity, finding)| Problem {
                severity,
                file: key.path(),
                finding: finding.clone(),
            }));
        }
        problems
    }

    /// Applies every candidate that claims nothing of a file that stays as it is, nor of an earlier candidate.
    fn resolve_candidates(&mut self) {
        let mut order: Vec<FileKey> = self
            .files
            .iter()
            .filter(|(_, file)| file.candidate.is_some())
            .map(|(key, _)| key.clone())
            .collect();
        order.sort_by_key(|key| {
            self.files[key]
                .in_force
                .as_ref()
                .map_or(u64::MAX, |in_force| in_force.since)
        });
        let mut moving: HashSet<FileKey> = order.iter().cloned().collect();
        loop {
            let mut taken: HashMap<&Claim, &FileKey> = HashMap::new();
            let mut lost = Vec::new();
            for key in order.iter().filter(|key| moving.contains(key)) {
                let candidate = self.files[key].candidate.iter();
                let claims = candidate.flat_map(|candidate| &candidate.claims);
                let staying = |claim| self.claims.get(claim).filter(|holder| !moving.contains(*holder));
                let rival = claims
                    .clone()
                    .find_map(|claim| Some((claim, taken.get(claim).copied().or_else(|| staying(claim))?)));
                match rival {
                    Some((claim, holder)) => lost.push((key.clone(), conflict(claim, holder))),
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
                    file.errors = vec![conflict];
                }
            }
        }
        order.retain(|key| moving.contains(key));
        self.apply(&order);
    }

    fn apply(&mut self, winners: &[FileKey]) {
        // All let go before any takes hold, for what they swap.
        for key in winners {
            if let Some(in_force) = self.files.get_mut(key).and_then(|file| file.in_force.as_mut()) {
                let claims = std::mem::take(&mut in_force.claims);
                self.release(&claims, key);
            }
        }
        for key in winners {
            let Some(file) = self.files.get_mut(key) else {
                continue;
            };
            let Some(Candidate {
                record,
                claims,
                modified,
                warnings,
            }) = file.candidate.take()
            else {
                continue;
            };
            self.claims
                .extend(claims.iter().map(|claim| (claim.clone(), key.clone())));
            let since = file
                .in_force
                .as_ref()
                .map_or(self.commits, |in_force| in_force.since);
            let item = Item::of(record, modified, &self.rules);
            file.in_force = Some(InForce {
                item,
                claims,
                modified,
                since,
            });
            file.errors.clear();
            file.warnings = warnings;
            self.dirty = true;
        }
    }

    fn release(&mut self, claims: &[Claim], holder: &FileKey) {
        for claim in claims {
            if self.claims.get(claim) == Some(holder) {
                self.claims.remove(claim);
            }
        }
    }

    /// Renews the members whose instance profile or role is no longer the one they are linked to, and only those.
    fn link(&mut self) {
        let mut names = Names::default();
        for in_force in self.files.values().filter_map(|file| file.in_force.as_ref()) {
            match &in_force.item {
                Item::Instance(_) => {}
                Item::Role(role) => names.add_role(role, in_force.modified),
                Item::InstanceProfile(profile) => names.add_instance_profile(profile, in_force.modified),
            }
        }
        for file in self.files.values_mut() {
            let Some(in_force) = &mut file.in_force else {
                continue;
            };
            file.dangling = match &mut in_force.item {
                Item::Role(_) => None,
                Item::InstanceProfile(profile) => names.check(profile),
                Item::Instance(member) => names.link(member, in_force.modified),
            };
        }
    }

    fn build_snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            revision: self.snapshot.revision + 1,
            ..Snapshot::default()
        };
        for in_force in self.files.values().filter_map(|file| file.in_force.as_ref()) {
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

impl Item {
    fn of(record: Record, modified: Timestamp, rules: &Rules) -> Self {
        match record {
            Record::Role(role) => Self::Role(Arc::from(role)),
            Record::InstanceProfile(profile) => Self::InstanceProfile(Arc::from(profile)),
            Record::Instance(instance) => Self::Instance(Arc::new(Member {
                options: instance.metadata_options.or(rules.options),
                instance: *instance,
                instance_profile: None,
                role: None,
                last_modified: modified,
            })),
        }
    }

    /// Whether a version says nothing new.
    fn is(&self, record: &Record) -> bool {
        match (self, record) {
            (Self::Instance(member), Record::Instance(instance)) => member.instance == **instance,
            (Self::Role(current), Record::Role(role)) => **current == **role,
            (Self::InstanceProfile(current), Record::InstanceProfile(profile)) => **current == **profile,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
