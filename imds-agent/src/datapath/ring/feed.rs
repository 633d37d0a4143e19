//! The writing end of a ring, for tests: a file that is laid out as the kernel lays out its ring.

use std::{fs::File, os::unix::fs::FileExt as _, time::Duration};

use imds_ebpf::abi::{MacAddr, TapIndex};

use super::{HEADER_BYTES, Memory, Ring, page_bytes};

const SIZE: usize = 1 << 16;

/// Writes what the classifier would. It does not come round.
#[derive(Debug)]
pub struct Feed {
    file: File,
    position: usize,
}

impl Feed {
    /// An empty ring and its writing end.
    pub fn new() -> (Ring, Self) {
        let file = tempfile::tempfile().expect("a file of nobody's");
        let bytes = 2 * page_bytes() + 2 * SIZE;
        file.set_len(bytes as u64).expect("room for the ring");
        let read = file.try_clone().expect("another descriptor");
        let ring = Ring::within(Memory::File(read), SIZE).expect("what is mapped is a ring");
        (ring, Self { file, position: 0 })
    }

    /// Punts a frame.
    pub fn punt(&mut self, tap: TapIndex, mac: MacAddr, arrived: Duration, frame: &[u8]) {
        let arrived_ns = u64::try_from(arrived.as_nanos()).expect("centuries");
        let record = [
            &arrived_ns.to_ne_bytes()[..],
            &tap.0.to_ne_bytes(),
            &u16::try_from(frame.len())
                .expect("a frame's length")
                .to_ne_bytes(),
            &mac.0,
            frame,
        ]
        .concat();
        let start = 2 * page_bytes() + self.position;
        self.position += (HEADER_BYTES + record.len()).next_multiple_of(HEADER_BYTES);
        assert!(self.position <= SIZE, "this ring is full");
        self.write(&record, start + HEADER_BYTES);
        self.write(&(record.len() as u64).to_le_bytes(), start);
        self.write(&self.position.to_ne_bytes(), page_bytes());
    }

    fn write(&self, bytes: &[u8], offset: usize) {
        self.file
            .write_all_at(bytes, offset as u64)
            .expect("the file has room");
    }
}
