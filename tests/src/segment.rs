//! TCP segments of a guest as they stand in IP packets to the service, made of fields: nothing checks here that they make
//! sense. The TCP checksum is left to an offload, as guests leave it.

use imds_ebpf::abi::{IMDS_IPV4, IMDS_IPV6, IMDS_PORT};

use crate::frames::{GUEST_IP, GUEST_IPV6, internet_checksum};

/// FIN.
pub const FIN: u8 = 0x01;
/// SYN.
pub const SYN: u8 = 0x02;
/// RST.
pub const RST: u8 = 0x04;
/// PSH.
pub const PSH: u8 = 0x08;
/// ACK.
pub const ACK: u8 = 0x10;

/// The fields of a segment; by default those of a SYN.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The guest's port.
    pub port: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// What is acknowledged, whether or not the flag says so.
    pub acknowledges: u32,
    /// The flags.
    pub flags: u8,
    /// The window, not scaled.
    pub window: u16,
    /// Options, a multiple of four bytes.
    pub options: &'a [u8],
    /// What it carries.
    pub payload: &'a [u8],
}

impl Default for Segment<'_> {
    fn default() -> Self {
        Self {
            port: 50_000,
            sequence: 0,
            acknowledges: 0,
            flags: SYN,
            window: 64_000,
            options: &[],
            payload: &[],
        }
    }
}

impl Segment<'_> {
    /// Writes the packet from [`GUEST_IP`] to the service over what `packet` holds, whose room is used again.
    pub fn write_ipv4(&self, packet: &mut Vec<u8>) {
        packet.clear();
        packet.extend([0x45, 0]);
        packet.extend(length(IPV4_BYTES + self.bytes()));
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(GUEST_IP);
        packet.extend(IMDS_IPV4);
        let checksum = internet_checksum(packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        self.write(packet);
    }

    /// The same over IPv6, from [`GUEST_IPV6`].
    pub fn write_ipv6(&self, packet: &mut Vec<u8>) {
        packet.clear();
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length(self.bytes()));
        packet.extend([6, 64]);
        packet.extend(GUEST_IPV6);
        packet.extend(IMDS_IPV6);
        self.write(packet);
    }

    /// The packet over IPv4.
    pub fn ipv4(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        self.write_ipv4(&mut packet);
        packet
    }

    fn bytes(&self) -> usize {
        TCP_BYTES + self.options.len() + self.payload.len()
    }

    fn write(&self, packet: &mut Vec<u8>) {
        packet.extend(self.port.to_be_bytes());
        packet.extend(IMDS_PORT.to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledges.to_be_bytes());
        packet.extend([((TCP_BYTES + self.options.len()) * 4) as u8 & 0xf0, self.flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(self.options);
        packet.extend(self.payload);
    }
}

const IPV4_BYTES: usize = 20;
const TCP_BYTES: usize = 20;

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}
