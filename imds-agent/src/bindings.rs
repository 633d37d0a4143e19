//! Which tap is bound to which MAC: the host's taps on one side, the registry's interfaces on the other.
//!
//! Does no IO: events go in, [`Change`]s for the classifier and the workers come out. A tap that no record names is attached
//! all the same, and so is dark: nothing for the metadata address leaves it.

use std::collections::BTreeMap;

use imds_ebpf::abi::{TapBinding, TapIndex};

use crate::registry::{HttpProtocolIpv6, Snapshot};

/// What is to be done about one tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Put the classifier on it.
    Attach(TapIndex),
    /// Serve the traffic of this MAC on it.
    Bind(TapIndex, TapBinding),
    /// Go on serving the same MAC, with other options.
    Amend(TapIndex, TapBinding),
    /// Serve nobody on it.
    Unbind(TapIndex),
    /// It is gone: forget it.
    Detach(TapIndex),
}

#[derive(Debug)]
struct Tap {
    name: String,
    bound: Option<TapBinding>,
}

/// The taps of this host.
#[derive(Default, Debug)]
pub struct Bindings {
    taps: BTreeMap<TapIndex, Tap>,
}

impl Bindings {
    /// A tap appeared, or changed its name. The first binding of a tap is always said, even if it is to nobody: the
    /// kernel may still hold that of an earlier agent.
    pub fn handle_tap(&mut self, index: TapIndex, name: &str, snapshot: &Snapshot) -> Vec<Change> {
        if let Some(tap) = self.taps.get_mut(&index) {
            name.clone_into(&mut tap.name);
            return tap.rebind(index, snapshot).into_iter().collect();
        }
        let mut tap = Tap {
            name: name.to_owned(),
            bound: None,
        };
        let binding = tap.rebind(index, snapshot).unwrap_or(Change::Unbind(index));
        self.taps.insert(index, tap);
        vec![Change::Attach(index), binding]
    }

    /// A tap is gone.
    pub fn handle_gone(&mut self, index: TapIndex) -> Option<Change> {
        self.taps.remove(&index).map(|_| Change::Detach(index))
    }

    /// The registry changed.
    pub fn handle_snapshot(&mut self, snapshot: &Snapshot) -> Vec<Change> {
        let mut changes: Vec<_> = self
            .taps
            .iter_mut()
            .filter_map(|(index, tap)| tap.rebind(*index, snapshot))
            .collect();
        // A MAC that moves to another tap leaves the old one first: it is never bound twice.
        changes.sort_by_key(|change| !matches!(change, Change::Unbind(_)));
        changes
    }

    /// Every tap with its name and what is bound to it.
    pub fn taps(&self) -> impl Iterator<Item = (TapIndex, &str, Option<TapBinding>)> {
        self.taps
            .iter()
            .map(|(index, tap)| (*index, tap.name.as_str(), tap.bound))
    }
}

impl Tap {
    /// Brings the binding in line with the registry.
    fn rebind(&mut self, index: TapIndex, snapshot: &Snapshot) -> Option<Change> {
        let wanted = snapshot.by_tap.get(&self.name).and_then(|(member, interface)| {
            let interface = member.instance.network_interfaces.get(*interface)?;
            let binding = TapBinding::to(interface.mac_address);
            Some(match member.options.http_protocol_ipv6 {
                HttpProtocolIpv6::Enabled => binding.with_ipv6(),
                HttpProtocolIpv6::Disabled => binding,
            })
        });
        let bound = std::mem::replace(&mut self.bound, wanted);
        match (bound, wanted) {
            (bound, wanted) if bound == wanted => None,
            (_, None) => Some(Change::Unbind(index)),
            (Some(bound), Some(wanted)) if bound.mac == wanted.mac => Some(Change::Amend(index, wanted)),
            (_, Some(wanted)) => Some(Change::Bind(index, wanted)),
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
        assert_eq!(changes, [Change::Attach(ONE), Change::Bind(ONE, bound(1))]);
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
            [Change::Bind(ONE, bound(1))]
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
        assert_eq!(changes, [Change::Unbind(TWO), Change::Bind(ONE, bound(1))]);
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
            [Change::Bind(ONE, bound(2).with_ipv6())]
        );
    }

    #[test]
    fn a_renamed_tap_is_somebody_else() {
        let mut bindings = Bindings::default();
        let registry = snapshot(&[("tap0", mac(1)), ("tap1", mac(2))]);
        bindings.handle_tap(ONE, "tap0", &registry);
        assert_eq!(
            bindings.handle_tap(ONE, "tap1", &registry),
            [Change::Bind(ONE, bound(2))]
        );
        assert_eq!(
            bindings.handle_tap(ONE, "other", &registry),
            [Change::Unbind(ONE)]
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
}
