//! The reading end of a BPF ring buffer.
//!
//! Read first: `kernel/bpf/ringbuf.c` and the kernel's "BPF ring buffer". aya's own reader publishes its position after
//! every record, and with that asks to be woken for the next one: the kernel wakes a reader when a record is committed just
//! where the reader says it is. A wake-up is an interrupt that the kernel sends to itself, at the expense of whoever sent the
//! frame, and a reader that is awake has no use for it. So this one says that it is still at a record that it took, until it
//! [rests](Ring::rest). And it says so rarely: every writer looks at our position, and we at theirs, and each such word that
//! changed has to come from the other's processor.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]
#![expect(
    unsafe_code,
    reason = "memory that is shared with the kernel has no safe wrapper"
)]

#[cfg(test)]
mod feed;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence},
};

use aya::maps::{MapData, MapError};
use imds_ebpf::abi::{LARGE_FRAME_MAX, PUNT_HEADER_BYTES};
use nix::{
    libc::c_void,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    unistd::{SysconfVar, sysconf},
};

#[cfg(test)]
pub use self::feed::Feed;

/// Bytes of the header before each record: its length and flags, and an offset that is the kernel's business.
const HEADER_BYTES: usize = 8;

/// In a record's length: still being written.
const BUSY: u32 = 1 << 31;

/// In a record's length: given up by its writer.
const DISCARDED: u32 = 1 << 30;

/// The largest record, without its header.
const RECORD_BYTES_MAX: usize = PUNT_HEADER_BYTES + LARGE_FRAME_MAX.next_multiple_of(HEADER_BYTES);

/// How much of the ring is read before its room is given back to the writers: some thirty frames, which are next to nothing of
/// the ring. An agent that is killed leaves no more than these for its successor to read again.
const PUBLISH_BYTES: usize = 16 * 1024;

/// One record's place in the ring, valid until the ring is asked for the next one.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    position: usize,
    length: usize,
}

/// The reading end.
pub struct Ring {
    memory: Memory,
    /// A page with our position, which the kernel reads.
    consumer: Mapping,
    /// A page with the writers' position, the ring itself, and its beginning once more, so that no record is in two pieces.
    producer: Mapping,
    page_bytes: usize,
    /// Bytes of the ring, a power of two.
    size: usize,
    /// Bytes of the ring's beginning behind its end. The kernel would map all of it, and the process be told twice as large.
    repeated: usize,
    /// Where the next record begins, counted from the ring's first byte ever.
    position: usize,
    /// Where we say to be.
    published: usize,
    /// Where the writers were when we last looked: at `position` or beyond it.
    written: usize,
}

impl Ring {
    /// Maps the ring of `map`, and goes on where its last reader published to be.
    pub fn new(map: MapData) -> Result<Self, MapError> {
        let size = map.info()?.max_entries() as usize;
        Self::within(Memory::Map(map), size).map_err(|io_error| {
            let call = "mmap";
            MapError::SyscallError(aya::sys::SyscallError { call, io_error })
        })
    }

    /// The same of a ring of `size` bytes, whoever writes it.
    fn within(memory: Memory, size: usize) -> io::Result<Self> {
        let (fd, page_bytes) = (memory.as_fd(), page_bytes());
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let consumer = Mapping::new(fd, 0, page_bytes, writable)?;
        let repeated = RECORD_BYTES_MAX.next_multiple_of(page_bytes).min(size);
        let producer_bytes = page_bytes.saturating_add(size).saturating_add(repeated);
        let producer = Mapping::new(fd, page_bytes, producer_bytes, ProtFlags::PROT_READ)?;
        let mut ring = Self {
            memory,
            consumer,
            producer,
            page_bytes,
            size,
            repeated,
            position: 0,
            published: 0,
            written: 0,
        };
        ring.published = ring.consumer_position().load(Ordering::Acquire);
        (ring.position, ring.written) = (ring.published, ring.published);
        Ok(ring)
    }

    /// Takes the next record that was written whole; nothing if there is none (yet).
    pub fn next(&mut self) -> Option<Record> {
        loop {
            if self.position == self.written {
                self.written = self.producer_position().load(Ordering::Acquire);
                if self.position == self.written {
                    return None;
                }
            }
            // The kernel's stores to the record happen before that of its length without the flag.
            let length = self.length_at(self.position).load(Ordering::Acquire);
            if length & BUSY != 0 {
                return None;
            }
            let record = Record {
                position: self.position,
                length: (length & !DISCARDED) as usize,
            };
            let bytes = HEADER_BYTES.saturating_add(record.length);
            self.position = record.position.wrapping_add(bytes.next_multiple_of(HEADER_BYTES));
            // The room before this record is the writers' again: what was handed out from there is dealt with.
            if record.position.wrapping_sub(self.published) >= PUBLISH_BYTES {
                self.publish(record.position);
            }
            if length & DISCARDED == 0 {
                if self.position != self.written {
                    self.prefetch(self.position);
                }
                return Some(record);
            }
        }
    }

    /// The bytes of the record that was taken last.
    pub fn bytes(&self, record: Record) -> &[u8] {
        let start = self.offset(record.position);
        // A longer record is not of the classifier's making.
        let length = record.length.min(self.repeated);
        // SAFETY: the range begins at the ring's end at the latest, and so is within the mapping, which goes on for as much as is
        // repeated. No writer gets this room before a position beyond it is published, which needs `self` exclusively.
        unsafe {
            let header = self.producer.address.as_ptr().byte_add(start);
            slice::from_raw_parts(header.byte_add(HEADER_BYTES).cast(), length)
        }
    }

    /// Asks to be woken for the next record. Returns false if there is one already, for which no wake-up comes.
    pub fn rest(&mut self) -> bool {
        self.publish(self.position);
        // A writer commits a record and then reads our position; we write our position and then look for records. Whoever
        // comes second sees the other.
        fence(Ordering::SeqCst);
        self.position == self.producer_position().load(Ordering::Acquire)
    }

    fn publish(&mut self, position: usize) {
        self.published = position;
        self.consumer_position().store(position, Ordering::Release);
    }

    /// Has the head of a record fetched from the writer's processor while the one before it is dealt with. A small frame is
    /// in these two lines, with all headers that are looked at first.
    #[cfg(target_arch = "x86_64")]
    fn prefetch(&self, position: usize) {
        let offset = self.offset(position);
        for line in [0, 64] {
            // SAFETY: the mapping goes on for at least a page behind the ring's end, so that both addresses are within it; and
            // no address that is fetched ahead is ever at fault.
            unsafe {
                let address = self.producer.address.as_ptr().byte_add(offset).byte_add(line);
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn prefetch(&self, _position: usize) {}

    /// Where `position` is in the mapping of the ring.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "the size is a power of two, and less than the mapping's"
    )]
    fn offset(&self, position: usize) -> usize {
        self.page_bytes + (position & (self.size - 1))
    }

    fn consumer_position(&self) -> &AtomicUsize {
        // SAFETY: the first word of this page is a position, for as long as it is mapped.
        unsafe { self.consumer.address.cast().as_ref() }
    }

    fn producer_position(&self) -> &AtomicUsize {
        // SAFETY: as above; the page is not writable for us, and is only read.
        unsafe { self.producer.address.cast().as_ref() }
    }

    fn length_at(&self, position: usize) -> &AtomicU32 {
        let offset = self.offset(position);
        // SAFETY: records begin at multiples of eight within the ring, so that their length is within the mapping.
        unsafe { self.producer.address.byte_add(offset).cast().as_ref() }
    }
}

impl Drop for Ring {
    /// What was taken is not left to the next reader.
    fn drop(&mut self) {
        self.publish(self.position);
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// What a ring lies in.
enum Memory {
    /// Its descriptor stays open with the ring: programs are loaded by it that punt into the map.
    Map(MapData),
    /// A file, which a test writes.
    #[cfg(test)]
    File(std::fs::File),
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Map(map) => map.fd().as_fd(),
            #[cfg(test)]
            Self::File(file) => file.as_fd(),
        }
    }
}

fn page_bytes() -> usize {
    let bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(4096)
}

/// A part of the map in our memory.
struct Mapping {
    address: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: what is mapped is the process's, not a thread's.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(map: BorrowedFd<'_>, offset: usize, bytes: usize, protection: ProtFlags) -> io::Result<Self> {
        let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping wherever the kernel has room for it.
        let address = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, map, offset) }?;
        Ok(Self { address, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and whoever borrows from it borrows the ring.
        let _ = unsafe { munmap(self.address, self.bytes) };
    }
}
