//! The seeds that simulations are made from.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Those of an ordinary run. `cargo xtask fuzz simulation` has more of them.
const SEEDS: Range<u64> = 0..2000;

/// Those to run instead, `<first>..<end>`.
const VARIABLE: &str = "IMDS_AGENT_SIMULATION_SEEDS";

/// Plays every seed and tells it whether it is the only one. A seed that fails is named with the command that plays it again.
/// The ordinary ones have one thread, beside the other tests; a night's have all cores.
pub fn each(play: impl Fn(u64, bool) + Sync) {
    let (seeds, threads) = match asked() {
        Some(asked) => (asked, thread::available_parallelism().map_or(1, usize::from)),
        None => (SEEDS, 1),
    };
    let is_alone = seeds.end - seeds.start == 1;
    let next = AtomicU64::new(seeds.start);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let failing = Failing(seed);
                    play(seed, is_alone);
                    std::mem::forget(failing);
                }
            });
        }
    });
}

fn asked() -> Option<Range<u64>> {
    let text = std::env::var(VARIABLE).ok()?;
    let seeds = text
        .split_once("..")
        .and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    Some(seeds.unwrap_or_else(|| panic!("{VARIABLE} is not <first>..<end>: {text}")))
}

/// Dropped only by a panic.
struct Failing(u64);

impl Drop for Failing {
    fn drop(&mut self) {
        println!(
            "seed {0} fails; to see it again: cargo xtask fuzz simulation --seed {0}",
            self.0
        );
    }
}
