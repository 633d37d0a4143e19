//! Guests, namespaces and peers for the integration tests.

pub mod agent;
pub mod ceph;
pub mod client;
pub mod clock;
pub mod control;
pub mod debian;
pub mod dhcp;
pub mod exchange;
pub mod frames;
pub mod host;
pub mod kernel;
pub mod kernel_guest;
pub mod leaks;
pub mod libvirt;
pub mod load;
pub mod moto;
pub mod netns;
pub mod qemu;
pub mod raw_guest;
pub mod records;
pub mod scrape;
pub mod sdk;
pub mod segment;
pub mod tap;
pub mod verdicts;
pub mod vm_host;
