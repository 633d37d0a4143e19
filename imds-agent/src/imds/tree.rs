//! The metadata tree as data: a table of paths, first versions and accessors.
