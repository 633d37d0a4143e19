//! The frames of such a guest: one template a guest, completed in place for every segment.

use imds_ebpf::abi::{IMDS_IPV4, IMDS_PORT};

use super::Load;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const HEADERS: usize = ETHERNET + IPV4 + TCP;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;

/// What came for a port of the guest.
pub(super) struct Segment<'a> {
    pub port: u16,
    pub sequence: u32,
    pub acknowledges: u32,
    pub flags: u8,
    pub payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// Nothing where the frame is no TCP over IPv4.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        if frame.get(12..14)? != [8, 0] || *packet.get(9)? != 6 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        let tcp = packet.get(..length)?.get(IPV4..)?;
        Some(Self {
            port: u16::from_be_bytes(tcp.get(2..4)?.try_into().ok()?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            acknowledges: u32::from_be_bytes(tcp.get(8..12)?.try_into().ok()?),
            flags: *tcp.get(13)?,
            payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
        })
    }
}

/// Everything of a guest's frames that stays the same.
pub(super) fn template(load: &Load) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADERS + load.requests.iter().map(Vec::len).max().unwrap_or(0));
    frame.extend_from_slice(&load.server.0);
    frame.extend_from_slice(&load.mac.0);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend_from_slice(&load.address);
    frame.extend_from_slice(&IMDS_IPV4);
    frame.extend_from_slice(&[0; 2]);
    frame.extend_from_slice(&IMDS_PORT.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

/// Completes a frame that began as [`template`], with both checksums.
pub(super) fn write(
    frame: &mut Vec<u8>,
    port: u16,
    sequence: u32,
    acknowledges: u32,
    flags: u8,
    payload: &[u8],
) {
    frame.truncate(HEADERS);
    frame.extend_from_slice(payload);
    let length = u16::try_from(frame.len() - ETHERNET).unwrap_or(u16::MAX);
    let (head, tcp) = frame.split_at_mut(ETHERNET + IPV4);
    let ip = &mut head[ETHERNET..];
    ip[2..4].copy_from_slice(&length.to_be_bytes());
    ip[10..12].fill(0);
    let checksum = finish(sum(ip));
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    tcp[0..2].copy_from_slice(&port.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledges.to_be_bytes());
    tcp[13] = flags;
    tcp[16..18].fill(0);
    let pseudo = sum(&ip[12..20]) + 6 + u64::from(length) - IPV4 as u64;
    let checksum = finish(pseudo + sum(tcp));
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
}

/// The Internet checksum's sum, eight bytes at a time: 2^64 is 1 in its arithmetic, so a carry comes back in at the bottom.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    let add = |sum: u64, word: u64| {
        let (sum, carry) = sum.overflowing_add(word);
        sum + u64::from(carry)
    };
    let mut total = words.by_ref().fold(0, |total, word| {
        add(total, u64::from_be_bytes(word.try_into().unwrap_or_default()))
    });
    let mut last = [0; 8];
    for (byte, value) in last.iter_mut().zip(words.remainder()) {
        *byte = *value;
    }
    total = add(total, u64::from_be_bytes(last));
    (total & 0xffff_ffff) + (total >> 32)
}

fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
