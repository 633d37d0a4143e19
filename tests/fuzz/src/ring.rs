//! Records of the ring, as kernel memory that somebody else wrote.

use imds_ebpf::abi::{PUNT_HEADER_BYTES, PuntHeader};

/// `data` is a record. What is taken for its frame is the bytes behind the head, as many as the head says.
pub fn run(data: &[u8]) {
    let promised = |data: &[u8]| u32::from_ne_bytes([data[12], data[13], data[14], data[15]]) as usize;
    match PuntHeader::split(data) {
        Some((header, frame)) => {
            assert_eq!(frame.len(), header.frame_length as usize);
            assert_eq!(frame, &data[PUNT_HEADER_BYTES..][..promised(data)]);
            assert_eq!(header.mac.0, data[16..22]);
        }
        None => assert!(data.len() < PUNT_HEADER_BYTES || data.len() - PUNT_HEADER_BYTES < promised(data)),
    }
}
