//! smoltcp's view of the outside: one packet in, packets out.

use smoltcp::{
    phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
    wire::{IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket},
};

use super::{HOP_LIMIT_DEFAULT, MTU_BYTES, Transmit};

/// A device for one call into smoltcp.
pub struct PacketDevice<'a, T> {
    packet: Option<&'a [u8]>,
    transmit: &'a mut T,
}

/// Where the packets of a call go that sends none.
pub struct Nowhere;

impl Transmit for Nowhere {
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut vec![0; length])
    }
}

impl<'a, T: Transmit> PacketDevice<'a, T> {
    /// Receives `packet` once and sends into `transmit`.
    pub fn new(packet: Option<&'a [u8]>, transmit: &'a mut T) -> Self {
        Self { packet, transmit }
    }
}

impl<T: Transmit> Device for PacketDevice<'_, T> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Sender<'b, T>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sender<'_, T>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), Sender(self.transmit)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sender<'_, T>> {
        Some(Sender(self.transmit))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU_BYTES;
        capabilities.checksum = checksums();
        capabilities
    }
}

/// A guest with checksum offload leaves partial TCP checksums, and the frame crossed no wire: they are not verified.
/// Ours are always computed, since a guest may verify them. IP header checksums are the guest's own work in every case, and
/// were [verified](super::segment::Segment::parse) before.
pub fn checksums() -> ChecksumCapabilities {
    let mut checksums = ChecksumCapabilities::default();
    checksums.ipv4 = Checksum::Tx;
    checksums.tcp = Checksum::Tx;
    checksums
}

/// The packet that came in.
pub struct Received<'b>(&'b [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, handle: F) -> R {
        handle(self.0)
    }
}

/// Leave to send one packet.
pub struct Sender<'b, T>(&'b mut T);

impl<T: Transmit> TxToken for Sender<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.0.transmit(length, |packet| {
            let result = write(packet);
            raise_hop_limit_without_payload(packet);
            result
        })
    }
}

/// The hop limit of a session token response is a socket's while that response is under way, but the contract lowers it
/// only for packets that carry the response's bytes: a bare acknowledgement, FIN or RST in between goes out with the
/// ordinary one.
fn raise_hop_limit_without_payload(packet: &mut [u8]) {
    match IpVersion::of_packet(packet) {
        Ok(IpVersion::Ipv4) => {
            let mut packet = Ipv4Packet::new_unchecked(packet);
            if packet.hop_limit() != HOP_LIMIT_DEFAULT && !carries_payload(packet.payload_mut()) {
                packet.set_hop_limit(HOP_LIMIT_DEFAULT);
                packet.fill_checksum();
            }
        }
        Ok(IpVersion::Ipv6) => {
            let mut packet = Ipv6Packet::new_unchecked(packet);
            if packet.hop_limit() != HOP_LIMIT_DEFAULT && !carries_payload(packet.payload_mut()) {
                packet.set_hop_limit(HOP_LIMIT_DEFAULT);
            }
        }
        Err(_) => {}
    }
}

fn carries_payload(segment: &mut [u8]) -> bool {
    TcpPacket::new_checked(&*segment).is_ok_and(|tcp| !tcp.payload().is_empty())
}
