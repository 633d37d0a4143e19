//! Which tap is bound to which MAC: the host's taps on one side, the registry's interfaces on the other.
//!
//! Does no IO: events go in, [`Change`]s for the classifier and the workers come out. A tap is bound
//! 1. to the interface whose record names it (`Tap`), and to no other;
//! 2. else by the convention of libvirt's bridges, which make a tap's own MAC of its guest's: `fe` and the last five octets.
//!    So it is bound to the one interface with these octets, if its record names no tap and no other tap shows them. In other
//!    network namespaces than the agent's own nobody keeps to that, and clones have each other's MACs: there names alone bind.
//!
//! The tap's own MAC is the host's side of the cable, which nothing in the guest can change. A tap that neither rule binds
//! is attached all the same, and so is dark: nothing for the metadata address leaves it.

mod nobody;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use imds_ebpf::abi::{MacAddr, NamespaceNumber, PACKETS_PER_SECOND, TapBinding, TapIndex};

pub use self::nobody::Nobody;
use crate::registry::{
    HttpProtocolIpv6, InstanceId, Snapshot,
    snapshot::{Member, Sharing, mac_tail},
};

/// The first octet of a tap's own MAC that is made of its guest's.
const CONVENTION_OCTET: u8 = 0xfe;

/// What is to be done about one tap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Put the classifier on it.
    Attach(TapIndex),
    /// Serve the traffic of this MAC on it, as this instance's.
    Bind(TapIndex, TapBinding, InstanceId),
    /// Go on serving the same MAC of the same instance, with other options.
    Amend(TapIndex, TapBinding),
    /// Serve nobody on it, for this reason.
    Unbind(TapIndex, Nobody),
    /// It is gone, or none of our business any more: take the classifier off it and forget it.
    Detach(TapIndex),
}

impl Change {
    /// Which tap it is about.
    pub fn tap(&self) -> TapIndex {
        match self {
            Self::Attach(tap)
            | Self::Bind(tap, ..)
            | Self::Amend(tap, _)
            | Self::Unbind(tap, _)
            | Self::Detach(tap) => *tap,
        }
    }

    /// In this order changes are safe to make: dark before served, and a MAC that moves leaves its old tap first.
    fn order(&self) -> u8 {
        match self {
            Self::Attach(_) | Self::Detach(_) => 0,
            Self::Unbind(..) => 1,
            Self::Bind(..) | Self::Amend(..) => 2,
        }
    }
}

#[derive(Debug)]
struct Tap {
    name: String,
    /// The octets of its guest's MAC that its own MAC shows.
    shows: Option<[u8; 5]>,
    /// Nothing as long as nothing was said about it.
    bound: Option<Result<Bound, Nobody>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Bound {
    binding: TapBinding,
    instance: InstanceId,
}

/// What a tap should be bound to, as the registry says it.
type Wanted<'s> = (TapBinding, &'s InstanceId);

/// The taps of this host.
#[derive(Debug)]
pub struct Bindings {
    taps: BTreeMap<TapIndex, Tap>,
    /// Which taps show these octets.
    showing: HashMap<[u8; 5], BTreeSet<TapIndex>>,
    packets_per_second: u32,
}

impl Default for Bindings {
    fn default() -> Self {
        Self::new(PACKETS_PER_SECOND)
    }
}

impl Bindings {
    /// No taps yet; each will have so many packets served in a second. Zero sets no limit.
    pub fn new(packets_per_second: u32) -> Self {
        Self {
            taps: BTreeMap::new(),
            showing: HashMap::new(),
            packets_per_second,
        }
    }

    /// A tap appeared, changed its name or its own MAC, or may be another device with the same index. It is attached in
    /// every case, which changes nothing where it is already. The first binding of a tap is always said, even if it is to
    /// nobody: the kernel may still hold that of an earlier agent.
    pub fn handle_tap(
        &mut self,
        index: TapIndex,
        name: &str,
        mac: Option<MacAddr>,
        snapshot: &Snapshot,
    ) -> Vec<Change> {
        let is_own = index.namespace() == NamespaceNumber::OWN;
        let shows = mac
            .filter(|mac| is_own && mac.0[0] == CONVENTION_OCTET)
            .map(mac_tail);
        let bound = self.taps.get_mut(&index).and_then(|tap| tap.bound.take());
        let mut affected = self.hide(index);
        let tap = Tap {
            name: name.to_owned(),
            shows,
            bound,
        };
        self.taps.insert(index, tap);
        if let Some(tail) = shows {
            let showing = self.showing.entry(tail).or_default();
            showing.insert(index);
            affected.extend(showing.iter());
        }
        affected.insert(index);
        let mut changes = vec![Change::Attach(index)];
        changes.extend(self.rebind(affected, snapshot));
        changes
    }

    /// Everything that is to be so on a tap, for when the kernel refused some of it.
    pub fn repeat(&self, index: TapIndex) -> Vec<Change> {
        let Some(tap) = self.taps.get(&index) else {
            return vec![Change::Detach(index)];
        };
        let binding = match tap.bound.clone() {
            Some(Ok(Bound { binding, instance })) => Change::Bind(index, binding, instance),
            Some(Err(nobody)) => Change::Unbind(index, nobody),
            None => Change::Unbind(index, Nobody::Unnamed),
        };
        vec![Change::Attach(index), binding]
    }

    /// A tap is gone, or none of our business any more.
    pub fn handle_gone(&mut self, index: TapIndex, snapshot: &Snapshot) -> Vec<Change> {
        let others = self.hide(index);
        if self.taps.remove(&index).is_none() {
            return Vec::new();
        }
        let mut changes = vec![Change::Detach(index)];
        changes.extend(self.rebind(others, snapshot));
        changes
    }

    /// The registry changed.
    pub fn handle_snapshot(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let all: Vec<_> = self.taps.keys().copied().collect();
        self.rebind(all, snapshot)
    }

    /// From the next snapshot on each tap has so many packets served in a second.
    pub fn set_packets_per_second(&mut self, packets_per_second: u32) {
        self.packets_per_second = packets_per_second;
    }

    /// How many taps there are.
    pub fn count(&self) -> usize {
        self.taps.len()
    }

    /// The name of a tap, if it is known.
    pub fn name(&self, index: TapIndex) -> Option<&str> {
        self.taps.get(&index).map(|tap| tap.name.as_str())
    }

    /// Every tap with its name and what is bound to it.
    pub fn taps(&self) -> impl Iterator<Item = (TapIndex, &str, Option<TapBinding>)> {
        self.taps.iter().map(|(index, tap)| tap.told(*index))
    }

    /// The same of one tap, if it is known.
    pub fn tap(&self, index: TapIndex) -> Option<(TapIndex, &str, Option<TapBinding>)> {
        self.taps.get(&index).map(|tap| tap.told(index))
    }

    /// Whose a tap is, if it is anybody's.
    pub fn instance(&self, index: TapIndex) -> Option<&InstanceId> {
        let bound = self.taps.get(&index)?.bound.as_ref()?.as_ref().ok()?;
        Some(&bound.instance)
    }

    /// Why a tap is bound to nobody, if it is.
    pub fn nobody(&self, index: TapIndex) -> Option<&Nobody> {
        self.taps.get(&index)?.bound.as_ref()?.as_ref().err()
    }

    /// Forgets what the tap showed, and tells the taps that this may concern.
    fn hide(&mut self, index: TapIndex) -> BTreeSet<TapIndex> {
        let Some(tail) = self.taps.get(&index).and_then(|tap| tap.shows) else {
            return BTreeSet::new();
        };
        let mut others = self.showing.remove(&tail).unwrap_or_default();
        others.remove(&index);
        if !others.is_empty() {
            self.showing.insert(tail, others.clone());
        }
        others
    }

    /// Brings the bindings of some taps in line with the registry. Nearly always nearly all of them are: those cost no copy.
    fn rebind(&mut self, taps: impl IntoIterator<Item = TapIndex>, snapshot: &Snapshot) -> Vec<Change> {
        let mut changes = Vec::new();
        for index in taps {
            let Some(tap) = self.taps.get(&index) else {
                continue;
            };
            let wanted = self.wanted(tap, snapshot);
            if tap.is_so(&wanted) {
                continue;
            }
            if let Some(tap) = self.taps.get_mut(&index) {
                changes.push(tap.rebind(index, wanted));
            }
        }
        changes.sort_by_key(Change::order);
        changes
    }

    fn wanted<'s>(&self, tap: &Tap, snapshot: &'s Snapshot) -> Result<Wanted<'s>, Nobody> {
        let named = snapshot.by_tap.get(&*tap.name);
        let (member, interface) = match named {
            Some((member, interface)) => (member, *interface),
            None => self.by_convention(tap, snapshot)?,
        };
        let interface = member.instance.network_interfaces.get(interface);
        let interface = interface.ok_or(Nobody::Unnamed)?;
        let binding = TapBinding::to(interface.mac_address).with_packets_per_second(self.packets_per_second);
        let binding = match member.options.http_protocol_ipv6 {
            HttpProtocolIpv6::Enabled => binding.with_ipv6(),
            HttpProtocolIpv6::Disabled => binding,
        };
        Ok((binding, &member.instance.instance_id))
    }

    /// The interface that the tap's own MAC points to.
    fn by_convention<'s>(
        &self,
        tap: &Tap,
        snapshot: &'s Snapshot,
    ) -> Result<(&'s Arc<Member>, usize), Nobody> {
        let tail = tap.shows.ok_or(Nobody::Unnamed)?;
        let matching = snapshot.by_mac_tail.get(&tail).map_or(&[][..], Sharing::as_slice);
        let (member, index) = match matching {
            [] => return Err(Nobody::Unnamed),
            [(member, index)] => (member, *index),
            several => return Err(Nobody::several_interfaces(several)),
        };
        let interface = member.instance.network_interfaces.get(index);
        let interface = interface.ok_or(Nobody::Unnamed)?;
        if let Some(named) = &interface.tap {
            return Err(Nobody::NamesAnother {
                instance: member.instance.instance_id.clone(),
                tap: named.to_string(),
            });
        }
        match self.showing.get(&tail) {
            Some(taps) if taps.len() > 1 => {
                let names = taps.iter().filter_map(|tap| self.taps.get(tap));
                Err(Nobody::SeveralTaps {
                    mac: interface.mac_address,
                    taps: names.map(|tap| tap.name.clone()).collect(),
                })
            }
            _ => Ok((member, index)),
        }
    }
}

impl Tap {
    fn told(&self, index: TapIndex) -> (TapIndex, &str, Option<TapBinding>) {
        let bound = self.bound.as_ref().and_then(|bound| bound.as_ref().ok());
        (index, self.name.as_str(), bound.map(|bound| bound.binding))
    }

    fn is_so(&self, wanted: &Result<Wanted<'_>, Nobody>) -> bool {
        match (&self.bound, wanted) {
            (Some(Ok(bound)), Ok((binding, instance))) => {
                bound.binding == *binding && bound.instance == **instance
            }
            (Some(Err(bound)), Err(nobody)) => bound == nobody,
            _ => false,
        }
    }

    /// Binds it anew, to something else than before.
    fn rebind(&mut self, index: TapIndex, wanted: Result<Wanted<'_>, Nobody>) -> Change {
        let wanted = wanted.map(|(binding, instance)| Bound {
            binding,
            instance: instance.clone(),
        });
        let before = self.bound.replace(wanted.clone());
        match (before, wanted) {
            (_, Err(nobody)) => Change::Unbind(index, nobody),
            (Some(Ok(before)), Ok(wanted))
                if before.binding.mac == wanted.binding.mac && before.instance == wanted.instance =>
            {
                Change::Amend(index, wanted.binding)
            }
            (_, Ok(wanted)) => Change::Bind(index, wanted.binding, wanted.instance),
        }
    }
}

#[cfg(test)]
mod tests;
