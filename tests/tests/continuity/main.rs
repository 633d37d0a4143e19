//! T1: what the real agent's taps get while it runs, hangs, is stopped, killed, replaced, upgraded and taken off.

mod leaks;
mod restarts;
