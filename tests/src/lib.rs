//! Guests, namespaces and peers for the integration tests.

pub mod agent;
pub mod client;
pub mod cloud_init;
pub mod control;
pub mod debian;
pub mod dhcp;
pub mod frames;
pub mod host;
pub mod kernel;
pub mod kernel_guest;
pub mod libvirt;
pub mod load;
pub mod moto;
pub mod netns;
pub mod qemu;
pub mod records;
pub mod scrape;
pub mod tap;
pub mod verdicts;
pub mod vm_host;
