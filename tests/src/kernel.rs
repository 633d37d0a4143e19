//! What the tests of rung T1 need of the kernel beside taps: namespaces of their own, `BPF_PROG_TEST_RUN`, and what it can do.

#![expect(unsafe_code, reason = "bpf(2) and landlock(7) have no safe wrapper")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    panic::resume_unwind,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::Context;
use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
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
        // Another test's child may hold a copy of a descriptor in there for the moment between fork and exec.
        umount2(bpffs.path(), MntFlags::MNT_DETACH).context("unmount bpffs")?;
        result
    };
    thread::scope(|scope| match scope.spawn(run).join() {
        Ok(result) => result.map(Some),
        Err(panic) => resume_unwind(panic),
    })
}

/// The ABI of this kernel's landlock, if it has any.
pub fn landlock_abi() -> Option<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no attributes and tells a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            nothing,
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok()
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
