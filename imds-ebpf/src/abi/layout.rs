//! What [`ABI_VERSION`] is the version of, written down.
//!
//! Programs of an earlier agent go on with their maps until the next one has replaced them, and that one adopts the maps: both
//! have to mean the same by every byte. So a version's row never changes once it was released, and whatever changes the
//! text is another version, with a row of its own.

extern crate std;

use core::mem::offset_of;
use std::{format, string::String};

use super::*;
use crate::bucket::take;

/// Each version and its layouts.
const VERSIONS: &[(u32, &str)] = &[(
    3,
    "\
TapIndex: 8 bytes, aligned to 8; interface 2 of namespace 1 is 0x100000002
TapBinding: 12 bytes, aligned to 4; mac 0..6, flags 6..7, worker 7..8, frame_interval_ns 8..12
flags of a binding: IPv6 is 1
TapCounters: 512 bytes, aligned to 8; 64 slots, hairpinned 62, punted 63
bucket: 8 bytes; full at 7, then less 2 tokens of 10 ns at 1000 is full at 1020
PuntHeader: 24 bytes, aligned to 8; arrived_ns 0..8, tap 8..16, frame_length 16..18, mac 18..24
records: 512, 2048 and 8350 bytes
mark of injected frames: 0xa9fea9fe
reason 1: truncated
reason 2: tap-unbound
reason 3: source-mac-forged
reason 4: address-claimed
reason 5: vlan-tagged
reason 6: malformed-ip-header
reason 7: fragment
reason 8: not-tcp
reason 9: not-http-port
reason 10: arp-not-request
reason 11: frame-too-long
reason 12: ring-full
reason 13: hairpin-failed
reason 14: extension-header
reason 15: ndp-not-solicitation
reason 16: ipv6-disabled
reason 17: inbound-forged
reason 18: rate-limited
reason 19: snap-encapsulated
",
)];

/// Where the fields of a value are, in bytes.
macro_rules! laid_out {
    ($type:ident of $value:expr => $($field:ident),+) => {{
        let value: $type = $value;
        let fields = [$({
            let start = offset_of!($type, $field);
            format!("{} {start}..{}", stringify!($field), start + size_of_val(&value.$field))
        }),+];
        format!("{}; {}", sized::<$type>(stringify!($type)), fields.join(", "))
    }};
}

fn sized<T>(name: &str) -> String {
    format!("{name}: {} bytes, aligned to {}", size_of::<T>(), align_of::<T>())
}

/// The layouts of this build.
fn layouts() -> String {
    let header = PuntHeader {
        arrived_ns: 0,
        tap: TapIndex(0),
        frame_length: 0,
        mac: IMDS_MAC,
    };
    let records = [SMALL_FRAME_MAX, MEDIUM_FRAME_MAX, LARGE_FRAME_MAX].map(|room| PUNT_HEADER_BYTES + room);
    let [small, medium, large] = records;
    let TapIndex(index) = TapIndex::within(NamespaceNumber(1), 2);
    let lines = [
        format!(
            "{}; interface 2 of namespace 1 is {index:#x}",
            sized::<TapIndex>("TapIndex")
        ),
        laid_out!(TapBinding of TapBinding::to(IMDS_MAC) => mac, flags, worker, frame_interval_ns),
        format!("flags of a binding: IPv6 is {SERVES_IPV6}"),
        format!(
            "{}; {COUNTERS} slots, hairpinned {HAIRPINNED_SLOT}, punted {PUNTED_SLOT}",
            sized::<TapCounters>("TapCounters")
        ),
        format!(
            "bucket: {} bytes; full at 7, then less 2 tokens of 10 ns at 1000 is full at {}",
            size_of::<u64>(),
            take(7, 1000, 10, 2).unwrap().of(7)
        ),
        laid_out!(PuntHeader of header => arrived_ns, tap, frame_length, mac),
        format!("records: {small}, {medium} and {large} bytes"),
        format!("mark of injected frames: {INJECT_MARK:#x}"),
    ];
    let reasons = Reason::ALL.map(|reason| format!("reason {}: {}", reason as u32, reason.name()));
    lines.into_iter().chain(reasons).map(|line| line + "\n").collect()
}

#[test]
fn what_program_and_agent_share_is_what_its_version_says() {
    let written = VERSIONS.iter().find(|(version, _)| *version == ABI_VERSION);
    assert_eq!(
        written.map_or("", |(_, layouts)| *layouts),
        layouts(),
        "changed: bump ABI_VERSION, and bless it with a row of its own"
    );
}
