//! Which tap is bound to which MAC: the host's taps on one side, the registry's interfaces on the other.
//!
//! Does no IO: events go in, [`Change`]s for the classifier and the workers come out. A tap that no record names is attached
//! all the same, and so is dark: nothing for the metadata address leaves it.

use std::collections::BTreeMap;

use imds_ebpf::abi::{MacAddr, TapIndex};

use crate::registry::Snapshot;

/// What is to be done about one tap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Put the classifier on it.
    Attach(TapIndex),
    /// Serve the traffic of this MAC on it.
    Bind(TapIndex, MacAddr),
    /// Serve nobody on it.
    Unbind(TapIndex),
    /// It is gone: forget it.
    Detach(TapIndex),
}

#[derive(Debug)]
struct Tap {
    name: String,
    bound: Option<MacAddr>,
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

    /// Every tap with its name and the MAC bound to it.
    pub fn taps(&self) -> impl Iterator<Item = (TapIndex, &str, Option<MacAddr>)> {
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
            Some(interface.mac_address)
        });
        if wanted == self.bound {
            return None;
        }
        self.bound = wanted;
        Some(wanted.map_or(Change::Unbind(index), |mac| Change::Bind(index, mac)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::registry::{MetadataOptions, snapshot::Member};

    const ONE: TapIndex = TapIndex(11);
    const TWO: TapIndex = TapIndex(12);

    fn mac(last: u8) -> MacAddr {
        MacAddr([6, 0, 0, 0, 0, last])
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
        assert_eq!(changes, [Change::Attach(ONE), Change::Bind(ONE, mac(1))]);
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
            [Change::Bind(ONE, mac(1))]
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
        assert_eq!(changes, [Change::Unbind(TWO), Change::Bind(ONE, mac(1))]);
    }

    #[test]
    fn a_renamed_tap_is_somebody_else() {
        let mut bindings = Bindings::default();
        let registry = snapshot(&[("tap0", mac(1)), ("tap1", mac(2))]);
        bindings.handle_tap(ONE, "tap0", &registry);
        assert_eq!(
            bindings.handle_tap(ONE, "tap1", &registry),
            [Change::Bind(ONE, mac(2))]
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
