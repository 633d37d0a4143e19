//! What operators are told about what happens.

pub mod requests;

pub use requests::Requests;
