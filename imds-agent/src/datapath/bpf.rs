//! The commands of bpf(2) that aya does not offer to an agent without `CAP_SYS_ADMIN`: what a pinned link hangs on, and taking
//! it off at once; and whether there is such a call at all.
//!
//! Read first: `union bpf_attr` and `struct bpf_link_info` in the kernel's `include/uapi/linux/bpf.h`.

#![expect(unsafe_code, reason = "system calls without a safe wrapper")]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::libc;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_MAP_TYPE_LRU_HASH: u32 = 9;

/// Makes the smallest map of a kind that takes CAP_BPF whatever `unprivileged_bpf_disabled` says. It is gone again at once.
pub fn try_map() -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        entries_max: u32,
    }
    let mut attributes = Attributes {
        map_type: BPF_MAP_TYPE_LRU_HASH,
        key_size: 4,
        value_size: 4,
        entries_max: 1,
    };
    // SAFETY: these are the attributes of this command, and they point to nothing.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel just made this descriptor for us.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Programs that a TCX hook has room for (`BPF_MPROG_MAX`).
const TCX_PROGRAMS_MAX: usize = 64;

/// Opens the link that is pinned at `path`.
pub fn open_link(path: &Path) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: these are the attributes of this command, and the path outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The device of the calling thread's network namespace that a TCX link hangs on, or nothing when that device is gone: the kernel then takes
/// the link off, and a later device with the same index is not on it.
///
/// A device that goes to another network namespace takes the link along, and mostly its index, too, which is another
/// device's here from then on. So it is the device that is asked who hangs on it.
pub fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let info = link_info(link)?;
    let ifindex = info.tcx_ifindex;
    if ifindex == 0 || !links_on(ifindex, info.tcx_attach_type)?.contains(&info.id) {
        return Ok(None);
    }
    Ok(Some(ifindex))
}

/// Whether a TCX link hangs on a device, in whichever network namespace that is.
pub fn is_alive(link: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(link_info(link)?.tcx_ifindex != 0)
}

/// What the kernel says of a link (`struct bpf_link_info`).
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    tcx_ifindex: u32,
    tcx_attach_type: u32,
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attributes {
        bpf_fd: RawFd,
        info_length: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let mut attributes = Attributes {
        bpf_fd: link.as_raw_fd(),
        info_length: size_of::<LinkInfo>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: these are the attributes of this command; the kernel writes at most `info_length` bytes to `info`.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    if info.link_type != BPF_LINK_TYPE_TCX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the pinned link is of another kind than TCX",
        ));
    }
    Ok(info)
}

/// The ids of the links on one of a device's TCX hooks. A device that is not there has none.
fn links_on(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    #[repr(C)]
    struct Attributes {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        program_ids: u64,
        count: u32,
        padding: u32,
        program_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let (mut programs, mut links) = ([0_u32; TCX_PROGRAMS_MAX], [0_u32; TCX_PROGRAMS_MAX]);
    let mut attributes = Attributes {
        ifindex,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        program_ids: programs.as_mut_ptr() as u64,
        count: TCX_PROGRAMS_MAX as u32,
        padding: 0,
        program_attach_flags: 0,
        link_ids: links.as_mut_ptr() as u64,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: these are the attributes of this command; the kernel writes at most `count` numbers to each of the two arrays,
    // which outlive the call.
    match unsafe { bpf(BPF_PROG_QUERY, &mut attributes) } {
        Ok(_) => Ok(links.into_iter().take(attributes.count as usize).collect()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Takes a link off its device now. (Removing the last pin does so too, but some time later.)
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = link.as_raw_fd();
    // SAFETY: the one attribute of this command is the link's descriptor.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }?;
    Ok(())
}

/// # Safety
/// `attributes` must be laid out as `command` has them, and what they point to must be valid as it demands.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of attributes and takes the rest as zero; the caller vouches for
    // what they say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
