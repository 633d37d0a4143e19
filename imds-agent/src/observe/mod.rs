//! What operators are told about what happens.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

pub mod audit;
pub mod budget;
pub mod frames;
pub mod guests;
pub mod hop_limit;
pub mod latency;
pub mod metrics;
pub mod panics;
mod recent;
pub mod requests;
pub mod sts_exchanges;
pub mod tokenless;
pub mod trace;
pub mod unsent;
pub mod warnings;
pub mod worker_health;

pub use audit::Audit;
pub use budget::Budget;
pub use frames::Frames;
pub use guests::Guests;
pub use metrics::Metrics;
pub use panics::Panics;
pub use requests::Requests;
pub use sts_exchanges::StsExchanges;
pub use trace::Trace;
pub use unsent::Unsent;

pub use worker_health::WorkerHealth;
