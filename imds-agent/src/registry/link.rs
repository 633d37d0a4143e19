//! Follows the names in records: an instance names an instance profile, which names a role.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;

use super::{
    claim::account_of,
    problem::Finding,
    role::{InstanceProfile, Role},
    snapshot::Member,
};

/// What can be named, each with its file's time.
#[derive(Default, Debug)]
pub(super) struct Names {
    /// By account and name.
    roles: HashMap<(String, String), (Arc<Role>, Timestamp)>,
    /// By ARN.
    instance_profiles: HashMap<String, (Arc<InstanceProfile>, Timestamp)>,
}

impl Names {
    pub fn add_role(&mut self, role: &Arc<Role>, modified: Timestamp) {
        let key = (account_of(&role.arn, "role"), role.role_name.to_string());
        self.roles.insert(key, (Arc::clone(role), modified));
    }

    pub fn add_instance_profile(&mut self, profile: &Arc<InstanceProfile>, modified: Timestamp) {
        self.instance_profiles
            .insert(profile.arn.clone(), (Arc::clone(profile), modified));
    }

    /// What the instance profile names in vain.
    pub fn check(&self, profile: &InstanceProfile) -> Option<Finding> {
        let dangling = !profile.roles.is_empty() && self.role_of(profile).is_none();
        dangling.then(|| Finding::field("Roles[0]", "names a role that no file describes"))
    }

    /// Links the member, and says what it names in vain.
    pub fn link(&self, member: &mut Arc<Member>, modified: Timestamp) -> Option<Finding> {
        let named = member.instance.iam_instance_profile.as_ref();
        let profile = named.and_then(|named| self.instance_profiles.get(&*named.arn));
        let dangling = named.is_some() && profile.is_none();
        let role = profile.and_then(|(profile, _)| self.role_of(profile));
        relink(member, modified, profile, role);
        let message = "names an instance profile that no file describes";
        dangling.then(|| Finding::field("IamInstanceProfile.Arn", message))
    }

    /// The role of the ARN that the instance profile names, else the one of that name in the profile's account.
    fn role_of(&self, profile: &InstanceProfile) -> Option<&(Arc<Role>, Timestamp)> {
        let named = profile.roles.first()?;
        let account = match &named.arn {
            Some(arn) => account_of(arn, "role"),
            None => account_of(&profile.arn, "instance-profile"),
        };
        let found = self.roles.get(&(account, named.role_name.to_string()))?;
        named
            .arn
            .as_ref()
            .is_none_or(|arn| *arn == found.0.arn)
            .then_some(found)
    }
}

/// Shares the member as it is if its links are still right, else makes it anew.
fn relink(
    member: &mut Arc<Member>,
    modified: Timestamp,
    profile: Option<&(Arc<InstanceProfile>, Timestamp)>,
    role: Option<&(Arc<Role>, Timestamp)>,
) {
    let same_profile =
        member.instance_profile.as_ref().map(Arc::as_ptr) == profile.map(|(profile, _)| Arc::as_ptr(profile));
    let same_role = member.role.as_ref().map(Arc::as_ptr) == role.map(|(role, _)| Arc::as_ptr(role));
    if same_profile && same_role {
        return;
    }
    let times = [
        profile.map(|(_, time)| *time),
        role.map(|(_, time)| *time),
        Some(modified),
    ];
    let newest = times.into_iter().flatten().max();
    let member = Arc::make_mut(member);
    member.instance_profile = profile.map(|(profile, _)| Arc::clone(profile));
    member.role = role.map(|(role, _)| Arc::clone(role));
    // A link that went away must not take the time back with it.
    member.last_modified = newest.map_or(member.last_modified, |newest| newest.max(member.last_modified));
}
