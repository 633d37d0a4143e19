//! What finding something in the tree costs: one step for every name that is looked at. It is counted in tests only,
//! which hold that a tree of thousands of paths costs no more of them than a small one.

#[cfg(test)]
std::thread_local! {
    static STEPS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// One more.
pub(super) fn count() {
    #[cfg(test)]
    STEPS.set(STEPS.get().saturating_add(1));
}

/// How many they were on this thread since the last time.
#[cfg(test)]
pub(super) fn take() -> u32 {
    STEPS.take()
}
