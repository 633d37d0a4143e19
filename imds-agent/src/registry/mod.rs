//! Which instances, roles and instance profiles exist: an immutable view, published whole.

pub mod accelerators;
mod check;
mod claim;
pub mod directory;
pub mod events;
pub mod instance;
pub mod keyed;
mod link;
pub mod problem;
pub mod record;
pub mod records;
pub mod role;
pub mod snapshot;
pub mod store;
pub mod text;

pub use directory::{CreateError, Directory, OpenError};
pub use instance::{
    HttpEndpoint, HttpProtocolIpv6, HttpTokens, Instance, InstanceId, InstanceMetadataTags,
    InstanceMetadataTagsIndex, InterfaceId, MetadataOptions, NetworkInterface,
};
pub use problem::Problem;
pub use record::Rules;
pub use role::{AccountId, IamArn, InstanceProfile, InstanceProfileName, Role, RoleName};
pub use snapshot::{Published, Snapshot};
pub use store::Store;
