//! What operators are told about what happens.

pub mod audit;
pub mod requests;

pub use audit::Audit;
pub use requests::Requests;
