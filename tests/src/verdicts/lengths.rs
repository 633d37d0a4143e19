//! Headers and frames that disagree about lengths, and other fields that a receiver may or may not look at.

use imds_ebpf::{
    abi::{MacAddr, Reason},
    classify::Verdict::{Drop, Punt},
};

use super::{Case, case};
use crate::frames::{GUEST_MAC, Ipv4, Ipv6, eth, padded, tcp};

/// What the stack behind the classifier makes of these is its own business: they do not pass.
#[rustfmt::skip]
pub fn lengths() -> Vec<Case> {
    let request = || Ipv4::default().frame(&tcp(80, 0));
    let total_length = |length: u16| patched(request(), 16, &length.to_be_bytes());
    let to = |destination, packet: &[u8]| eth(MacAddr(destination), GUEST_MAC, &[], 0x0800, packet);
    let packet = Ipv4::default().packet(&tcp(80, 0));
    let with_length = |length| Ipv6 { length: Some(length), ..Ipv6::default() }.frame(&tcp(80, 0));
    vec![
        case("total length beyond the frame", total_length(1500), Punt),
        case("total length of 65535", total_length(u16::MAX), Punt),
        case("total length within the header", total_length(19), Punt),
        case("total length of zero, as a large offload leaves it", total_length(0), Punt),
        case("total length before the port", total_length(22), Punt),
        case("a request that is padded beyond its length", padded(Ipv4::default().frame(&tcp(80, 200)), 1514), Punt),
        case("no payload at all", Ipv4::default().frame(&[]), Drop(Reason::Truncated)),
        case("no payload at all, padded with zeroes", padded(Ipv4::default().frame(&[]), 60), Drop(Reason::NotHttpPort)),
        case("a jumbo frame", padded(request(), 9014), Drop(Reason::FrameTooLong)),
        case("as long as IP can be", padded(request(), 65_549), Drop(Reason::FrameTooLong)),
        case("a wrong header checksum", patched(request(), 24, &[0xde, 0xad]), Punt),
        case("IP TTL 0", Ipv4 { ttl: 0, ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("all bits of the type of service", patched(request(), 15, &[0xff]), Punt),
        case("a data offset within TCP's header", Ipv4::default().frame(&patched(tcp(80, 0), 12, &[0x10])), Punt),
        case("a data offset beyond the segment", Ipv4::default().frame(&patched(tcp(80, 0), 12, &[0xf0])), Punt),
        case("no flags of TCP", Ipv4::default().frame(&patched(tcp(80, 0), 13, &[0])), Punt),
        case("all flags of TCP", Ipv4::default().frame(&patched(tcp(80, 0), 13, &[0xff])), Punt),
        case("from port 0", Ipv4::default().frame(&patched(tcp(80, 0), 0, &[0, 0])), Punt),
        case("to a multicast group's MAC", to([0x01, 0, 0x5e, 0x7e, 0xa9, 0xfe], &packet), Punt),
        case("to the spanning tree's MAC", to([0x01, 0x80, 0xc2, 0, 0, 0], &packet), Punt),
        case("to the guest's own MAC", to(GUEST_MAC.0, &packet), Punt),
        case("to no MAC", to([0; 6], &packet), Punt),
        case("from a multicast source", Ipv4 { source: [224, 0, 0, 1], ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("from the loopback network", Ipv4 { source: [127, 0, 0, 1], ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("DHCP to the address", Ipv4 { protocol: 17, ..Ipv4::default() }.frame(&[0, 68, 0, 67, 0, 8, 0, 0]), Drop(Reason::NotTcp)),
        case("IGMP to the address", Ipv4 { protocol: 2, ttl: 1, ..Ipv4::default() }.frame(&[0x16, 0, 0, 0, 169, 254, 169, 254]), Drop(Reason::NotTcp)),
        case("a source route that ends at the address", Ipv4 { options: vec![0x83, 7, 8, 10, 0, 0, 1, 0], ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("options that never end", Ipv4 { options: vec![0x44; 40], ..Ipv4::default() }.frame(&tcp(80, 0)), Punt),
        case("IPv6 with a length beyond the frame", with_length(1400), Punt),
        case("IPv6 with a length of zero", with_length(0), Punt),
        case("IPv6 with a length before the port", with_length(2), Punt),
        case("IPv6 jumbogram", Ipv6 { length: Some(0), ..Ipv6::default() }.behind(&[0], 6, &tcp(80, 0)), Drop(Reason::ExtensionHeader)),
        case("IPv6 with hop limit 0", Ipv6 { hop_limit: 0, ..Ipv6::default() }.frame(&tcp(80, 0)), Punt),
        case("DHCPv6 to the address", Ipv6 { next: 17, ..Ipv6::default() }.frame(&[2, 0x22, 2, 0x23, 0, 8, 0, 0]), Drop(Reason::NotTcp)),
        case("IPv6 in a frame to a multicast group's MAC", eth(MacAddr([0x33, 0x33, 0, 0, 0, 1]), GUEST_MAC, &[], 0x86dd, &Ipv6::default().packet(&tcp(80, 0))), Punt),
    ]
}

fn patched(mut bytes: Vec<u8>, offset: usize, patch: &[u8]) -> Vec<u8> {
    bytes[offset..offset + patch.len()].copy_from_slice(patch);
    bytes
}
