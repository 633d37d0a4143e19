//! What operators are told about what happens.

pub mod audit;
pub mod frames;
pub mod latency;
pub mod metrics;
pub mod requests;
pub mod trace;
pub mod unsent;
pub mod upkeep;
pub mod worker_health;

pub use audit::Audit;
pub use frames::Frames;
pub use metrics::Metrics;
pub use requests::Requests;
pub use trace::Trace;
pub use unsent::Unsent;
pub use upkeep::{Fetches, StsExchanges};
pub use worker_health::WorkerHealth;
