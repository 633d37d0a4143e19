//! The rules themselves. The first two tables are section 4 of `docs/architecture.md` in a form that a machine can read: a change of
//! design changes that document first, then these.

/// Rooms of the agent, and which others each may use.
pub const ROOMS: &[(&str, &str)] = &[
    ("accepting", ""),
    (
        "agent",
        "bindings config control identity_files identity_signer keys observe privilege reload service_manager worker datapath stack http imds registry credentials sts now",
    ),
    ("allocator", ""),
    ("bin", "imdsctl"),
    ("bindings", "registry"),
    ("config", "control glob imds observe registry credentials sts"),
    (
        "control",
        "accepting observe worker imds registry credentials unix_socket now",
    ),
    (
        "exit_code",
        "config control datapath observe privilege registry unix_socket",
    ),
    (
        "worker",
        "observe privilege datapath stack http imds registry request_rate credentials now",
    ),
    (
        "observe",
        "accepting datapath http imds privilege registry credentials stack sts unix_socket now",
    ),
    ("datapath", ""),
    ("stack", "http now"),
    ("http", "now"),
    ("identity_files", "imds keys"),
    ("identity_signer", "identity_files imds privilege registry"),
    ("imds", "http registry credentials now"),
    ("privilege", ""),
    ("imdsctl", "config control imds registry sources"),
    ("registry", ""),
    ("sources", "registry"),
    ("reload", "config control"),
    ("request_rate", ""),
    ("credentials", "glob keys registry now"),
    ("service_manager", ""),
    ("sts", "accepting keys registry credentials request_rate"),
    ("glob", ""),
    ("keys", ""),
    ("now", ""),
    ("unix_socket", ""),
];

/// Outside crates that only some files of the agent may name, by the paths under `imds-agent/src` that may.
pub const CRATES: &[(&str, &[&str])] = &[
    ("aya", &["datapath/"]),
    // The host's identity, and what it may ask for with it.
    ("aws_config", &["credentials/sts"]),
    ("aws_runtime", &["credentials/sts"]),
    ("aws_sdk_sts", &["credentials/sts"]),
    ("aws_smithy_http_client", &["credentials/sts"]),
    ("axum", &["control/"]),
    (
        "hyper",
        &["sts/", "observe/metrics/endpoint.rs", "imdsctl/client.rs"],
    ),
    (
        "hyper_util",
        &["sts/", "observe/metrics/endpoint.rs", "imdsctl/client.rs"],
    ),
    ("prometheus_client", &["observe/metrics"]),
    ("rustls", &["sts/tls.rs"]),
    ("tokio_rustls", &["sts/listener.rs"]),
    ("rcgen", &["sts/tls.rs"]),
    ("caps", &["privilege", "exit_code.rs"]),
    ("landlock", &["privilege/sandbox"]),
    ("seccompiler", &["privilege/sandbox"]),
    // Besides the datapath: privileges are given up, a file is opened without waiting for a pipe, a program is ended with its children,
    // users and groups have names, and the other end of a socket has several.
    (
        "libc",
        &["datapath/", "privilege/", "registry/directory", "control/peer.rs"],
    ),
    (
        "nix",
        &[
            "datapath/",
            "registry/directory",
            "credentials/process",
            "privilege",
            "control/",
            "observe/audit",
            "exit_code.rs",
            // Records are written as whoever the agent runs as.
            "imdsctl/guests.rs",
            "allocator.rs",
            "main.rs",
        ],
    ),
    ("rustix", &["identity_signer.rs"]),
    ("ratatui", &["imdsctl/top/"]),
    ("roxmltree", &["sources/libvirt", "imdsctl/doctor/machine.rs"]),
    ("rtnetlink", &["datapath/"]),
    ("smoltcp", &["stack/"]),
    ("httparse", &["http/"]),
    ("hmac", &["imds/", "credentials/capsule.rs", "sts/sigv4.rs"]),
    ("subtle", &["imds/", "sts/sigv4.rs"]),
    ("inotify", &["registry/"]),
    ("toml", &["config.rs", "config/reference.rs"]),
    ("clap", &["main.rs", "imdsctl/"]),
    ("aws_lc_rs", &["imds/identity", "identity_files.rs", "sts/tls.rs"]),
    ("cms", &["imds/identity"]),
    ("dsa", &["imds/identity"]),
    ("x509_cert", &["imds/identity", "imdsctl/"]),
];

/// The rooms that are pure: bytes, time and randomness come in, bytes go out.
pub const SANS_IO: &[&str] = &["stack", "http", "imds"];

/// What a pure room never names.
pub const IO: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "Timestamp::now",
    "Zoned::now",
    "getrandom",
    "rand::random",
    "rand::rng",
    "thread::park",
    "thread::scope",
    "thread::sleep",
    "thread::spawn",
    "tokio",
];

/// Where a guest's bytes arrive, each with the modules in it, and the lints that keep them from causing a panic. What of the classifier is
/// the kernel's alone (`imds-ebpf/src/main.rs` and its modules) no lint sees: there the verifier refuses what could panic.
pub const GUEST_FACING: &[&str] = &[
    "imds-agent/src/credentials/capsule.rs",
    "imds-agent/src/datapath/inject.rs",
    "imds-agent/src/datapath/punt.rs",
    "imds-agent/src/datapath/ring.rs",
    "imds-agent/src/http/mod.rs",
    "imds-agent/src/imds/mod.rs",
    "imds-agent/src/observe/mod.rs",
    "imds-agent/src/request_rate.rs",
    "imds-agent/src/stack/mod.rs",
    "imds-agent/src/sts/mod.rs",
    "imds-agent/src/worker.rs",
    "imds-ebpf/src/lib.rs",
];
pub const PANIC_LINTS: &[&str] = &[
    "clippy::arithmetic_side_effects",
    "clippy::expect_used",
    "clippy::indexing_slicing",
    "clippy::panic",
    "clippy::unwrap_used",
];

/// Where `unsafe` may stand, and why there.
pub const UNSAFE: &[(&str, &str)] = &[
    (
        "imds-agent/src/datapath/",
        "the edge to the kernel: system calls and shared memory",
    ),
    (
        "imds-agent/src/privilege/",
        "the handler of a signal, and the environment of a process with one thread",
    ),
    (
        "imds-agent/src/allocator.rs",
        "a knob of the C library's allocator",
    ),
    (
        "imds-agent/src/control/peer.rs",
        "a socket option that no crate has",
    ),
    (
        "imds-ebpf/src/main.rs",
        "the edge to the kernel: maps and entry points",
    ),
    (
        "imds-ebpf/src/skb.rs",
        "the edge to the kernel: the frame's bytes",
    ),
    (
        "imds-ebpf/src/punt.rs",
        "the edge to the kernel: the ring's records",
    ),
    (
        "tests/src/kernel.rs",
        "BPF_PROG_TEST_RUN is a system call without a safe wrapper",
    ),
    ("tests/src/tap.rs", "the tun driver is set up by ioctl"),
];

/// Names that say nothing about what is inside.
pub const EMPTY_NAMES: &[&str] = &["common", "helper", "helpers", "misc", "util", "utils"];

/// Past this many lines before its tests, a file holds a second idea.
pub const LINES_MAX: usize = 500;

/// Directories whose sources are checked.
pub const SOURCES: &[&str] = &["imds-agent", "imds-ebpf", "tests", "xtask"];

/// What somebody's own machine leaves in a text.
pub const MACHINE_PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
];
