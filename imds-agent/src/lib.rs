//! The instance metadata service of a KVM host.
//!
//! ```text
//!  guest ──frame──► tap  (TC ingress, TCX link)
//!                    │  imds-ebpf   classify ─► Verdict
//!                    │      Pass  ► the guest's ordinary network, untouched
//!                    │      Drop(reason)   counted per tap and reason
//!                    │      Hairpin        ARP and NDP for the IMDS address, answered in the kernel
//!                    ▼      Punt           copied into the ring, then consumed
//!       datapath/punt.rs            frame + tap + verified MAC                    kernel → agent
//!                    ▼
//!       worker.rs                   (tap, MAC) → interface → instance              who is asking
//!                    ▼
//!       stack/                      one smoltcp IP stack per interface             packets ↔ streams
//!                    ▼
//!       http/                       one request ◄─► one response                   streams ↔ messages
//!                    ▼
//!       imds/                       access → token → path → tree or document       meaning
//!                    ▼
//!       registry/  credentials/     immutable snapshots, never waited for          facts
//!                    ▼  (the reply climbs the same stairs)
//!       datapath/inject.rs ──► tap ──► guest
//! ```
//!
//! *Outbound* is from the guest, *inbound* is to the guest.
//!
//! **Invariants**, kept by `cargo xtask tidy` where a machine can:
//! - `stack`, `http`, `imds` perform no IO and read no clock: time and randomness come in as arguments.
//! - `datapath` does not know what a request is; `imds` does not know what a tap is.
//! - Identity comes from the tap, never from guest bytes.
//! - A guest can make its own requests fail, and nothing else.
//! - Nothing a guest sends can panic, allocate without bound, or wait on another guest.
//! - Secrets have no `Display`, a redacted `Debug`, and are wiped when dropped.
//! - A frame for the IMDS address never leaves a tap that has the classifier, whatever state the agent is in.

pub mod accepting;
pub mod agent;
pub mod allocator;
pub mod bindings;
pub mod config;
pub mod control;
pub mod credentials;
pub mod datapath;
pub mod exit_code;
pub mod glob;
pub mod http;
pub mod identity_files;
pub mod identity_signer;
pub mod imds;
pub mod imdsctl;
pub mod keys;
pub mod now;
pub mod observe;
pub mod privilege;
pub mod registry;
pub mod reload;
pub mod request_rate;
pub mod service_manager;
pub mod sources;
pub mod stack;
pub mod sts;
pub mod unix_socket;
pub mod worker;
