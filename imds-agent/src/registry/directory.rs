//! The embedded registry: one JSON file per instance, role and instance profile, in three directories.
