//! Why frames are dropped.

/// Why the classifier dropped a frame. Numbers are written to metrics and never reused.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// The frame ends inside a header that is needed to tell where it goes.
    Truncated = 1,
    /// No MAC is bound to the tap, so nobody can be told from it.
    TapUnbound = 2,
    /// The source MAC is not the one bound to the tap.
    SourceMacForged = 3,
    /// The guest claims the metadata address as its own: as an IP source, as the sender of an ARP message, or in a neighbour
    /// advertisement or redirect.
    AddressClaimed = 4,
    /// The frame is for the metadata address inside an 802.1Q or 802.1ad tag.
    VlanTagged = 5,
    /// The IP header is malformed: a version that is not its EtherType's, or an IPv4 header of fewer than 20 bytes.
    MalformedIpHeader = 6,
    /// A fragment: metadata traffic is never fragmented by a sane guest.
    Fragment = 7,
    /// An IP protocol other than TCP, but for ICMP's word of one of the service's own packets that expired.
    NotTcp = 8,
    /// A TCP port other than 80.
    NotHttpPort = 9,
    /// An ARP message about the address other than a well-formed request for it.
    ArpNotRequest = 10,
    /// Longer than [`LARGE_FRAME_MAX`](super::LARGE_FRAME_MAX): the guest ignored the offered window.
    FrameTooLong = 11,
    /// The ring to the agent is full, or the frame's bytes could not be copied into it.
    RingFull = 12,
    /// The kernel refused to send a hairpinned reply.
    HairpinFailed = 13,
    /// IPv6 extension headers around metadata traffic, or more of them in a row than anyone sends: anything may stand
    /// behind them.
    ExtensionHeader = 14,
    /// An NDP message about the IPv6 address other than a well-formed solicitation of it.
    NdpNotSolicitation = 15,
    /// The frame is for the IPv6 address, and the instance's `HttpProtocolIpv6` is disabled.
    Ipv6Disabled = 16,
    /// An inbound frame from elsewhere that claims to come from the metadata address, or of which that cannot be told.
    InboundForged = 17,
    /// The tap sent more frames to be served than it may.
    RateLimited = 18,
    /// The frame is for the metadata address in 802.3 with a SNAP header, or that holds something behind which anything may be.
    SnapEncapsulated = 19,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 19] = [
        Self::Truncated,
        Self::TapUnbound,
        Self::SourceMacForged,
        Self::AddressClaimed,
        Self::VlanTagged,
        Self::MalformedIpHeader,
        Self::Fragment,
        Self::NotTcp,
        Self::NotHttpPort,
        Self::ArpNotRequest,
        Self::FrameTooLong,
        Self::RingFull,
        Self::HairpinFailed,
        Self::ExtensionHeader,
        Self::NdpNotSolicitation,
        Self::Ipv6Disabled,
        Self::InboundForged,
        Self::RateLimited,
        Self::SnapEncapsulated,
    ];

    /// The name that metrics and logs use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::TapUnbound => "tap-unbound",
            Self::SourceMacForged => "source-mac-forged",
            Self::AddressClaimed => "address-claimed",
            Self::VlanTagged => "vlan-tagged",
            Self::MalformedIpHeader => "malformed-ip-header",
            Self::Fragment => "fragment",
            Self::NotTcp => "not-tcp",
            Self::NotHttpPort => "not-http-port",
            Self::ArpNotRequest => "arp-not-request",
            Self::FrameTooLong => "frame-too-long",
            Self::RingFull => "ring-full",
            Self::HairpinFailed => "hairpin-failed",
            Self::ExtensionHeader => "extension-header",
            Self::NdpNotSolicitation => "ndp-not-solicitation",
            Self::Ipv6Disabled => "ipv6-disabled",
            Self::InboundForged => "inbound-forged",
            Self::RateLimited => "rate-limited",
            Self::SnapEncapsulated => "snap-encapsulated",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::HAIRPINNED_SLOT;

    #[test]
    fn reasons_are_numbered_as_listed_and_leave_the_two_slots_free() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index + 1);
            assert!((*reason as u32) < HAIRPINNED_SLOT);
        }
    }
}
