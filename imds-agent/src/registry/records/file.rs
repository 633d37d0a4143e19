//! One file: the version in force, the one that waits, and what is wrong with either.

use std::sync::Arc;

use jiff::Timestamp;

use super::super::{
    claim::Claim,
    link::Names,
    problem::{Finding, Severity},
    record::{Record, Rules},
    role::{InstanceProfile, Role},
    snapshot::Member,
};

#[derive(Default, Debug)]
pub struct File {
    pub in_force: Option<InForce>,
    pub candidate: Option<Box<Candidate>>,
    /// Nothing for nearly all.
    findings: Option<Box<Findings>>,
}

#[derive(Default, Debug)]
struct Findings {
    /// What is wrong with the newest version.
    errors: Vec<Finding>,
    /// What the version in force says without effect.
    warnings: Vec<Finding>,
    /// What the version in force names and is not there.
    dangling: Option<Finding>,
}

#[derive(Debug)]
pub struct InForce {
    pub item: Item,
    pub modified: Timestamp,
    /// The commit that first put a version of this file in force: the earlier file wins.
    pub since: u64,
}

#[derive(Clone, Debug)]
pub enum Item {
    /// The only place that owns the instance record, with its links.
    Instance(Arc<Member>),
    Role(Arc<Role>),
    InstanceProfile(Arc<InstanceProfile>),
}

#[derive(Debug)]
pub struct Candidate {
    /// As it will be in force, so that nothing is moved about once thousands of files are read.
    pub item: Item,
    pub claims: Box<[Claim]>,
    pub modified: Timestamp,
    pub warnings: Vec<Finding>,
}

impl File {
    /// What is wrong.
    pub fn findings(&self) -> impl Iterator<Item = (Severity, &Finding)> {
        let findings = self.findings.iter();
        findings.flat_map(|findings| {
            let errors = findings.errors.iter().map(|finding| (Severity::Error, finding));
            let warnings = findings.warnings.iter().chain(&findings.dangling);
            errors.chain(warnings.map(|finding| (Severity::Warning, finding)))
        })
    }

    pub fn set_errors(&mut self, errors: Vec<Finding>) {
        self.set(errors, |findings| &mut findings.errors);
    }

    pub fn set_warnings(&mut self, warnings: Vec<Finding>) {
        self.set(warnings, |findings| &mut findings.warnings);
    }

    pub fn set_dangling(&mut self, dangling: Option<Finding>) {
        self.set(dangling, |findings| &mut findings.dangling);
    }

    /// Findings are kept only where there are any.
    fn set<T: Default + PartialEq>(&mut self, value: T, place: impl FnOnce(&mut Findings) -> &mut T) {
        if self.findings.is_none() && value == T::default() {
            return;
        }
        let findings = self.findings.get_or_insert_default();
        *place(findings) = value;
        if findings.errors.is_empty() && findings.warnings.is_empty() && findings.dangling.is_none() {
            self.findings = None;
        }
    }

    /// Follows the names in the version in force. If that makes another of it, what it was.
    pub fn link(&mut self, names: &Names) -> Option<Item> {
        let in_force = self.in_force.as_mut()?;
        let (dangling, before) = match &mut in_force.item {
            Item::Role(_) => (None, None),
            Item::InstanceProfile(profile) => (names.check(profile), None),
            Item::Instance(member) => {
                let before = Arc::clone(member);
                let dangling = names.link(member, in_force.modified);
                let is_other = !Arc::ptr_eq(&before, member);
                (dangling, is_other.then_some(Item::Instance(before)))
            }
        };
        self.set_dangling(dangling);
        before
    }
}

impl Item {
    pub fn claims(&self) -> Vec<Claim> {
        match self {
            Self::Instance(member) => Claim::of_instance(&member.instance),
            Self::Role(role) => Claim::of_role(role),
            Self::InstanceProfile(profile) => Claim::of_instance_profile(profile),
        }
    }

    pub fn of(record: Record, modified: Timestamp, rules: &Rules) -> Self {
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
    pub fn is(&self, record: &Record) -> bool {
        match (self, record) {
            (Self::Instance(member), Record::Instance(instance)) => member.instance == **instance,
            (Self::Role(current), Record::Role(role)) => **current == **role,
            (Self::InstanceProfile(current), Record::InstanceProfile(profile)) => **current == **profile,
            _ => false,
        }
    }
}
