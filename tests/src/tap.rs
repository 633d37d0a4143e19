//! Taps whose guest is the test, and bridges of them.

#![expect(unsafe_code, reason = "the ioctls of devices have no safe wrapper")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use imds_ebpf::abi::TapIndex;
use nix::{
    libc,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

/// A tap device, up, whose guest is the test: it goes away with this value.
#[derive(Debug)]
pub struct Tap {
    /// One, or as many as a guest with several processors has.
    queues: Vec<File>,
    /// How many frames the guest has sent: each leaves by another queue than the one before.
    sent: AtomicUsize,
    index: TapIndex,
    vnet_header: bool,
}

/// `struct virtio_net_hdr`: what a guest's offloads say about a frame.
pub const VNET_HEADER_BYTES: usize = 10;

/// So long at most a tap's name may be taken by what is left of another one.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// How many taps go at once.
const CLOSERS: usize = 64;

/// Lets many taps go, which one after the other takes the kernel some 50 ms each: most of that it waits, and so it can be done for
/// many at once.
pub fn close_all(mut taps: Vec<Tap>) {
    let share = taps.len().div_ceil(CLOSERS);
    thread::scope(|scope| {
        while !taps.is_empty() {
            let some = taps.split_off(taps.len().saturating_sub(share));
            scope.spawn(move || drop(some));
        }
    });
}

impl Tap {
    /// Makes a tap in the network namespace of the calling thread.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::open(name, None, false, 1)
    }

    /// Makes a tap with several queues.
    pub fn with_queues(name: &str, queues: usize) -> anyhow::Result<Self> {
        Self::open(name, None, false, queues)
    }

    /// Makes a tap with a given interface index, as a later device gets one that was in use before.
    pub fn with_index(name: &str, index: TapIndex) -> anyhow::Result<Self> {
        Self::open(name, Some(index), false, 1)
    }

    /// Makes a tap on which every frame is preceded by a `virtio_net_hdr`, like that of a guest with offloads.
    pub fn with_vnet_header(name: &str) -> anyhow::Result<Self> {
        Self::open(name, None, true, 1)
    }

    fn open(name: &str, index: Option<TapIndex>, vnet_header: bool, queues: usize) -> anyhow::Result<Self> {
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
        if vnet_header {
            flags |= libc::IFF_VNET_HDR;
        }
        if queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let open_queue = |number| {
            let queue = options.open("/dev/net/tun").context("/dev/net/tun")?;
            if let (0, Some(mut index)) = (number, index.map(TapIndex::ifindex)) {
                ioctl(&queue, libc::TUNSETIFINDEX, &mut index).context("TUNSETIFINDEX")?;
            }
            let mut request = interface_request(name)?;
            request.ifr_ifru.ifru_flags = flags as i16;
            // A tap of this name may have been dropped just now, and a child that somebody starts holds a copy of it until it has
            // become another program.
            let since = Instant::now();
            while let Err(error) = ioctl(&queue, libc::TUNSETIFF, &mut request) {
                let may_pass = error.raw_os_error() == Some(libc::EBUSY) && since.elapsed() < BUSY_MAX;
                ensure!(may_pass, "TUNSETIFF of {name}: {error}");
                thread::sleep(Duration::from_millis(1));
            }
            Ok(queue)
        };
        let queues = (0..queues).map(open_queue).collect::<anyhow::Result<_>>()?;
        set_up(name)?;
        let index = TapIndex(if_nametoindex(name)?.into());
        wait_for_queue(index)?;
        Ok(Self {
            queues,
            sent: AtomicUsize::new(0),
            index,
            vnet_header,
        })
    }

    /// The tap's interface index.
    pub fn index(&self) -> TapIndex {
        self.index
    }

    /// Sends a frame as the guest.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        if self.vnet_header {
            self.send_offloaded([0; VNET_HEADER_BYTES], frame)
        } else {
            self.next_queue()?.write_all(frame)
        }
    }

    /// Sends a frame as a guest does that leaves work to its network card, and says which.
    pub fn send_offloaded(&self, header: [u8; VNET_HEADER_BYTES], frame: &[u8]) -> io::Result<()> {
        let header = if self.vnet_header { &header[..] } else { &[] };
        self.next_queue()?.write_all(&[header, frame].concat())
    }

    fn next_queue(&self) -> io::Result<&File> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed) % self.queues.len();
        self.queues
            .get(number)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Reads a frame to the guest into `buffer` without waiting; `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        for mut queue in &self.queues {
            match queue.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// What is readable when there is a frame to the guest.
    pub fn queues(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.queues.iter().map(AsFd::as_fd)
    }

    /// The next frame to the guest that `wanted` wants, passing over others (the host's own IPv6 greets every tap).
    pub fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match self.read(&mut buffer) {
                Ok(length) => {
                    let start = if self.vnet_header { VNET_HEADER_BYTES } else { 0 };
                    let frame = buffer.get(start..length).context("a frame without its header")?;
                    if wanted(frame) {
                        return Ok(frame.to_vec());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_any(self.queues(), deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Tap {
    /// Of the only queue, or the first.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queues[0].as_fd()
    }
}

/// Makes a bridge of devices in the network namespace of the calling thread: the host's network for guests. It forwards
/// frames as they are, without the netfilter hooks that some kernels have in bridges, which trim and drop.
pub fn bridge(name: &str, ports: &[TapIndex]) -> anyhow::Result<()> {
    const SIOCBRADDBR: libc::c_ulong = 0x89a0;
    const SIOCBRADDIF: libc::c_ulong = 0x89a2;
    for protocol in ["iptables", "ip6tables", "arptables"] {
        let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{protocol}");
        if Path::new(&switch).exists() {
            fs::write(&switch, "0").context(switch)?;
        }
    }
    let control = control_socket()?;
    let mut request = interface_request(name)?;
    ioctl(&control, SIOCBRADDBR, &mut request.ifr_name).context("SIOCBRADDBR")?;
    for port in ports {
        request.ifr_ifru.ifru_ifindex = port.ifindex() as i32;
        ioctl(&control, SIOCBRADDIF, &mut request).context("SIOCBRADDIF")?;
    }
    set_up(name)
}

/// Has a device of the calling thread's network namespace take packets of so many bytes.
pub fn set_mtu(name: &str, bytes: u16) -> anyhow::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_mtu = bytes.into();
    ioctl(&control_socket()?, libc::SIOCSIFMTU, &mut request).context("SIOCSIFMTU")
}

/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `fd` is readable.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> anyhow::Result<()> {
    wait_any([fd], deadline)
}

fn wait_any<'fd>(fds: impl IntoIterator<Item = BorrowedFd<'fd>>, deadline: Instant) -> anyhow::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left)?;
    let mut fds: Vec<_> = fds
        .into_iter()
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    if poll(&mut fds, timeout)? == 0 {
        bail!("nothing came in time");
    }
    Ok(())
}

/// Until the kernel has noticed a new tap's carrier, its "noop" queue throws away what the host sends to the guest.
fn wait_for_queue(tap: TapIndex) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while queueing_discipline(tap)? == "noop" {
        anyhow::ensure!(Instant::now() < deadline, "tap {tap} does not come up");
        thread::yield_now();
    }
    Ok(())
}

/// Asks the kernel itself (rtnetlink(7)): a child that ran `ip` would hold copies of this process's taps for a moment, and
/// another test would find its own still there that it has closed.
fn queueing_discipline(tap: TapIndex) -> anyhow::Result<String> {
    const RTM_GETLINK: u16 = 18;
    const NLM_F_REQUEST: u16 = 1;
    const IFLA_QDISC: u16 = 6;
    const HEADERS_BYTES: usize = 32;
    let mut request = Vec::new();
    request.extend((HEADERS_BYTES as u32).to_ne_bytes());
    request.extend([RTM_GETLINK, NLM_F_REQUEST].map(u16::to_ne_bytes).concat());
    request.resize(20, 0);
    request.extend(tap.0.to_ne_bytes());
    request.resize(HEADERS_BYTES, 0);

    let route = Some(SockProtocol::NetlinkRoute);
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        route,
    )?;
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut reply = vec![0; 1 << 14];
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty())?;
    let mut attributes = reply.get(HEADERS_BYTES..length).context("no such device")?;
    while let [a, b, c, d, rest @ ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([*a, *b]));
        let value = rest.get(..length.saturating_sub(4)).context("a cut attribute")?;
        if u16::from_ne_bytes([*c, *d]) == IFLA_QDISC {
            return Ok(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
        }
        attributes = attributes
            .get(length.next_multiple_of(4).max(4)..)
            .unwrap_or_default();
    }
    bail!("the kernel does not tell the queue of tap {tap}")
}

fn set_up(name: &str) -> anyhow::Result<()> {
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    ioctl(&control_socket()?, libc::SIOCSIFFLAGS, &mut request).context("SIOCSIFFLAGS")
}

fn control_socket() -> anyhow::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

fn interface_request(name: &str) -> anyhow::Result<libc::ifreq> {
    // SAFETY: all zeroes are a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        bail!("{name:?} is too long for an interface name");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl<T>(fd: &impl AsRawFd, command: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: the commands used here take what they are given above: an `ifreq`, an interface's name or its index, each
    // of which outlives the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), command, &raw mut *argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
