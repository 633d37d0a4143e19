//! The immutable view that everybody reads.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use imds_ebpf::abi::MacAddr;

use super::{
    instance::{Instance, InstanceId, MetadataOptions, NetworkInterface},
    role::{InstanceProfile, Role},
    text::Text,
};

/// Everything that exists, at one revision.
#[derive(Clone, Default, Debug)]
pub struct Snapshot {
    /// Grows by one with every published change.
    pub revision: u64,
    /// Instances by id.
    pub instances: HashMap<InstanceId, Arc<Member>>,
    /// Interfaces by the last five octets of their MAC, which is what some hypervisors' taps show of it; not those whose taps are in
    /// other network namespaces, where nobody keeps to that.
    pub by_mac_tail: HashMap<[u8; 5], Sharing>,
    /// The interface that a tap, by name, is expected to carry, as far as records say so.
    pub by_tap: HashMap<Text, (Arc<Member>, usize)>,
    /// Roles by ARN: two accounts on one host may use the same name.
    pub roles: HashMap<String, Arc<Role>>,
    /// Instance profiles by ARN.
    pub instance_profiles: HashMap<String, Arc<InstanceProfile>>,
}

/// One instance with what the rest of the snapshot says about it, so that the request path follows no names.
#[derive(Clone, Debug)]
pub struct Member {
    /// The record.
    pub instance: Instance,
    /// The options in force.
    pub options: MetadataOptions,
    /// The instance profile that the record names, if it exists.
    pub instance_profile: Option<Arc<InstanceProfile>>,
    /// The role in that profile, if there is one and it exists.
    pub role: Option<Arc<Role>>,
    /// When any of this last changed, for `Last-Modified`.
    pub last_modified: jiff::Timestamp,
}

/// The interfaces that share what they are found by: nearly always one, which costs no list.
#[derive(Clone, Debug)]
pub enum Sharing {
    /// The only one.
    One([(Arc<Member>, usize); 1]),
    /// None, or several.
    Several(Vec<(Arc<Member>, usize)>),
}

/// Where the current snapshot is to be had, without waiting.
#[derive(Default, Debug)]
pub struct Published(ArcSwap<Snapshot>);

impl Snapshot {
    /// Enters an instance under all that it can be found by.
    pub fn add(&mut self, member: &Arc<Member>) {
        for (index, interface) in member.instance.network_interfaces.iter().enumerate() {
            let found = || (Arc::clone(member), index);
            if interface.namespace().is_none() {
                self.by_mac_tail
                    .entry(mac_tail(interface.mac_address))
                    .or_default()
                    .push(found());
            }
            if let Some(tap) = &interface.tap {
                self.by_tap.insert(tap.clone(), found());
            }
        }
        self.instances
            .insert(member.instance.instance_id.clone(), Arc::clone(member));
    }

    /// Takes out again what [`Self::add`] entered, before another takes its places.
    pub fn remove(&mut self, member: &Arc<Member>) {
        for interface in &member.instance.network_interfaces {
            if let Some(tap) = &interface.tap {
                self.by_tap.remove(tap);
            }
            let tail = mac_tail(interface.mac_address);
            if let Some(sharing) = self.by_mac_tail.remove(&tail) {
                let others = sharing
                    .as_slice()
                    .iter()
                    .filter(|(other, _)| !Arc::ptr_eq(other, member));
                for other in others {
                    self.by_mac_tail.entry(tail).or_default().push(other.clone());
                }
            }
        }
        self.instances.remove(&member.instance.instance_id);
    }

    /// The interface of `owner` that has `mac`, which others may have in other network namespaces.
    pub fn interface(&self, owner: &InstanceId, mac: MacAddr) -> Option<(&Arc<Member>, &NetworkInterface)> {
        let member = self.instances.get(owner)?;
        let mut interfaces = member.instance.network_interfaces.iter();
        Some((member, interfaces.find(|interface| interface.mac_address == mac)?))
    }
}

impl Sharing {
    /// All of them.
    pub fn as_slice(&self) -> &[(Arc<Member>, usize)] {
        match self {
            Self::One(one) => one,
            Self::Several(several) => several,
        }
    }

    fn push(&mut self, found: (Arc<Member>, usize)) {
        *self = match std::mem::take(self) {
            Self::One([one]) => Self::Several(vec![one, found]),
            Self::Several(several) if several.is_empty() => Self::One([found]),
            Self::Several(mut several) => {
                several.push(found);
                Self::Several(several)
            }
        };
    }
}

impl Default for Sharing {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

/// All but the first octet.
pub fn mac_tail(MacAddr([_, tail @ ..]): MacAddr) -> [u8; 5] {
    tail
}

impl Published {
    /// The current snapshot.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.0.load()
    }

    /// Replaces the current snapshot.
    pub fn publish(&self, snapshot: impl Into<Arc<Snapshot>>) {
        self.0.store(snapshot.into());
    }
}
