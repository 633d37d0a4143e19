//! Session tokens: minted and checked without any state.
