//! A request target into a version and path segments.
