//! Tells when links come and go.
