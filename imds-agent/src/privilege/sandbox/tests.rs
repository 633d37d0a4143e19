//! Each test runs its thread in a child, for most of what a confined thread may not do ends the process.

use std::{
    env,
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
            process::{ExitStatusExt as _, parent_id},
        },
    },
    process::{self, Command, Output},
    thread,
    time::{Duration, Instant},
};

use imds_tests::kernel::landlock_abi;
use nix::{
    sys::signal::{SigHandler, kill, signal},
    unistd::Pid,
};

use super::*;

/// Names what the child tries.
const ATTEMPT: &str = "IMDS_TEST_ATTEMPT";

/// std calls the one or the other.
#[cfg(target_arch = "x86_64")]
const REMOVE: &[libc::c_long] = &[libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const REMOVE: &[libc::c_long] = &[libc::SYS_unlinkat];

/// What every child says once its thread is confined.
const CONFINED: &str = "confined";

/// An attempt of nothing, on a kernel that has neither landlock nor seccomp.
const ON_AN_OLD_KERNEL: &str = "nothing";

/// What landlock refuses, on a thread whose system calls are not filtered.
const BY_LANDLOCK_ALONE: &str = "landlock-alone";

/// Runs `attempt` on a confined thread of a child.
fn attempt(attempt: &str) -> Output {
    let own = env::current_exe().unwrap();
    Command::new(own)
        .args([
            "--exact",
            "privilege::sandbox::tests::in_the_child",
            "--ignored",
            "--nocapture",
        ])
        .env(ATTEMPT, attempt)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
#[ignore = "runs in the children of the tests beside it"]
fn in_the_child() {
    let attempt = env::var(ATTEMPT).unwrap_or_default();
    let file = File::open("/proc/self/status").unwrap();
    if attempt == ON_AN_OLD_KERNEL {
        forget_the_sandbox();
    }
    let outside = (attempt == BY_LANDLOCK_ALONE).then(Outside::new);
    let run = || {
        if let Some(outside) = &outside {
            outside.is_closed_by_landlock();
        } else {
            let confined = confine().unwrap();
            println!("{CONFINED}: {confined}");
            tried(&attempt, file);
        }
        println!("{attempt}: went through");
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

/// What is there for a thread that is not confined.
struct Outside {
    directory: tempfile::TempDir,
    tcp: TcpListener,
    abstract_name: SocketAddr,
    _abstract: UnixListener,
}

/// What is tried of it, since which ABI landlock refuses it, how, and what comes of it.
type Tried = (&'static str, u32, Errno, io::Result<()>);

impl Outside {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("there"), "text").unwrap();
        let name = format!("imds-test-{}", process::id());
        let abstract_name = SocketAddr::from_abstract_name(name).unwrap();
        Self {
            directory,
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _abstract: UnixListener::bind_addr(&abstract_name).unwrap(),
            abstract_name,
        }
    }

    /// Nothing of it would get past the filter of system calls.
    fn tried(&self) -> Vec<Tried> {
        let directory = self.directory.path();
        let parent = Pid::from_raw(parent_id() as i32);
        let connected = || TcpStream::connect(self.tcp.local_addr()?).map(drop);
        vec![
            (
                "open a file",
                1,
                Errno::EACCES,
                File::open(directory.join("there")).map(drop),
            ),
            (
                "make a file",
                1,
                Errno::EACCES,
                File::create(directory.join("new")).map(drop),
            ),
            (
                "list a directory",
                1,
                Errno::EACCES,
                fs::read_dir(directory).map(drop),
            ),
            ("connect by TCP", 4, Errno::EACCES, connected()),
            (
                "listen for TCP",
                4,
                Errno::EACCES,
                TcpListener::bind("127.0.0.1:0").map(drop),
            ),
            (
                "connect to an abstract name",
                6,
                Errno::EPERM,
                UnixStream::connect_addr(&self.abstract_name).map(drop),
            ),
            (
                "signal another process",
                6,
                Errno::EPERM,
                kill(parent, None).map_err(io::Error::from),
            ),
        ]
    }

    fn is_closed_by_landlock(&self) {
        for (what, _, _, outcome) in self.tried() {
            assert!(outcome.is_ok(), "it cannot {what} anyway: {outcome:?}");
        }
        let in_force = close_files().unwrap().map(|abi| abi as u32);
        assert_eq!(in_force, landlock_abi().map(|abi| abi.min(LANDLOCK as u32)));
        for (what, since, refusal, outcome) in self.tried() {
            let refused = outcome.err().and_then(|error| error.raw_os_error());
            let expected = (in_force >= Some(since)).then_some(refusal as i32);
            assert_eq!(refused, expected, "to {what}, with landlock {in_force:?}");
        }
    }
}

fn tried(attempt: &str, mut file: File) {
    match attempt {
        "serve" => serve(),
        ON_AN_OLD_KERNEL => {}
        "read-open-file" => _ = file.read(&mut [0; 16]).unwrap(),
        "open-file" => assert!(is_refused(File::open("/etc/hostname")), "it can be opened"),
        "make-file" => assert!(is_refused(File::create("/tmp/imds-test-never")), "it can be made"),
        "remove-file" => fs::remove_file("/tmp/imds-test-never").unwrap(),
        "list-directory" => assert!(is_refused(fs::read_dir("/")), "it can be listed"),
        "connect" => drop(TcpStream::connect("127.0.0.1:1")),
        "listen" => drop(TcpListener::bind("127.0.0.1:0")),
        "datagram" => drop(UdpSocket::bind("127.0.0.1:0")),
        "unix-socket" => drop(UnixDatagram::unbound()),
        "run-program" => drop(Command::new("/bin/true").status()),
        "start-thread" => drop(thread::Builder::new().spawn(|| ())),
        "signal" => kill(Pid::from_raw(1), None).unwrap(),
        "handle-signal" => {
            #[expect(unsafe_code, reason = "the call does not come back")]
            // SAFETY: to ignore a signal calls nothing.
            let _ = unsafe { signal(Signal::SIGSYS, SigHandler::SigIgn) };
        }
        "executable-memory" => executable_memory(),
        "abort" => process::abort(),
        other => panic!("nobody knows how to try {other:?}"),
    }
}

fn is_refused<T>(opened: io::Result<T>) -> bool {
    matches!(opened, Err(error) if error.kind() == io::ErrorKind::PermissionDenied)
}

fn executable_memory() {
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    #[expect(unsafe_code, reason = "the call does not come back")]
    // SAFETY: the kernel chooses the place.
    let _ = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
}

/// Answers as a kernel does that was built without them.
fn forget_the_sandbox() {
    let calls = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp];
    let calls = calls.map(|call| (call, Vec::new())).into();
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let architecture = env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, absent, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// What a serving thread does besides sending: memory, randomness, time, other threads, wake-ups, the log, panics.
fn serve() {
    let mut blocks = Vec::new();
    for size in [16, 4096, 200_000, 40_000_000] {
        blocks.extend((0..4).map(|_| vec![1_u8; size]));
    }
    blocks.iter_mut().for_each(|block| block.reserve(block.len()));
    blocks.truncate(3);
    let mut random = [0; 32];
    getrandom::fill(&mut random).unwrap();
    assert!(Instant::now().elapsed() < Duration::from_secs(60));
    io::stderr().write_all(b"a line of the log\n").unwrap();
    thread::sleep(Duration::from_millis(1));
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    assert!(std::panic::catch_unwind(|| panic!("as planned")).is_err());
    std::panic::set_hook(hook);
}

#[test]
fn what_serving_takes_is_allowed() {
    for allowed in ["serve", "read-open-file"] {
        let output = attempt(allowed);
        assert!(output.status.success(), "{allowed}: {output:?}");
        assert!(
            text(&output.stdout).contains("went through"),
            "{allowed}: {output:?}"
        );
    }
}

#[test]
fn files_are_refused_to_a_confined_thread() {
    for refused in ["open-file", "make-file", "list-directory"] {
        let output = attempt(refused);
        assert!(output.status.success(), "{refused}: {output:?}");
        assert!(
            text(&output.stdout).contains("went through"),
            "{refused}: {output:?}"
        );
    }
}

/// Of files seccomp alone would refuse as much, and sockets end the process before landlock is asked.
#[test]
fn landlock_alone_refuses_files_tcp_and_other_processes() {
    if landlock_abi().is_none() {
        println!("skipped: this kernel has no landlock");
    }
    let output = attempt(BY_LANDLOCK_ALONE);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stdout).contains("went through"), "{output:?}");
}

#[test]
fn what_serving_never_does_ends_the_process_with_a_line_in_the_log() {
    let attempts = [
        ("remove-file", REMOVE),
        ("connect", &[libc::SYS_socket]),
        ("listen", &[libc::SYS_socket]),
        ("datagram", &[libc::SYS_socket]),
        ("unix-socket", &[libc::SYS_socket]),
        ("run-program", &[]),
        ("start-thread", &[]),
        ("signal", &[libc::SYS_kill]),
        ("handle-signal", &[libc::SYS_rt_sigaction]),
        ("executable-memory", &[libc::SYS_mmap]),
    ];
    for (forbidden, calls) in attempts {
        let output = attempt(forbidden);
        let (said, log) = (text(&output.stdout), text(&output.stderr));
        assert!(said.contains(CONFINED), "{forbidden}: {output:?}");
        assert!(!said.contains("went through"), "{forbidden}: {output:?}");
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGSYS),
            "{forbidden}: {output:?}"
        );
        // A new thread or program is begun with all signals blocked, so the kernel has the only word.
        let told = log
            .lines()
            .find_map(|line| line.split_once("never needs")?.1.rsplit(' ').next());
        let told: Option<libc::c_long> = told.and_then(|call| call.parse().ok());
        let is_expected = told.is_some_and(|told| calls.contains(&told));
        assert!(is_expected || calls.is_empty(), "{forbidden}: {output:?}");
    }
}

#[test]
fn a_kernel_without_the_means_is_lived_with() {
    let output = attempt(ON_AN_OLD_KERNEL);
    assert!(output.status.success(), "{output:?}");
    let said = text(&output.stdout);
    assert!(said.contains("confined: no landlock, no seccomp\n"), "{said}");
}

#[test]
fn an_abort_is_an_abort() {
    assert_eq!(attempt("abort").status.signal(), Some(libc::SIGABRT));
}
