//! What the stack needs to know of a TCP segment before smoltcp sees it.

use std::{borrow::Cow, net::SocketAddr, ops::Range};

use smoltcp::wire::{
    IPV6_HEADER_LEN, IpAddress, IpEndpoint, IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TCP_HEADER_LEN,
    TcpOption, TcpPacket, TcpSeqNumber,
};

/// The shortest segments that a guest may ask for: the default of RFC 9293 (section 3.7.1). A guest on Ethernet takes
/// longer ones, and shorter ones would make hundreds of packets of one response.
const MSS_MIN: u16 = 536;

/// Both ends of a connection.
#[derive(Clone, Copy, Eq, Debug)]
pub struct Peer {
    /// The guest's end.
    pub remote: IpEndpoint,
    /// Our end.
    pub local: IpEndpoint,
}

impl PartialEq for Peer {
    /// The connections of an interface are mostly those of one address, so that the guest's port tells nearly all apart.
    fn eq(&self, other: &Self) -> bool {
        self.remote.port == other.remote.port
            && self.remote.addr == other.remote.addr
            && self.local == other.local
    }
}

impl Peer {
    /// The guest's end, as everybody else writes it.
    pub fn remote_address(&self) -> SocketAddr {
        SocketAddr::new(self.remote.addr.into(), self.remote.port)
    }
}

/// One segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Whose it is.
    pub peer: Peer,
    /// Sequence number of its first byte.
    pub sequence: TcpSeqNumber,
    /// Sequence number behind its last byte, SYN and FIN counted.
    pub end: TcpSeqNumber,
    /// What it acknowledges.
    pub acknowledges: Option<TcpSeqNumber>,
    /// The SYN flag.
    pub syn: bool,
    /// The FIN flag.
    pub fin: bool,
    /// The RST flag.
    pub rst: bool,
}

impl Segment {
    /// Reads the headers, or nothing if the packet is not one whole TCP segment. What smoltcp would pass over without a word is
    /// none, so that all that a guest sends is either taken or counted.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        // smoltcp's `of_packet` panics on nothing at all.
        if packet.is_empty() {
            return None;
        }
        let (source, destination, payload): (IpAddress, IpAddress, &[u8]) =
            match IpVersion::of_packet(packet).ok()? {
                IpVersion::Ipv4 => {
                    let packet = Ipv4Packet::new_checked(packet).ok()?;
                    if packet.next_header() != IpProtocol::Tcp || !packet.verify_checksum() {
                        return None;
                    }
                    (
                        packet.src_addr().into(),
                        packet.dst_addr().into(),
                        packet.payload(),
                    )
                }
                IpVersion::Ipv6 => {
                    let packet = Ipv6Packet::new_checked(packet).ok()?;
                    if packet.next_header() != IpProtocol::Tcp {
                        return None;
                    }
                    (
                        packet.src_addr().into(),
                        packet.dst_addr().into(),
                        packet.payload(),
                    )
                }
            };
        let tcp = TcpPacket::new_checked(payload).ok()?;
        let controls = [tcp.syn(), tcp.fin(), tcp.rst()];
        if !source.is_unicast()
            || tcp.src_port() == 0
            || controls.into_iter().filter(|is_set| *is_set).count() > 1
            || !are_options_whole(tcp.options())
        {
            return None;
        }
        #[expect(
            clippy::arithmetic_side_effects,
            reason = "sequence numbers wrap, and a segment is under 64 KiB"
        )]
        let end = tcp.seq_number() + tcp.segment_len();
        Some(Self {
            peer: Peer {
                remote: IpEndpoint::new(source, tcp.src_port()),
                local: IpEndpoint::new(destination, tcp.dst_port()),
            },
            sequence: tcp.seq_number(),
            end,
            acknowledges: tcp.ack().then(|| tcp.ack_number()),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
        })
    }

    /// Whether it asks for a new connection.
    pub fn opens(&self) -> bool {
        self.syn && self.acknowledges.is_none() && !self.rst && !self.fin
    }
}

/// Whether each option ends within `options`. Nearly all segments have those of a timestamp, aligned (RFC 7323, appendix A).
fn are_options_whole(mut options: &[u8]) -> bool {
    if let [1, 1, 8, 10, timestamps @ ..] = options
        && timestamps.len() == 8
    {
        return true;
    }
    while !options.is_empty() {
        match TcpOption::parse(options) {
            Ok((_, TcpOption::EndOfList)) => break,
            Ok((rest, _)) => options = rest,
            Err(_) => return false,
        }
    }
    true
}

/// `packet`, which is a SYN, with every maximum segment size in it at least [`MSS_MIN`]. Its checksum is wrong then, but
/// [nobody looks](super::device::checksums). Zero stays, which means that there is none.
pub fn with_mss_raised(packet: &[u8]) -> Cow<'_, [u8]> {
    let mut raised = Cow::Borrowed(packet);
    let Some(range) = tcp_options(packet) else {
        return raised;
    };
    let mut options = packet.get(range.clone()).unwrap_or_default();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(1..MSS_MIN) => {
                // The size is the last of its option.
                let end = range.end.saturating_sub(rest.len());
                let start = end.saturating_sub(size_of_val(&MSS_MIN));
                if let Some([high, low]) = raised.to_mut().get_mut(start..end) {
                    [*high, *low] = MSS_MIN.to_be_bytes();
                }
            }
            _ => {}
        }
        options = rest;
    }
    raised
}

/// Where the TCP options of `packet` are.
fn tcp_options(packet: &[u8]) -> Option<Range<usize>> {
    let tcp = match IpVersion::of_packet(packet).ok()? {
        IpVersion::Ipv4 => Ipv4Packet::new_checked(packet).ok()?.header_len().into(),
        IpVersion::Ipv6 => IPV6_HEADER_LEN,
    };
    let header_bytes = TcpPacket::new_checked(packet.get(tcp..)?).ok()?.header_len();
    Some(tcp.saturating_add(TCP_HEADER_LEN)..tcp.saturating_add(header_bytes.into()))
}
