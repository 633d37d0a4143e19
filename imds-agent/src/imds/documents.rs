//! The JSON documents of the tree.
