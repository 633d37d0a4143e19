use rtnetlink::{
    packet_core::{DoneMessage, NLM_F_DUMP_INTR, NetlinkHeader, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily,
        link::{InfoKind, LinkInfo, LinkLayerType},
    },
};

use super::*;

fn link(index: u32, name: &str, family: AddressFamily) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.interface_family = family;
    link.header.link_layer_type = LinkLayerType::Ether;
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link.attributes
        .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)]));
    link
}

fn tap(index: u32, name: &str) -> LinkMessage {
    link(index, name, AddressFamily::Unspec)
}

fn hear(known: &mut Known, message: RouteNetlinkMessage) {
    readable(&netlink::request(message, 0)).for_each(|message| known.changed(message.payload));
}

fn appear(known: &mut Known, link: LinkMessage) {
    hear(known, RouteNetlinkMessage::NewLink(link));
}

fn go(known: &mut Known, link: LinkMessage) {
    hear(known, RouteNetlinkMessage::DelLink(link));
}

/// A listing in pieces of one link each; the end has these flags.
fn listing(links: &[LinkMessage], flags: u16) -> Listing {
    let mut listing = Listing::default();
    for link in links {
        let message = netlink::request(RouteNetlinkMessage::NewLink(link.clone()), 0);
        assert!(!listing.absorb(&message).unwrap());
    }
    let end = NetlinkPayload::Done(DoneMessage::default());
    let mut end = NetlinkMessage::<RouteNetlinkMessage>::new(NetlinkHeader::default(), end);
    end.header.flags = flags;
    end.finalize();
    let mut bytes = vec![0; end.buffer_len()];
    end.serialize(&mut bytes);
    assert!(listing.absorb(&bytes).unwrap());
    listing
}

fn relist(known: &mut Known, links: &[LinkMessage]) {
    known.relist(listing(links, 0).links);
}

fn with_mac(mut link: LinkMessage, mac: [u8; 6]) -> LinkMessage {
    link.attributes.push(LinkAttribute::Address(mac.to_vec()));
    link
}

fn appeared(index: u64, name: &str) -> LinkEvent {
    LinkEvent::Appeared {
        index: TapIndex(index),
        name: name.to_owned(),
        mac: None,
        is_tap: true,
    }
}

fn appeared_with_mac(index: u64, name: &str, mac: [u8; 6]) -> LinkEvent {
    LinkEvent::Appeared {
        index: TapIndex(index),
        name: name.to_owned(),
        mac: Some(MacAddr(mac)),
        is_tap: true,
    }
}

fn gone(index: u64) -> LinkEvent {
    LinkEvent::Gone {
        index: TapIndex(index),
    }
}

#[test]
fn link_is_told_once_and_again_under_a_new_name() {
    let mut known = Known::default();
    appear(&mut known, tap(7, "vnet0"));
    appear(&mut known, tap(7, "vnet0"));
    appear(&mut known, tap(7, "web"));
    go(&mut known, tap(7, "web"));
    go(&mut known, tap(7, "web"));
    assert_eq!(known.events, [appeared(7, "vnet0"), appeared(7, "web"), gone(7)]);
}

#[test]
fn link_is_told_again_with_a_new_mac() {
    let mut known = Known::default();
    let (random, fixed) = ([0x4e, 1, 2, 3, 4, 5], [0xfe, 0x54, 0, 0, 0, 1]);
    appear(&mut known, with_mac(tap(7, "vnet0"), random));
    appear(&mut known, with_mac(tap(7, "vnet0"), fixed));
    appear(&mut known, with_mac(tap(7, "vnet0"), fixed));
    assert_eq!(
        known.events,
        [
            appeared_with_mac(7, "vnet0", random),
            appeared_with_mac(7, "vnet0", fixed)
        ]
    );
}

/// In the bridge's own family no message tells the kind of a link: a tap in it would pass for something else.
#[test]
fn what_a_bridge_says_of_its_ports_is_passed_over() {
    let mut known = Known::default();
    appear(&mut known, tap(7, "vnet0"));
    let mut port = link(7, "vnet0", AddressFamily::Bridge);
    port.attributes.truncate(1);
    appear(&mut known, with_mac(port.clone(), [0xfe, 0x54, 0, 0, 0, 1]));
    go(&mut known, port);
    assert_eq!(known.events, [appeared(7, "vnet0")]);
}

#[test]
fn relisting_tells_who_went_and_everyone_who_is_there() {
    let mut known = Known::default();
    relist(&mut known, &[tap(7, "vnet0"), tap(8, "vnet1")]);
    known.events.clear();
    relist(&mut known, &[tap(8, "vnet1"), tap(9, "vnet2")]);
    assert_eq!(
        known.events,
        [
            gone(7),
            appeared(8, "vnet1"),
            appeared(9, "vnet2"),
            LinkEvent::Listed
        ]
    );
}

/// The kernel left out a link that is there, and says that it may have.
#[tokio::test]
async fn listing_that_was_cut_up_tells_of_nobody_who_went() {
    let mut watch = LinkWatch::new().unwrap();
    watch.handle_listing(listing(&[tap(7, "vnet0"), tap(8, "vnet1")], 0));
    watch.known.events.clear();
    for number in 1..=CUT_UP_MAX {
        watch.unlisted = false;
        watch.handle_listing(listing(&[tap(8, "vnet1"), tap(9, "vnet2")], NLM_F_DUMP_INTR));
        let is_last = number == CUT_UP_MAX;
        assert_eq!(watch.unlisted, !is_last);
        assert_eq!(watch.list_again_at.is_some(), is_last);
        let mut expected = vec![appeared(8, "vnet1"), appeared(9, "vnet2")];
        expected.extend(is_last.then_some(LinkEvent::ListedInPart));
        assert_eq!(watch.known.events, expected);
        watch.known.events.clear();
    }
    watch.handle_listing(listing(&[tap(8, "vnet1"), tap(9, "vnet2")], 0));
    assert_eq!(
        watch.known.events,
        [
            gone(7),
            appeared(8, "vnet1"),
            appeared(9, "vnet2"),
            LinkEvent::Listed
        ]
    );
}
