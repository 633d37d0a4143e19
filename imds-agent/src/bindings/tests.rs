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
    format!("i-{tap}").replace('/', "-").parse().unwrap()
}

/// A registry in which each tap name carries the interface with the MAC.
fn snapshot(interfaces: &[(&str, MacAddr)]) -> Snapshot {
    let records = interfaces
        .iter()
        .map(|(tap, mac)| (on(tap), *mac, Some(*tap)))
        .collect::<Vec<_>>();
    registry(&records)
}

/// A registry of instances with one interface each, which may name its tap.
fn registry(records: &[(InstanceId, MacAddr, Option<&str>)]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (instance, mac, tap) in records {
        let record = serde_json::json!({
            "InstanceId": instance,
            "NetworkInterfaces": [{ "MacAddress": mac.to_string(), "Tap": tap }],
        });
        let member = Member {
            instance: serde_json::from_value(record).unwrap(),
            options: MetadataOptions::default(),
            instance_profile: None,
            role: None,
            last_modified: jiff::Timestamp::UNIX_EPOCH,
        };
        snapshot.add(&Arc::new(member));
    }
    snapshot
}

#[test]
fn a_tap_is_attached_before_it_is_bound() {
    let mut bindings = Bindings::default();
    let changes = bindings.handle_tap(ONE, "tap0", None, &snapshot(&[("tap0", mac(1))]));
    assert_eq!(
        changes,
        [Change::Attach(ONE), Change::Bind(ONE, bound(1), on("tap0"))]
    );
}

#[test]
fn a_tap_without_a_record_is_attached_and_bound_when_the_record_comes() {
    let mut bindings = Bindings::default();
    assert_eq!(
        bindings.handle_tap(ONE, "tap0", None, &snapshot(&[])),
        [Change::Attach(ONE), Change::Unbind(ONE, Nobody::Unnamed)]
    );
    assert_eq!(
        bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))])),
        [Change::Bind(ONE, bound(1), on("tap0"))]
    );
    assert_eq!(bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))])), []);
    assert_eq!(
        bindings.handle_snapshot(&snapshot(&[])),
        [Change::Unbind(ONE, Nobody::Unnamed)]
    );
}

#[test]
fn a_mac_that_moves_leaves_the_old_tap_first() {
    let mut bindings = Bindings::default();
    bindings.handle_tap(ONE, "tap0", None, &snapshot(&[]));
    bindings.handle_tap(TWO, "tap1", None, &snapshot(&[("tap1", mac(1))]));
    let changes = bindings.handle_snapshot(&snapshot(&[("tap0", mac(1))]));
    assert_eq!(
        changes,
        [
            Change::Unbind(TWO, Nobody::Unnamed),
            Change::Bind(ONE, bound(1), on("tap0"))
        ]
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
    bindings.handle_tap(ONE, "tap0", None, &snapshot(&record));
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
        bindings.handle_tap(ONE, "tap0", None, &snapshot(&[("tap0", mac(1))]))[1],
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
    bindings.handle_tap(ONE, "tap0", None, &registry);
    assert_eq!(
        bindings.handle_tap(ONE, "tap1", None, &registry),
        [Change::Attach(ONE), Change::Bind(ONE, bound(2), on("tap1"))]
    );
    assert_eq!(
        bindings.handle_tap(ONE, "other", None, &registry),
        [Change::Attach(ONE), Change::Unbind(ONE, Nobody::Unnamed)]
    );
}

#[test]
fn a_tap_that_is_gone_is_forgotten_once() {
    let mut bindings = Bindings::default();
    bindings.handle_tap(ONE, "tap0", None, &snapshot(&[]));
    assert_eq!(bindings.handle_gone(ONE, &snapshot(&[])), [Change::Detach(ONE)]);
    assert_eq!(bindings.handle_gone(ONE, &snapshot(&[])), []);
    assert_eq!(
        bindings.handle_tap(ONE, "tap0", None, &snapshot(&[])),
        [Change::Attach(ONE), Change::Unbind(ONE, Nobody::Unnamed)]
    );
}

/// The same tap and the same MAC: connections of the last instance are none of the next one's business.
#[test]
fn another_instance_with_the_same_mac_is_bound_anew() {
    let mut bindings = Bindings::default();
    let mut registry = snapshot(&[("tap0", mac(1))]);
    bindings.handle_tap(ONE, "tap0", None, &registry);
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
    bindings.handle_tap(ONE, "tap0", None, &snapshot(&[("tap0", mac(1))]));
    let again = bindings.repeat(ONE);
    assert_eq!(
        again,
        [Change::Attach(ONE), Change::Bind(ONE, bound(1), on("tap0"))]
    );
    bindings.handle_gone(ONE, &snapshot(&[]));
    assert_eq!(bindings.repeat(ONE), [Change::Detach(ONE)]);
}

/// The host side's MAC of a guest with [`mac`]`(last)`, as libvirt's bridges have it.
fn shown(last: u8) -> Option<MacAddr> {
    Some(MacAddr([0xfe, 0, 0, 0, 0, last]))
}

fn one_unnamed_interface() -> Snapshot {
    registry(&[(on("web"), mac(1), None)])
}

#[test]
fn a_tap_that_shows_the_macs_end_is_bound_by_it() {
    let mut bindings = Bindings::default();
    let registry = one_unnamed_interface();
    assert_eq!(
        bindings.handle_tap(ONE, "vnet0", shown(1), &registry),
        [Change::Attach(ONE), Change::Bind(ONE, bound(1), on("web"))]
    );
    assert_eq!(bindings.handle_snapshot(&registry), []);
    // Another MAC end, no convention at all, or another first octet.
    for other in [shown(2), None, Some(MacAddr([2, 0, 0, 0, 0, 1])), Some(mac(1))] {
        let mut bindings = Bindings::default();
        assert_eq!(
            bindings.handle_tap(ONE, "vnet0", other, &registry),
            [Change::Attach(ONE), Change::Unbind(ONE, Nobody::Unnamed)],
            "{other:?}"
        );
    }
}

#[test]
fn a_tap_is_bound_when_its_mac_comes_and_no_longer_when_it_goes() {
    let mut bindings = Bindings::default();
    let registry = one_unnamed_interface();
    bindings.handle_tap(ONE, "vnet0", Some(MacAddr([0x4e, 9, 9, 9, 9, 9])), &registry);
    assert_eq!(
        bindings.handle_tap(ONE, "vnet0", shown(1), &registry),
        [Change::Attach(ONE), Change::Bind(ONE, bound(1), on("web"))]
    );
    assert_eq!(
        bindings.handle_tap(ONE, "vnet0", shown(2), &registry),
        [Change::Attach(ONE), Change::Unbind(ONE, Nobody::Unnamed)]
    );
}

#[test]
fn the_tap_that_a_record_names_wins_over_what_taps_show() {
    let mut bindings = Bindings::default();
    // "vnet0" shows the end of i-web's MAC, but a record names "vnet0" for somebody else.
    let named = registry(&[(on("web"), mac(1), None), (on("db"), mac(2), Some("vnet0"))]);
    assert_eq!(
        bindings.handle_tap(ONE, "vnet0", shown(1), &named)[1],
        Change::Bind(ONE, bound(2), on("db"))
    );
    // The interface that a tap shows is somewhere else by its record.
    let elsewhere = registry(&[(on("web"), mac(1), Some("tap9"))]);
    let why = Nobody::NamesAnother {
        instance: on("web"),
        tap: "tap9".to_owned(),
    };
    assert_eq!(bindings.handle_snapshot(&elsewhere), [Change::Unbind(ONE, why)]);
}

#[test]
fn interfaces_that_differ_in_the_first_octet_only_are_bound_to_no_tap() {
    let mut bindings = Bindings::default();
    let twin = MacAddr([0x52, 0, 0, 0, 0, 1]);
    let twins = registry(&[(on("web"), mac(1), None), (on("db"), twin, None)]);
    let why = Nobody::SeveralInterfaces(vec![(on("web"), mac(1)), (on("db"), twin)]);
    assert_eq!(
        bindings.handle_tap(ONE, "vnet0", shown(1), &twins)[1],
        Change::Unbind(ONE, why.clone())
    );
    assert!(why.is_ambiguous());
    assert_eq!(
        why.to_string(),
        "its MAC points to several interfaces: 06:00:00:00:00:01 of i-web, 52:00:00:00:00:01 of i-db; name the tap in a record"
    );
    // A twin that is known to be on another tap is still a twin: its record may be what is wrong.
    let one_named = registry(&[(on("web"), mac(1), None), (on("db"), twin, Some("tap9"))]);
    assert_eq!(bindings.handle_snapshot(&one_named), []);
    assert_eq!(
        bindings.handle_snapshot(&one_unnamed_interface()),
        [Change::Bind(ONE, bound(1), on("web"))]
    );
}

#[test]
fn two_taps_that_show_the_same_are_bound_to_nobody_until_one_goes() {
    let mut bindings = Bindings::default();
    let registry = one_unnamed_interface();
    bindings.handle_tap(ONE, "vnet0", shown(1), &registry);
    let why = Nobody::SeveralTaps {
        mac: mac(1),
        taps: vec!["vnet0".to_owned(), "vnet1".to_owned()],
    };
    assert_eq!(
        bindings.handle_tap(TWO, "vnet1", shown(1), &registry),
        [
            Change::Attach(TWO),
            Change::Unbind(ONE, why.clone()),
            Change::Unbind(TWO, why)
        ]
    );
    assert_eq!(
        bindings.handle_gone(ONE, &registry),
        [Change::Detach(ONE), Change::Bind(TWO, bound(1), on("web"))]
    );
    // The same by a change of the MAC.
    bindings.handle_tap(ONE, "vnet0", shown(1), &registry);
    assert_eq!(
        bindings.handle_tap(TWO, "vnet1", shown(3), &registry),
        [
            Change::Attach(TWO),
            Change::Unbind(TWO, Nobody::Unnamed),
            Change::Bind(ONE, bound(1), on("web")),
        ]
    );
}

/// Clones have each other's MACs, and in their namespaces nobody makes a tap's own of its guest's.
#[test]
fn a_tap_in_another_namespace_is_bound_by_its_name_alone() {
    let there = TapIndex::within(NamespaceNumber(9), 11);
    let shown = MacAddr([CONVENTION_OCTET, 0, 0, 0, 0, 1]);
    let unnamed: InstanceId = "i-unnamed".parse().unwrap();
    let snapshot = registry(&[
        (unnamed.clone(), mac(1), None),
        (on("fc-1/tap0"), mac(1), Some("fc-1/tap0")),
    ]);
    let mut bindings = Bindings::default();
    assert_eq!(
        bindings.handle_tap(there, "fc-1/tap1", Some(shown), &snapshot),
        [Change::Attach(there), Change::Unbind(there, Nobody::Unnamed)]
    );
    assert_eq!(
        bindings.handle_tap(there, "fc-1/tap0", Some(shown), &snapshot),
        [
            Change::Attach(there),
            Change::Bind(there, bound(1), on("fc-1/tap0"))
        ]
    );
    // Nor does what they show, or what records say of them, make it ambiguous here.
    assert_eq!(
        bindings.handle_tap(ONE, "vnet0", Some(shown), &snapshot),
        [Change::Attach(ONE), Change::Bind(ONE, bound(1), unnamed)]
    );
}
