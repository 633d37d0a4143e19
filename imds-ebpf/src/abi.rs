//! What the classifier and the agent agree on: addresses, ring records, map keys and values, numbered reasons.
//!
//! Everything here is `repr(C)` plain data, so that both sides read the same bytes. A change of layout bumps
//! [`ABI_VERSION`], which is part of the pinned maps' path.

#[cfg(test)]
mod layout;
mod mac;
mod reason;
mod tap;

pub use self::{
    mac::{MacAddr, MacAddrError},
    reason::Reason,
    tap::{NamespaceNumber, TapIndex, TapIndexError},
};

/// Version of every layout in this module. Pinned maps of another version are never adopted.
pub const ABI_VERSION: u32 = 3;

/// The IPv4 address of the instance metadata service (EC2 user guide, "Access instance metadata").
pub const IMDS_IPV4: [u8; 4] = [169, 254, 169, 254];

/// The IPv6 address of the service, `fd00:ec2::254`.
pub const IMDS_IPV6: [u8; 16] = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54];

/// The TCP port that the service listens on.
pub const IMDS_PORT: u16 = 80;

/// The Ethernet address that the service answers ARP and NDP with and that its frames carry as their source: locally
/// administered, and it spells the IPv4 address (`a9:fe:a9:fe` is 169.254.169.254).
pub const IMDS_MAC: MacAddr = MacAddr([0x02, 0x00, 0xa9, 0xfe, 0xa9, 0xfe]);

/// The mark (`SO_MARK`, `skb->mark`) of every frame that comes from the service itself, by which the inbound filter tells
/// them from a forger's. It spells 169.254, twice. Marks do not travel: a frame from the network has none.
pub const INJECT_MARK: u32 = 0xa9fe_a9fe;

/// One of an agent's workers, counted from zero, and the ring that it reads.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
pub struct WorkerNumber(pub u8);

/// Value of the `TAPS` map, keyed by [`TapIndex`]: what the classifier knows about one tap.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TapBinding {
    /// The only source MAC whose metadata traffic is served on this tap.
    pub mac: MacAddr,
    /// What else is served: [`SERVES_IPV6`], or nothing.
    pub flags: u8,
    /// Whose ring its frames are punted into.
    pub worker: WorkerNumber,
    /// Nanoseconds after which the tap may have another frame served. Zero sets no limit.
    pub frame_interval_ns: u32,
}

/// Flag of a [`TapBinding`]: the IPv6 address is served, too.
pub const SERVES_IPV6: u8 = 1;

/// Head of every ring record. The frame's bytes follow it: a TCP segment to the service's port, or an ICMP message that a
/// segment from it expired on its way.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PuntHeader {
    /// When the classifier saw the frame, in nanoseconds of `CLOCK_MONOTONIC`.
    pub arrived_ns: u64,
    /// The tap that the frame came from.
    pub tap: TapIndex,
    /// Bytes of frame that follow; the rest of the record is unused.
    pub frame_length: u16,
    /// The frame's source MAC, which is the tap's bound one.
    pub mac: MacAddr,
}

/// Bytes of [`PuntHeader`] in front of the frame.
pub const PUNT_HEADER_BYTES: usize = size_of::<PuntHeader>();

/// Frame room of the small record: SYN, ACK and FIN segments and nearly every SDK request.
pub const SMALL_FRAME_MAX: usize = 512 - PUNT_HEADER_BYTES;

/// Frame room of the medium record: what an Ethernet network carries at the usual MTU, and some.
pub const MEDIUM_FRAME_MAX: usize = 2048 - PUNT_HEADER_BYTES;

/// Frame room of the large record. A guest's segmentation offload merges at most what the stack's 8 KiB receive window
/// allows; Ethernet, IPv4 and TCP headers with all their options add 14 + 60 + 60 bytes.
pub const LARGE_FRAME_MAX: usize = 8192 + 14 + 60 + 60;

/// Bytes of one worker's ring: a power of two and a multiple of the page size. A full burst of one tap, 1024 medium or
/// 128 large records, fills half of it.
pub const RING_BYTES: u32 = 1 << 22;

/// Workers that an agent may have. One answers some 300,000 exchanges a second on a core of its own (`cargo xtask bench`, P1), so
/// eight answer as much as ten thousand guests may ask for that all send 256 requests a second. Each takes a map of the program's
/// and a comparison in front of those behind it.
pub const WORKERS_MAX: u8 = 8;

/// Frames of one tap that are served in a second, sustained: as many packets as an EC2 network interface may send to
/// link-local services (EC2 user guide, "Link-local addresses").
pub const PACKETS_PER_SECOND: u32 = 1024;

/// Tokens of a tap that was silent: two hundred clients at once with the five frames of an exchange each.
pub const BURST_TOKENS: u64 = 1024;

/// Tokens that a frame of a large record costs; any other costs one. No exchange of an SDK has such a frame, and eight
/// medium records have room for two of them.
pub const LARGE_FRAME_TOKENS: u64 = 8;

/// Taps that one host may have: what the architecture promises, and some.
pub const TAPS_MAX: u32 = 16384;

/// Number of slots of a tap's counters: one per possible [`Verdict`](crate::classify::Verdict) counter, with room to grow.
pub const COUNTERS: usize = 64;

/// Slot of the frames punted to the agent. Slots below [`HAIRPINNED_SLOT`] are the numbers of [`Reason`].
pub const PUNTED_SLOT: u32 = 63;

/// Slot of the frames answered in the kernel.
pub const HAIRPINNED_SLOT: u32 = 62;

/// Value of the `COUNTERS` map, per CPU and keyed by [`TapIndex`]: frames by reason number, and the two slots above.
/// Frames that pass are nobody's business and are not counted.
pub type TapCounters = [u64; COUNTERS];

impl TapBinding {
    /// Binds `mac`, on the IPv4 address only, at [`PACKETS_PER_SECOND`] and to the first worker.
    pub const fn to(mac: MacAddr) -> Self {
        Self {
            mac,
            flags: 0,
            worker: WorkerNumber(0),
            frame_interval_ns: interval_ns(PACKETS_PER_SECOND),
        }
    }

    /// The same at another rate. Zero sets no limit.
    pub const fn with_packets_per_second(self, packets_per_second: u32) -> Self {
        Self {
            frame_interval_ns: interval_ns(packets_per_second),
            ..self
        }
    }

    /// The same with the IPv6 address.
    pub const fn with_ipv6(self) -> Self {
        Self {
            flags: self.flags | SERVES_IPV6,
            ..self
        }
    }

    /// The same with another worker.
    pub const fn with_worker(self, worker: WorkerNumber) -> Self {
        Self { worker, ..self }
    }

    /// Whether the IPv6 address is served.
    pub const fn serves_ipv6(&self) -> bool {
        self.flags & SERVES_IPV6 != 0
    }

    /// The bytes of the map's value.
    pub const fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let MacAddr([a, b, c, d, e, f]) = self.mac;
        let [i, j, k, l] = self.frame_interval_ns.to_ne_bytes();
        [a, b, c, d, e, f, self.flags, self.worker.0, i, j, k, l]
    }

    /// The binding that the map's value means.
    pub const fn from_bytes(bytes: [u8; size_of::<Self>()]) -> Self {
        let [a, b, c, d, e, f, flags, worker, i, j, k, l] = bytes;
        Self {
            mac: MacAddr([a, b, c, d, e, f]),
            flags,
            worker: WorkerNumber(worker),
            frame_interval_ns: u32::from_ne_bytes([i, j, k, l]),
        }
    }
}

const fn interval_ns(packets_per_second: u32) -> u32 {
    match 1_000_000_000_u32.checked_div(packets_per_second) {
        Some(interval_ns) => interval_ns,
        None => 0,
    }
}

impl PuntHeader {
    /// Takes a ring record apart into its head and its frame, or nothing when the record is shorter than it says.
    pub fn split(record: &[u8]) -> Option<(Self, &[u8])> {
        let (&arrived_ns, rest) = record.split_first_chunk()?;
        let (&tap, rest) = rest.split_first_chunk()?;
        let (&frame_length, rest) = rest.split_first_chunk()?;
        let (&mac, rest) = rest.split_first_chunk()?;
        let header = Self {
            arrived_ns: u64::from_ne_bytes(arrived_ns),
            tap: TapIndex(u64::from_ne_bytes(tap)),
            frame_length: u16::from_ne_bytes(frame_length),
            mac: MacAddr(mac),
        };
        Some((header, rest.get(..usize::from(header.frame_length))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_round_trip() {
        let slow = TapBinding::to(IMDS_MAC).with_packets_per_second(7);
        let (other, ipv6) = (slow.with_worker(WorkerNumber(7)), slow.with_ipv6());
        for binding in [slow, other, ipv6] {
            assert_eq!(TapBinding::from_bytes(binding.to_bytes()), binding);
        }
        assert!(
            !TapBinding::to(IMDS_MAC).serves_ipv6() && TapBinding::to(IMDS_MAC).with_ipv6().serves_ipv6()
        );
    }

    #[test]
    fn interval_keeps_to_the_rate() {
        let interval = |rate| {
            TapBinding::to(IMDS_MAC)
                .with_packets_per_second(rate)
                .frame_interval_ns
        };
        assert_eq!(
            [0, 1, 1024, 1_000_000].map(interval),
            [0, 1_000_000_000, 976_562, 1000]
        );
    }

    #[test]
    fn full_burst_leaves_room_for_others_in_the_ring() {
        // The kernel puts a header of eight bytes before each record.
        let medium = BURST_TOKENS as usize * (PUNT_HEADER_BYTES + MEDIUM_FRAME_MAX + 8);
        let large = (BURST_TOKENS / LARGE_FRAME_TOKENS) as usize * (PUNT_HEADER_BYTES + LARGE_FRAME_MAX + 8);
        assert!(
            medium.max(large) <= RING_BYTES as usize * 51 / 100,
            "{medium} {large}"
        );
    }

    #[test]
    fn frames_of_every_record_have_a_length() {
        assert!(LARGE_FRAME_MAX <= u16::MAX as usize);
    }

    #[test]
    fn record_is_taken_apart_as_it_is_laid_out() {
        assert_eq!(core::mem::offset_of!(PuntHeader, tap), 8);
        assert_eq!(core::mem::offset_of!(PuntHeader, frame_length), 16);
        assert_eq!(core::mem::offset_of!(PuntHeader, mac), 18);
        assert_eq!(PUNT_HEADER_BYTES, 24);

        let mut record = [0; PUNT_HEADER_BYTES + 4];
        record[..8].copy_from_slice(&7u64.to_ne_bytes());
        record[8..16].copy_from_slice(&8u64.to_ne_bytes());
        record[16..18].copy_from_slice(&3u16.to_ne_bytes());
        record[18..24].copy_from_slice(&IMDS_MAC.0);
        record[24..].copy_from_slice(b"abcd");
        let (header, frame) = PuntHeader::split(&record).unwrap();
        assert_eq!(
            (header.arrived_ns, header.tap, header.mac),
            (7, TapIndex(8), IMDS_MAC)
        );
        assert_eq!(frame, b"abc");
    }

    #[test]
    fn record_shorter_than_it_says_is_refused() {
        let mut record = [0; PUNT_HEADER_BYTES + 4];
        record[16..18].copy_from_slice(&5u16.to_ne_bytes());
        assert_eq!(PuntHeader::split(&record), None);
        assert_eq!(PuntHeader::split(&record[..PUNT_HEADER_BYTES - 1]), None);
    }
}
