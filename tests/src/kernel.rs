//! What the tests of rung T1 need of the kernel: namespaces of their own, taps whose guest they are, and
//! `BPF_PROG_TEST_RUN`.

#![expect(unsafe_code, reason = "ioctls of devices and bpf(2) have no safe wrapper")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    panic::resume_unwind,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use imds_agent::datapath::tap;
use imds_ebpf::abi::TapIndex;
use nix::{
    libc,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
    unistd::Uid,
};

/// Runs `test` in a network and a mount namespace of its own, with a BPF file system of its own, whose path it is given.
/// All of it is gone when the test is over, however it ends. Not being root, a test is skipped and says so.
pub fn in_namespaces<T: Send>(
    test: impl FnOnce(&Path) -> anyhow::Result<T> + Send,
) -> anyhow::Result<Option<T>> {
    if !Uid::effective().is_root() {
        println!("skipped: taps, namespaces and BPF programs need root");
        return Ok(None);
    }
    let run = || -> anyhow::Result<T> {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("unshare")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make mounts private")?;
        let bpffs = tempfile::tempdir()?;
        mount(
            Some("bpf"),
            bpffs.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .context("mount bpffs")?;
        let result = test(bpffs.path());
        nix::mount::umount(bpffs.path()).context("unmount bpffs")?;
        result
    };
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result.map(Some),
        Err(panic) => resume_unwind(panic),
    })
}

/// A tap device, up, whose guest is the test: it goes away with this value.
#[derive(Debug)]
pub struct Tap {
    device: File,
    index: TapIndex,
    vnet_header: bool,
}

/// `struct virtio_net_hdr`: what a guest's offloads say about a frame.
pub const VNET_HEADER_BYTES: usize = 10;

impl Tap {
    /// Makes a tap in the network namespace of the calling thread.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Self::open(name, None, false)
    }

    /// Makes a tap with a given interface index, as a later device gets one that was in use before.
    pub fn with_index(name: &str, index: TapIndex) -> anyhow::Result<Self> {
        Self::open(name, Some(index), false)
    }

    /// Makes a tap on which every frame is preceded by a `virtio_net_hdr`, like that of a guest with offloads.
    pub fn with_vnet_header(name: &str) -> anyhow::Result<Self> {
        Self::open(name, None, true)
    }

    fn open(name: &str, index: Option<TapIndex>, vnet_header: bool) -> anyhow::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
        let device = options.open("/dev/net/tun").context("/dev/net/tun")?;
        if let Some(TapIndex(mut index)) = index {
            ioctl(&device, libc::TUNSETIFINDEX, &mut index).context("TUNSETIFINDEX")?;
        }
        let mut request = interface_request(name)?;
        let offloads = if vnet_header { libc::IFF_VNET_HDR } else { 0 };
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | offloads) as i16;
        ioctl(&device, libc::TUNSETIFF, &mut request).context("TUNSETIFF")?;
        set_up(name)?;
        Ok(Self {
            device,
            index: tap::index_of(name)?,
            vnet_header,
        })
    }

    /// The tap's interface index.
    pub fn index(&self) -> TapIndex {
        self.index
    }

    /// Sends a frame as the guest.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send_offloaded([0; VNET_HEADER_BYTES], frame)
    }

    /// Sends a frame as a guest does that leaves work to its network card, and says which.
    pub fn send_offloaded(&self, header: [u8; VNET_HEADER_BYTES], frame: &[u8]) -> io::Result<()> {
        let header = if self.vnet_header { &header[..] } else { &[] };
        (&self.device).write_all(&[header, frame].concat())
    }

    /// The next frame to the guest that `wanted` wants, passing over others (the host's own IPv6 greets every tap).
    pub fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match (&self.device).read(&mut buffer) {
                Ok(length) => {
                    let start = if self.vnet_header { VNET_HEADER_BYTES } else { 0 };
                    let frame = buffer.get(start..length).context("a frame without its header")?;
                    if wanted(frame) {
                        return Ok(frame.to_vec());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_readable(self.device.as_fd(), deadline)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
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
        request.ifr_ifru.ifru_ifindex = port.0 as i32;
        ioctl(&control, SIOCBRADDIF, &mut request).context("SIOCBRADDIF")?;
    }
    set_up(name)
}

/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `fd` is readable.
pub fn wait_readable(fd: BorrowedFd<'_>, deadline: Instant) -> anyhow::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left)?;
    if poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout)? == 0 {
        bail!("nothing came in time");
    }
    Ok(())
}

/// What a program did with a frame.
#[derive(Debug)]
pub struct TestRun {
    /// The direct action that it returned.
    pub action: i32,
    /// The frame as it left it.
    pub frame: Vec<u8>,
    /// Mean duration of one run.
    pub duration: Duration,
}

/// Runs a classifier over a frame that comes in by the loopback device, `repeat` times.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32) -> io::Result<TestRun> {
    #[repr(C)]
    struct Attributes {
        program: i32,
        action: i32,
        length_in: u32,
        length_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration_ns: u32,
        context: [u32; 2],
        contexts: [u64; 2],
        flags: u32,
        cpu: u32,
        batch_size: u32,
        padding: u32,
    }
    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    let mut out = vec![0; frame.len() + 256];
    let mut attributes = Attributes {
        program: program.as_raw_fd(),
        action: 0,
        length_in: frame.len() as u32,
        length_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat,
        duration_ns: 0,
        context: [0; 2],
        contexts: [0; 2],
        flags: 0,
        cpu: 0,
        batch_size: 0,
        padding: 0,
    };
    // SAFETY: these are the attributes of this command; the kernel reads `length_in` bytes at `data_in` and writes at most
    // `length_out` bytes at `data_out`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attributes.length_out as usize);
    let duration = Duration::from_nanos(attributes.duration_ns.into());
    Ok(TestRun {
        action: attributes.action,
        frame: out,
        duration,
    })
}

/// Loads the shortest classifier there is: every frame is for the next one.
pub fn empty_classifier() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
    }
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    // r0 = -1 (TC_ACT_UNSPEC); exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let mut attributes = Attributes {
        program_type: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log: [0; 2],
    };
    // SAFETY: these are the attributes of this command; instructions and licence outlive the call, which only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw mut attributes,
            size_of::<Attributes>(),
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
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
