//! Which instances, roles and instance profiles exist: an immutable view, published whole.

pub mod directory;
pub mod instance;
pub mod role;
pub mod snapshot;

pub use instance::{
    HttpEndpoint, HttpProtocolIpv6, HttpTokens, Instance, InstanceId, InstanceMetadataTags, InterfaceId,
    MetadataOptions, NetworkInterface,
};
pub use role::{AccountId, InstanceProfile, InstanceProfileName, Role, RoleName};
pub use snapshot::{Published, Snapshot};
