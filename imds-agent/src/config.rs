//! Arguments and file into a validated `Config`.
