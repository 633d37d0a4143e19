//! What only one file may have, so that nobody is two instances and no name means two things.

use std::fmt;

use imds_ebpf::abi::MacAddr;

use super::{
    instance::{Instance, InstanceId, namespace_of},
    record::Record,
    role::{IamArn, InstanceProfile, Role},
    text::Text,
};

/// One such thing.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum Claim {
    InstanceId(InstanceId),
    /// In a network namespace: clones of a machine have its MAC, each in one of its own.
    Mac(MacAddr, Option<Text>),
    Tap(Text),
    /// Account and name.
    Role(Box<(String, String)>),
    /// Account and name.
    InstanceProfile(Box<(String, String)>),
}

impl Claim {
    pub fn of(record: &Record) -> Vec<Self> {
        match record {
            Record::Role(role) => Self::of_role(role),
            Record::InstanceProfile(profile) => Self::of_instance_profile(profile),
            Record::Instance(instance) => Self::of_instance(instance),
        }
    }

    pub fn of_role(role: &Role) -> Vec<Self> {
        vec![Self::role(
            account_of(&role.arn, "role"),
            role.role_name.to_string(),
        )]
    }

    pub fn of_instance_profile(profile: &InstanceProfile) -> Vec<Self> {
        let account = account_of(&profile.arn, "instance-profile");
        let name = profile.instance_profile_name.to_string();
        vec![Self::instance_profile(account, name)]
    }

    pub fn role(account: String, name: String) -> Self {
        Self::Role(Box::new((account, name)))
    }

    pub fn instance_profile(account: String, name: String) -> Self {
        Self::InstanceProfile(Box::new((account, name)))
    }

    pub fn mac(mac: MacAddr, tap: Option<&str>) -> Self {
        Self::Mac(mac, tap.and_then(namespace_of).map(Text::from))
    }

    pub fn of_instance(instance: &Instance) -> Vec<Self> {
        let mut claims = vec![Self::InstanceId(instance.instance_id.clone())];
        for interface in &instance.network_interfaces {
            claims.push(Self::mac(interface.mac_address, interface.tap.as_deref()));
            claims.extend(interface.tap.clone().map(Self::Tap));
        }
        claims
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InstanceId(id) => write!(f, "InstanceId {id}"),
            Self::Mac(mac, None) => write!(f, "MacAddress {mac}"),
            Self::Mac(mac, Some(namespace)) => {
                write!(f, "MacAddress {mac} in network namespace {namespace}")
            }
            Self::Tap(tap) => write!(f, "Tap {tap}"),
            Self::Role(named) => {
                let (account, name) = &**named;
                write!(f, "RoleName {name} of account {account:?}")
            }
            Self::InstanceProfile(named) => {
                let (account, name) = &**named;
                write!(f, "InstanceProfileName {name} of account {account:?}")
            }
        }
    }
}

/// The account in an IAM ARN; empty where a private cloud leaves it out.
pub(super) fn account_of(arn: &str, kind: &str) -> String {
    IamArn::parse(arn, kind).map_or_else(String::new, |arn| arn.account.to_owned())
}
