//! One heap for all threads.
//!
//! Read first: mallopt(3), `M_ARENA_MAX`. glibc gives each thread a heap of its own, so that threads need not wait for each other, and
//! what one frees no other uses again. Here the threads that read records, attach taps, sign and fetch work one after the other on what
//! stays: with ten thousand instances their heaps held 11 of 54 MiB that nobody used. An exchange allocates nothing once its
//! interface has its buffers (`tests/tests/allocations.rs`), so no guest waits for it.

/// Has all threads share one heap. To be called before there are others; where the C library has another allocator it does nothing.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "glibc's own knob")]
    // SAFETY: it sets a number of the allocator's.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}
