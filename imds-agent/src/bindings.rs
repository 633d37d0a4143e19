//! Which tap is bound to which MAC: the host's taps on one side, the registry's interfaces on the other.
//!
//! Does no IO: events go in, [`Change`]s for the classifier and the workers come out. A tap that no record names is attached
//! all the same, and so is dark: nothing for the metadata address leaves it.

use std::collections::BTreeMap;

use imds_ebpf::abi::{PACKETS_PER_SECOND, TapBinding, TapIndex};

use crate::registry::{HttpProtocolIpv6, InstanceId, Snapshot};

/// What is to be done about one tap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Put the classifier on it.
    Attach(TapIndex),
    /// Serve the traffic of this MAC on it, as this instance's.
    Bind(TapIndex, TapBinding, InstanceId),
    /// Go on serving the same MAC of the same instance, with other options.
    Amend(TapIndex, TapBinding),
    /// Serve nobody on it.
    Unbind(TapIndex),
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
            | Self::Unbind(tap)
            | Self::Detach(tap) => *tap,
        }
    }
}

#[derive(Debug)]
struct Tap {
    name: String,
    bound: Option<Bound>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Bound {
    binding: TapBinding,
    instance: InstanceId,
}

/// The taps of this host.
#[derive(Debug)]
pub struct Bindings {
    taps: BTreeMap<TapIndex, Tap>,
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
            packets_per_second,
        }
    }

    /// A tap appeared, changed its name, or may be another device with the same index. It is attached in every case, which
    /// changes nothing where it is already. The first binding of a tap is always said, even if it is to nobody: the kernel may
    /// still hold that of an earlier agent.
    pub fn handle_tap(&mut self, index: TapIndex, name: &str, snapshot: &Snapshot) -> Vec<Change> {
        let is_new = !self.taps.contains_key(&index);
        let tap = self.taps.entry(index).or_insert(Tap {
            name: String::new(),
            bound: None,
        });
        name.clone_into(&mut tap.name);
        let binding = tap.rebind(index, snapshot, self.packets_per_second);
        let binding = binding.or(is_new.then_some(Change::Unbind(index)));
        [Some(Change::Attach(index)), binding]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Everything that is to be so on a tap, for when the kernel refused some of it.
    pub fn repeat(&self, index: TapIndex) -> Vec<Change> {
        let Some(tap) = self.taps.get(&index) else {
            return vec![Change::Detach(index)];
        };
        let binding = match &tap.bound {
            Some(Bound { binding, instance }) => Change::Bind(index, *binding, instance.clone()),
            None => Change::Unbind(index),
        };
        vec![Change::Attach(index), binding]
    }

    /// A tap is gone, or none of our business any more.
    pub fn handle_gone(&mut self, index: TapIndex) -> Option<Change> {
        self.taps.remove(&index).map(|_| Change::Detach(index))
    }

    /// The registry changed.
    pub fn handle_snapshot(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let mut changes: Vec<_> = self
            .taps
            .iter_mut()
            .filter_map(|(index, tap)| tap.rebind(*index, snapshot, self.packets_per_second))
            .collect();
        // A MAC that moves to another tap leaves the old one first: it is never bound twice.
        changes.sort_by_key(|change| !matches!(change, Change::Unbind(_)));
        changes
    }

    /// From the next snapshot on each tap has so many packets served in a second.
    pub fn set_packets_per_second(&mut self, packets_per_second: u32) {
        self.packets_per_second = packets_per_second;
    }

    /// Every tap with its name and what is bound to it.
    pub fn taps(&self) -> impl Iterator<Item = (TapIndex, &str, Option<TapBinding>)> {
        self.taps.iter().map(|(index, tap)| {
            (
                *index,
                tap.name.as_str(),
                tap.bound.as_ref().map(|bound| bound.binding),
            )
        })
    }
}

impl Tap {
    /// Brings the binding in line with the registry.
    fn rebind(&mut self, index: TapIndex, snapshot: &Snapshot, packets_per_second: u32) -> Option<Change> {
        let wanted = snapshot.by_tap.get(&self.name).and_then(|(member, interface)| {
            let interface = member.instance.network_interfaces.get(*interface)?;
            let binding = TapBinding::to(interface.mac_address).with_packets_per_second(packets_per_second);
            let binding = match member.options.http_protocol_ipv6 {
                HttpProtocolIpv6::Enabled => binding.with_ipv6(),
                HttpProtocolIpv6::Disabled => binding,
            };
            Some(Bound {
                binding,
                instance: member.instance.instance_id.clone(),
            })
        });
        let bound = std::mem::replace(&mut self.bound, wanted);
        match (&bound, &self.bound) {
            (bound, wanted) if bound == wanted => None,
            (_, None) => Some(Change::Unbind(index)),
            (Some(bound), Some(wanted))
                if bound.binding.mac == wanted.binding.mac && bound.instance == wanted.instance =>
            {
                Some(Change::Amend(index, wanted.binding))
            }
            (_, Some(wanted)) => Some(Change::Bind(index, wanted.binding, wanted.instance.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imds_ebpf::abi::MacAddr;

    use super::*;
    use crate::registry::{MetadataOptions, snapshot::Member};

    const ONE: TapIndex = TapIndex(11);
    const TWO: TapIndex = TapIndex(12);

    fn mac(last: u8) -> MacAddr {
        MacAddr([6, 0, 0, 0, 0, last])
    }

    fn bound(last: u8) -> TapBinding {
        TapBinding::to(mac(last))
    }

    /// The instance that [`snapshot`] puts on a tap.
    fn on(tap: &str) -> InstanceId {
        format!("i-{tap}").parse().unwrap()
    }

    /// A registry in which each tap name carries the interface with the MAC.
    fn snapshot(interfaces: &[(&str, MacAddr)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (tap, mac) in interfaces {
            let record = serde_json::json!({
                "InstanceId": format!("i-{tap}"),
                "NetworkInterfaces": [{ "MacAddress": mac.to_string(), "Tap": tap }],
            });
            let member = Member {
                instance: serde_json::from_value(record).unwrap(),
                options: MetadataOptions::default(),
                instance_profile: None,
                role: None,
                last_modified: jiff::Timestamp::UNIX_EPOCH,
            };
            snapshot.by_tap.insert((*tap).to_owned(), (Arc::new(member), 0));
        }
        snapshot
    }

    #[test]
    fn a_tap_is_attached_before_it_is_bound() {
        let mut bindings = Bindings::default();
        let changes = bindings.handle_tap(ONE, "tap0", &snapshot(&[("tap0", mac(1))]));
        assert_eq!(
            changes,
            [Change::Attach(ONE), Change::Bind(ONE, bound(1), on("tap0"))]
        );
    }

    #[test]
    fn a_tap_without_a_record_is_attached_and_bound_when_the_record_comes() {
        let mut bindings = Bindings::default();
        assert_eq!(
            bindings.handle_tap(ONE, "tap0", &snapshot(&[])),
            [Change::Attach(ONE), Change::Unbind(ONE)]
        );
        assert_eq!(
            bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))])),
            [Change::Bind(ONE, bound(1), on("tap0"))]
        );
        assert_eq!(bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))])), []);
        assert_eq!(bindings.handle_snapshot(&snapshot(&[])), [Change::Unbind(ONE)]);
    }

    #[test]
    fn a_mac_that_moves_leaves_the_old_tap_first() {
        let mut bindings = Bindings::default();
        bindings.handle_tap(ONE, "tap0", &snapshot(&[]));
        bindings.handle_tap(TWO, "tap1", &snapshot(&[("tap1", mac(1))]));
        let changes = bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))]));
        assert_eq!(
            changes,
            [Change::Unbind(TWO), Change::Bind(ONE, bound(1), on("tap0"))]
        );
    }

    #[test]
    fn an_option_that_changes_amends_the_binding() {
        let enabled = |interfaces| {
            let mut snapshot = snapshot(interfaces);
            for (member, _) in snapshot.by_tap.values_mut() {
                Arc::make_mut(member).options.http_protocol_ipv6 = HttpProtocolIpv6::Enabled;
            }
            snapshot
        };
        let record = [("tap0", mac(1))];
        let mut bindings = Bindings::default();
        bindings.handle_tap(ONE, "tap0", &snapshot(&record));
        let with_ipv6 = bound(1).with_ipv6();
        assert_eq!(
            bindings.handle_snapshot(&enabled(&record)),
            [Change::Amend(ONE, with_ipv6)]
        );
        assert_eq!(bindings.handle_snapshot(&enabled(&record)), []);
        assert_eq!(
            bindings.handle_snapshot(&snapshot(&record)),
            [Change::Amend(ONE, bound(1))]
        );
        // Another MAC is somebody else, whatever the options.
        let other = [("tap0", mac(2))];
        assert_eq!(
            bindings.handle_snapshot(&enabled(&other)),
            [Change::Bind(ONE, bound(2).with_ipv6(), on("tap0"))]
        );
    }

    #[test]
    fn every_binding_has_the_hosts_rate() {
        let mut bindings = Bindings::new(50);
        assert_eq!(
            bindings.handle_tap(ONE, "tap0", &snapshot(&[("tap0", mac(1))]))[1],
            Change::Bind(ONE, bound(1).with_packets_per_second(50), on("tap0"))
        );
        bindings.set_packets_per_second(60);
        assert_eq!(
            bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))])),
            [Change::Amend(ONE, bound(1).with_packets_per_second(60))]
        );
    }

    #[test]
    fn a_renamed_tap_is_somebody_else() {
        let mut bindings = Bindings::default();
        let registry = snapshot(&[("tap0", mac(1)), ("tap1", mac(2))]);
        bindings.handle_tap(ONE, "tap0", &registry);
        assert_eq!(
            bindings.handle_tap(ONE, "tap1", &registry),
            [Change::Attach(ONE), Change::Bind(ONE, bound(2), on("tap1"))]
        );
        assert_eq!(
            bindings.handle_tap(ONE, "other", &registry),
            [Change::Attach(ONE), Change::Unbind(ONE)]
        );
    }

    #[test]
    fn a_tap_that_is_gone_is_forgotten_once() {
        let mut bindings = Bindings::default();
        bindings.handle_tap(ONE, "tap0", &snapshot(&[]));
        assert_eq!(bindings.handle_gone(ONE), Some(Change::Detach(ONE)));
        assert_eq!(bindings.handle_gone(ONE), None);
        assert_eq!(
            bindings.handle_tap(ONE, "tap0", &snapshot(&[])),
            [Change::Attach(ONE), Change::Unbind(ONE)]
        );
    }

    /// The same tap and the same MAC: connections of the last instance are none of the next one's business.
    #[test]
    fn another_instance_with_the_same_mac_is_bound_anew() {
        let mut bindings = Bindings::default();
        let mut registry = snapshot(&[("tap0", mac(1))]);
        bindings.handle_tap(ONE, "tap0", &registry);
        let (member, _) = registry.by_tap.get_mut("tap0").unwrap();
        Arc::make_mut(member).instance.instance_id = on("another");
        assert_eq!(
            bindings.handle_snapshot(&registry),
            [Change::Bind(ONE, bound(1), on("another"))]
        );
    }

    #[test]
    fn what_the_kernel_refused_is_said_again_whole() {
        let mut bindings = Bindings::default();
        bindings.handle_tap(ONE, "tap0", &snapshot(&[("tap0", mac(1))]));
        let again = bindings.repeat(ONE);
        assert_eq!(
            again,
            [Change::Attach(ONE), Change::Bind(ONE, bound(1), on("tap0"))]
        );
        bindings.handle_gone(ONE);
        assert_eq!(bindings.repeat(ONE), [Change::Detach(ONE)]);
    }
}
