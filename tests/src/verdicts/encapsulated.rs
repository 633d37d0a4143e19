//! The address inside of something else: SNAP, which hosts and bridges open without being told, and tunnels, which they do not.

use imds_ebpf::{
    abi::{IMDS_IPV4, IMDS_IPV6, LARGE_FRAME_MAX, Reason},
    classify::Verdict::{Drop, Pass},
};

use super::{Case, case, early};
use crate::frames::{
    ALL_NODES, Arp, BROADCAST, GATEWAY_MAC, GUEST_MAC, Ipv4, Ipv6, OTHER_IPV6, OTHER_MAC, eth, ndp, padded,
    snap, tcp,
};

/// 802.3 frames with an EtherType behind their SNAP header.
#[rustfmt::skip]
pub fn snapped() -> Vec<Case> {
    let request = Ipv4::default().packet(&tcp(80, 0));
    let elsewhere = Ipv4 { destination: [10, 0, 0, 1], ..Ipv4::default() }.packet(&tcp(80, 0));
    let frame = |inner: &[u8]| eth(GATEWAY_MAC, GUEST_MAC, &[], inner.len() as u16, inner);
    let bridged = |ethertype: u16, packet: &[u8]| [&[0xaa, 0xaa, 3, 0, 0, 0xf8][..], &ethertype.to_be_bytes(), packet].concat();
    let encapsulated = Drop(Reason::SnapEncapsulated);
    let vlan = Drop(Reason::VlanTagged);
    vec![
        case("SNAP around a request", frame(&snap(0x0800, &request)), encapsulated),
        case("a bridge's SNAP around a request", frame(&bridged(0x0800, &request)), encapsulated),
        case("SNAP around a request, padded to the Ethernet minimum", padded(frame(&snap(0x0800, &request)), 80), encapsulated),
        case("SNAP around UDP to the address", frame(&snap(0x0800, &Ipv4 { protocol: 17, ..Ipv4::default() }.packet(&[0; 8]))), encapsulated),
        case("SNAP around a claim of the address", frame(&snap(0x0800, &Ipv4 { source: IMDS_IPV4, destination: [10, 0, 0, 1], ..Ipv4::default() }.packet(&tcp(80, 0)))), encapsulated),
        case("SNAP around an ARP request", eth(BROADCAST, GUEST_MAC, &[], 36, &snap(0x0806, &Arp::default().message())), encapsulated),
        case("SNAP around an ARP announcement", eth(BROADCAST, GUEST_MAC, &[], 36, &snap(0x0806, &Arp { sender_ip: IMDS_IPV4, ..Arp::default() }.message())), encapsulated),
        case("SNAP around RARP", eth(BROADCAST, GUEST_MAC, &[], 36, &snap(0x8035, &Arp { operation: 4, ..Arp::default() }.message())), encapsulated),
        case("SNAP around IPv6", frame(&snap(0x86dd, &Ipv6::default().packet(&tcp(80, 0)))), encapsulated),
        case("SNAP around an advertisement", frame(&snap(0x86dd, &Ipv6 { destination: ALL_NODES, next: 58, hop_limit: 255, ..Ipv6::default() }.packet(&ndp(136, 0, &IMDS_IPV6)))), encapsulated),
        case("SNAP whose length is zero", eth(GATEWAY_MAC, GUEST_MAC, &[], 0, &snap(0x0800, &request)), encapsulated),
        case("SNAP whose length is the largest that is one", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x05ff, &snap(0x0800, &request)), encapsulated),
        case("SNAP longer than the offered window", eth(GATEWAY_MAC, GUEST_MAC, &[], 48, &snap(0x0800, &Ipv4::default().packet(&tcp(80, LARGE_FRAME_MAX)))), encapsulated),
        case("SNAP from another MAC", eth(GATEWAY_MAC, OTHER_MAC, &[], 48, &snap(0x0800, &request)), Drop(Reason::SourceMacForged)),
        case("SNAP in a tag", eth(GATEWAY_MAC, GUEST_MAC, &[0x8100], 48, &snap(0x0800, &request)), vlan),
        case("SNAP in two tags", eth(GATEWAY_MAC, GUEST_MAC, &[0x88a8, 0x8100], 48, &snap(0x0800, &request)), vlan),
        early("SNAP around a tag", frame(&snap(0x8100, &[&[0, 100, 8, 0][..], &request].concat())), encapsulated),
        early("SNAP around IPv4 that ends early", frame(&snap(0x0800, &request[..19])), Drop(Reason::Truncated)),
        case("SNAP around other traffic", frame(&snap(0x0800, &elsewhere)), Pass),
        case("SNAP around ARP for another", eth(BROADCAST, GUEST_MAC, &[], 36, &snap(0x0806, &Arp { target_ip: [10, 0, 0, 1], ..Arp::default() }.message())), Pass),
        case("SNAP in a tag around other traffic", eth(GATEWAY_MAC, GUEST_MAC, &[0x8100], 48, &snap(0x0800, &elsewhere)), Pass),
        case("SNAP of another organization", frame(&[&[0xaa, 0xaa, 3, 0, 0, 0x0c, 0x20, 0][..], &request].concat()), Pass),
        early("SNAP around SNAP", frame(&snap(48, &snap(0x0800, &request))), encapsulated),
        case("802.3 that ends within its LLC header", frame(&[0xaa, 0xaa, 3, 0, 0]), Pass),
        case("LLC with another control field", frame(&[&[0xaa, 0xaa, 0x13, 0, 0, 0, 8, 0][..], &request].concat()), Pass),
        case("an EtherType that begins where lengths end", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x0600, &snap(0x0800, &request)), Pass),
    ]
}

/// Packets for the address in packets that are for somebody else, who has to be set up to open them; and addresses that somebody
/// may translate. Nobody on the host does either unless told to.
#[rustfmt::skip]
pub fn tunnels() -> Vec<Case> {
    let request = Ipv4::default().packet(&tcp(80, 0));
    let request_v6 = Ipv6::default().packet(&tcp(80, 0));
    let ether = |ethertype, header: &[u8]| eth(GATEWAY_MAC, GUEST_MAC, &[], ethertype, &[header, &request].concat());
    let over = |destination, protocol, header: &[u8], inner: &[u8]| Ipv4 { destination, protocol, ..Ipv4::default() }.frame(&[header, inner].concat());
    let elsewhere = |protocol, header: &[u8], inner: &[u8]| over([10, 0, 0, 1], protocol, header, inner);
    let over_v6 = |next, inner: &[u8]| Ipv6 { destination: OTHER_IPV6, next, ..Ipv6::default() }.frame(inner);
    let to_v6 = |destination| Ipv6 { destination, ..Ipv6::default() }.frame(&tcp(80, 0));
    let vxlan = [0x12, 0xb5, 0x12, 0xb5, 0, 80, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0];
    let inner_frame = Ipv4::default().frame(&tcp(80, 0));
    let not_tcp = Drop(Reason::NotTcp);
    vec![
        case("IP in IP, elsewhere", elsewhere(4, &[], &request), Pass),
        case("IPv6 in IP, elsewhere", elsewhere(41, &[], &request_v6), Pass),
        case("GRE, elsewhere", elsewhere(47, &[0, 0, 8, 0], &request), Pass),
        case("VXLAN, elsewhere", elsewhere(17, &vxlan, &inner_frame), Pass),
        case("ESP, elsewhere", elsewhere(50, &[0, 0, 0, 1, 0, 0, 0, 1], &request), Pass),
        case("IP in IPv6, elsewhere", over_v6(4, &request), Pass),
        case("IPv6 in IPv6, elsewhere", over_v6(41, &request_v6), Pass),
        case("PPPoE", ether(0x8864, &[0x11, 0, 0, 1, 0, 42, 0, 0x21]), Pass),
        case("MPLS", ether(0x8847, &[0, 0, 0x11, 64]), Pass),
        case("MACsec", ether(0x88e5, &[0, 0, 0, 0, 0, 1, 8, 0]), Pass),
        case("provider backbone bridging", eth(GATEWAY_MAC, GUEST_MAC, &[], 0x88e7, &[&[0, 0, 0, 1][..], &inner_frame].concat()), Pass),
        case("IP in IP, to the address", over(IMDS_IPV4, 4, &[], &request), not_tcp),
        case("GRE, to the address", over(IMDS_IPV4, 47, &[0, 0, 8, 0], &request), not_tcp),
        case("IPv6 in IP, to the address", over(IMDS_IPV4, 41, &[], &request_v6), not_tcp),
        case("IPv6 in IPv6, to the address", Ipv6 { next: 41, ..Ipv6::default() }.frame(&request_v6), not_tcp),
        case("the address behind NAT64's prefix", to_v6([0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254]), Pass),
        case("the address behind 6to4's prefix", to_v6([0x20, 0x02, 169, 254, 169, 254, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), Pass),
        case("the address in an IPv4-compatible one", to_v6([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 169, 254, 169, 254]), Pass),
    ]
}
