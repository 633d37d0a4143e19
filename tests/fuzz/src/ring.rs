//! Records of the ring, as kernel memory that somebody else wrote.

use std::mem::offset_of;

use imds_ebpf::abi::{PUNT_HEADER_BYTES, PuntHeader};

/// Where a record says how long its frame is, in two bytes.
pub const LENGTH_AT: usize = offset_of!(PuntHeader, frame_length);

const MAC_AT: usize = offset_of!(PuntHeader, mac);

/// `data` is a record. What is taken for its frame is the bytes behind the head, as many as the head says.
pub fn run(data: &[u8]) {
    let promised = |data: &[u8]| usize::from(u16::from_ne_bytes([data[LENGTH_AT], data[LENGTH_AT + 1]]));
    match PuntHeader::split(data) {
        Some((header, frame)) => {
            assert_eq!(frame.len(), usize::from(header.frame_length));
            assert_eq!(frame, &data[PUNT_HEADER_BYTES..][..promised(data)]);
            assert_eq!(header.mac.0, data[MAC_AT..MAC_AT + 6]);
        }
        None => assert!(data.len() < PUNT_HEADER_BYTES || data.len() - PUNT_HEADER_BYTES < promised(data)),
    }
}
