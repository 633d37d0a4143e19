//! What operators are told about what happens.

pub mod audit;
pub mod guests;
pub mod hop_limit;
mod recent;
pub mod requests;
pub mod tokenless;
mod warnings;

pub use audit::Audit;
pub use guests::Guests;
pub use requests::Requests;
