//! A tap whose descriptor the test holds: the test is the guest.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd},
        unix::fs::OpenOptionsExt as _,
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use imds_ebpf::abi::{MacAddr, TapIndex};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Namespace;

/// Longest frame read from a tap: what a guest's segmentation offload can make, with room.
const FRAME_MAX: usize = 65_536 + 64;

/// A tap device that lives as long as this value.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Its name.
    pub name: String,
    /// Its index in its namespace.
    pub index: TapIndex,
}

impl Tap {
    /// Makes a tap called `name` in `namespace` and brings it up.
    pub fn new(namespace: &Namespace, name: &str) -> Result<Self> {
        let opened: Result<_> = namespace.enter(|| {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open("/dev/net/tun");
            let file = file.context("cannot open /dev/net/tun")?;
            set_interface(&file, name).with_context(|| format!("cannot make tap {name}"))?;
            let index = nix::net::if_::if_nametoindex(name).context("the new tap has no index")?;
            Ok((file, TapIndex(index)))
        });
        let (file, index) = opened?;
        namespace.ip(&format!("link set {name} up"))?;
        // Until the kernel has noticed the carrier, its "noop" queue throws away what the host sends to the guest.
        let deadline = Instant::now() + Duration::from_secs(5);
        while namespace.ip(&format!("link show {name}"))?.contains("qdisc noop") {
            anyhow::ensure!(Instant::now() < deadline, "tap {name} does not come up");
        }
        Ok(Self {
            file,
            name: name.to_owned(),
            index,
        })
    }

    /// Sends one frame as the guest.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let count = (&self.file).write(frame)?;
        if count == frame.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// The next frame for the guest, or nothing when none comes within `patience`.
    pub fn receive(&self, patience: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut buffer = vec![0; FRAME_MAX];
        loop {
            match (&self.file).read(&mut buffer) {
                Ok(count) => {
                    buffer.truncate(count);
                    return Ok(Some(buffer));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !is_readable(self.as_fd(), left)? {
                return Ok(None);
            }
        }
    }

    /// Reads a frame into `buffer` without waiting; `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The source MAC that tests use for guest number `number`.
pub fn guest_mac(number: u8) -> MacAddr {
    MacAddr([0x06, 0, 0, 0, 0, number])
}

fn is_readable(descriptor: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let milliseconds = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX).max(1);
    let mut descriptors = [PollFd::new(descriptor, PollFlags::POLLIN)];
    Ok(poll(&mut descriptors, PollTimeout::from(milliseconds))? > 0)
}

fn set_interface(file: &File, name: &str) -> Result<()> {
    let name = CString::new(name)?;
    let name = name.as_bytes_with_nul();
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain data.
    #[expect(unsafe_code, reason = "the tun driver is set up by ioctl")]
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    anyhow::ensure!(
        name.len() <= request.ifr_name.len(),
        "the name is too long for an interface"
    );
    for (slot, byte) in request.ifr_name.iter_mut().zip(name) {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(nix::libc::IFF_TAP | nix::libc::IFF_NO_PI)?;
    // SAFETY: TUNSETIFF reads one `ifreq`, which outlives the call.
    #[expect(unsafe_code, reason = "the tun driver is set up by ioctl")]
    let result = unsafe { nix::libc::ioctl(file.as_raw_fd(), nix::libc::TUNSETIFF, &raw mut request) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
