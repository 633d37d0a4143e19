//! Agent to tap: frames in batches, through one packet socket for all taps of a network namespace.
//!
//! Read first: packet(7). The socket's protocol is zero, so that nothing is ever received on it. Frames take the ordinary
//! way through the tap's queueing discipline, because `PACKET_QDISC_BYPASS` would hide them from `tcpdump`. Nothing waits
//! for a guest: a frame that its tap does not take at once is lost, like on any wire.
//!
//! Frames that wait in a tap's queueing discipline, as behind a limit on what its guest is sent, stay on the socket's account
//! until they leave it. The account is large enough for all of them, so that one guest's limit is not its neighbours'.
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
    reason = "sendmmsg with an address per frame has no safe wrapper that needs no allocation"
)]

#[cfg(test)]
pub mod wire;

use std::{
    array, io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use imds_ebpf::abi::{IMDS_MAC, INJECT_MARK, MacAddr, NamespaceNumber, TapIndex};
use nix::{
    errno::Errno,
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt},
};
use rustc_hash::FxHashMap;
use thiserror::Error;

#[cfg(test)]
use self::wire::{Doing, Wire, wire};

/// Frames per system call: the message headers of so many fit on the stack in seven kilobytes.
const BATCH: usize = 64;

/// What most calls are for where guests are not many at once. Headers that are not filled in have to be emptied, and
/// seven kilobytes of them would be a good part of such a call.
const SMALL_BATCH: usize = 4;

const ETHERNET_BYTES: usize = 14;

/// Room for queued frames that is kept from one flush to the next. More is taken by guests whose time comes together, and given back.
const KEPT_BYTES: usize = 1 << 20;
const KEPT_FRAMES: usize = KEPT_BYTES / 256;

/// Of the frames that wait: the most that the kernel takes, and it doubles that. How much waits for one tap is its queueing
/// discipline's to say: mostly 1000 frames (a tap's `txqueuelen`), 2.3 kB each in the kernel's memory, which is about what 64
/// connections with 16 KiB under way come to as well. So some 900 taps may have all of that waiting at the same time. It
/// is a limit, and takes no memory; where no discipline holds frames back they leave the account as soon as they are sent.
const SEND_BUFFER_BYTES: usize = (i32::MAX / 2) as usize;

/// The packet socket cannot be made.
#[derive(Debug, Error)]
pub enum InjectorError {
    /// No such socket.
    #[error("cannot open a packet socket, which needs CAP_NET_RAW")]
    Socket(#[source] Errno),
    /// Its frames cannot be marked.
    #[error("cannot mark the packet socket's frames, which needs CAP_NET_ADMIN or CAP_NET_RAW")]
    Mark(#[source] Errno),
    /// Too few of its frames could wait.
    #[error("cannot raise what may wait of the packet socket's frames, which needs CAP_NET_ADMIN")]
    SendBuffer(#[source] Errno),
}

/// The way to all devices of the network namespace that it was opened in, from whichever thread.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one in the network namespace of the calling thread.
    pub fn open() -> Result<Self, InjectorError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, flags, None).map_err(InjectorError::Socket)?;
        setsockopt(&socket, sockopt::Mark, &INJECT_MARK).map_err(InjectorError::Mark)?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER_BYTES).map_err(InjectorError::SendBuffer)?;
        Ok(Self(socket))
    }
}

/// Collects inbound frames and sends them in batches.
#[derive(Debug)]
pub struct Injector {
    socket: PacketSocket,
    /// Of other network namespaces than the agent's own.
    others: FxHashMap<NamespaceNumber, PacketSocket>,
    /// The queued frames' bytes, one after the other.
    bytes: Vec<u8>,
    queue: Vec<Queued>,
    sent: u64,
    lost: u64,
    /// Takes the frames in the kernel's place.
    #[cfg(test)]
    wire: Option<wire::End>,
}

/// Where a queued frame lies, and where it goes.
#[derive(Clone, Copy, Debug)]
struct Queued {
    start: usize,
    length: usize,
    tap: TapIndex,
    ethertype: u16,
}

impl Injector {
    /// Opens the socket in the network namespace of the calling thread.
    pub fn new() -> Result<Self, InjectorError> {
        Ok(Self::with_socket(PacketSocket::open()?))
    }

    /// One for tests of who queues frames, who find them at the other end.
    #[cfg(test)]
    pub fn on_wire() -> (Self, Wire) {
        let (end, wire) = wire();
        let socket = std::os::unix::net::UnixDatagram::unbound().expect("sockets are to be had");
        let mut injector = Self::with_socket(PacketSocket(socket.into()));
        injector.wire = Some(end);
        (injector, wire)
    }

    /// Sends to the taps of another network namespace, too, from now on.
    pub fn open_namespace(&mut self, namespace: NamespaceNumber, socket: PacketSocket) {
        self.others.insert(namespace, socket);
    }

    /// Lets go of another network namespace.
    pub fn close_namespace(&mut self, namespace: NamespaceNumber) {
        self.others.remove(&namespace);
    }

    fn with_socket(socket: PacketSocket) -> Self {
        Self {
            socket,
            others: FxHashMap::default(),
            bytes: Vec::new(),
            queue: Vec::new(),
            sent: 0,
            lost: 0,
            #[cfg(test)]
            wire: None,
        }
    }

    /// Queues one frame for the guest behind `tap`: Ethernet header from the service's MAC to `destination`, then `length`
    /// bytes of IP packet that `fill` writes. EtherType follows the packet's version.
    pub fn push<R>(
        &mut self,
        tap: TapIndex,
        destination: MacAddr,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&destination.0);
        self.bytes.extend_from_slice(&IMDS_MAC.0);
        let ethertype_start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        let packet_start = self.bytes.len();
        self.bytes.resize(packet_start.saturating_add(length), 0);
        #[cfg(test)]
        if let Some(wire) = &self.wire {
            wire.pass(Doing::Queue(tap));
        }
        #[expect(clippy::indexing_slicing, reason = "it was as long before it grew")]
        let packet = &mut self.bytes[packet_start..];
        let result = fill(packet);
        let ethertype = match packet.first() {
            Some(first) if first >> 4 == 6 => libc::ETH_P_IPV6 as u16,
            _ => libc::ETH_P_IP as u16,
        };
        #[expect(clippy::indexing_slicing, reason = "the two bytes that were left for it")]
        self.bytes[ethertype_start..packet_start].copy_from_slice(&ethertype.to_be_bytes());
        self.queue.push(Queued {
            start,
            length: ETHERNET_BYTES.saturating_add(length),
            tap,
            ethertype,
        });
        result
    }

    /// Sends what is queued. A frame that a tap refuses is counted and lost, like on any wire; TCP sends it again. An
    /// error is the socket's own.
    pub fn flush(&mut self) -> io::Result<()> {
        let result = self.send_queue();
        self.clear();
        result
    }

    /// Forgets what is queued.
    pub fn clear(&mut self) {
        self.queue.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES || self.queue.capacity() > KEPT_FRAMES {
            self.bytes.shrink_to(KEPT_BYTES);
            self.queue.shrink_to(KEPT_FRAMES);
        }
    }

    /// Frames that taps took.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Frames that taps refused: gone, down, without a guest, or with a full queue. With `EAGAIN` it was the socket, behind whose
    /// taps as much waits as may wait of its frames.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn send_queue(&mut self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(wire) = &self.wire {
            wire.pass(Doing::Send);
            for frame in &self.queue {
                wire.take(frame.tap, &self.bytes[frame.start..][..frame.length]);
            }
            return Ok(());
        }
        let mut rest = &self.queue[..];
        while let Some(first) = rest.first() {
            let namespace = first.tap.namespace();
            let is_there = |frame: &&Queued| frame.tap.namespace() == namespace;
            let count = rest.iter().take(BATCH).take_while(is_there).count();
            let batch = rest.get(..count).unwrap_or(rest);
            let socket = match namespace {
                NamespaceNumber::OWN => Some(&self.socket),
                other => self.others.get(&other),
            };
            let sent = match socket {
                // Its taps are nobody's by now.
                None => Err(Errno::ENODEV),
                Some(PacketSocket(socket)) if batch.len() <= SMALL_BATCH => {
                    send_batch::<SMALL_BATCH>(socket.as_fd(), &self.bytes, batch)
                }
                Some(PacketSocket(socket)) => send_batch::<BATCH>(socket.as_fd(), &self.bytes, batch),
            };
            let done = match sent {
                Ok(taken) => {
                    self.sent = self.sent.saturating_add(taken as u64);
                    taken
                }
                Err(Errno::EINTR) => 0,
                // The error is the first frame's; those behind it have not been tried.
                Err(errno) if is_of_the_tap(errno) || namespace != NamespaceNumber::OWN => {
                    self.lost = self.lost.saturating_add(1);
                    1
                }
                Err(errno) => return Err(errno.into()),
            };
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Whether a frame was refused by its tap, rather than the socket being broken.
fn is_of_the_tap(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENXIO
            | Errno::ENODEV
            | Errno::ENETDOWN
            | Errno::ENOBUFS
            | Errno::EAGAIN
            | Errno::EMSGSIZE
            | Errno::ENOMEM
            | Errno::EIO
    )
}

/// Sends up to `N` frames: how many were taken, or why the first one was not.
fn send_batch<const N: usize>(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    batch: &[Queued],
) -> Result<usize, Errno> {
    // SAFETY: for these plain C structures all zeroes are a valid value, and mean empty.
    let (mut addresses, mut slices, mut messages): (
        [libc::sockaddr_ll; N],
        [libc::iovec; N],
        [libc::mmsghdr; N],
    ) = unsafe { (mem::zeroed(), mem::zeroed(), array::from_fn(|_| mem::zeroed())) };

    let headers = addresses.iter_mut().zip(&mut slices).zip(&mut messages);
    for (frame, ((address, slice), message)) in batch.iter().zip(headers) {
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = frame.ethertype.to_be();
        address.sll_ifindex = frame.tap.ifindex() as i32;
        #[expect(clippy::indexing_slicing, reason = "what is queued lies where it was pushed")]
        let frame = &bytes[frame.start..][..frame.length];
        slice.iov_base = frame.as_ptr().cast_mut().cast();
        slice.iov_len = frame.len();
        message.msg_hdr.msg_name = (&raw mut *address).cast();
        message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
        message.msg_hdr.msg_iov = slice;
        message.msg_hdr.msg_iovlen = 1;
    }
    let count = batch.len().min(N) as u32;
    // SAFETY: `count` messages are filled in; their addresses, slices and frames outlive the call, which only reads them.
    let taken = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count,
            libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(taken).map_err(|_| Errno::last())
}
