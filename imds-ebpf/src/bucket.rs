//! How many frames of a tap are served: a token bucket per tap, so that one guest cannot fill another's ring.
//!
//! A bucket is one number: the time at which it is full again (the generic cell rate algorithm, ITU-T I.371, does the same
//! sum). A frame that is served moves that time on by its tokens' worth of intervals; a frame that would move it further
//! ahead than a whole bucket takes to fill is over the limit, moves nothing, and so costs its sender nothing later.

use crate::abi::{BURST_TOKENS, LARGE_FRAME_TOKENS, MEDIUM_FRAME_MAX, Reason};

/// The tokens that a frame of `length` bytes costs.
#[inline(always)]
pub fn tokens(length: usize) -> u64 {
    if length <= MEDIUM_FRAME_MAX {
        1
    } else {
        LARGE_FRAME_TOKENS
    }
}

/// What taking tokens makes of the time at which a bucket is full again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The bucket was full: it is this time now.
    Until(u64),
    /// It is later by so much. CPUs that take at the same time may each add theirs, and no token is taken twice.
    Later(u64),
}

#[cfg(test)]
impl Taken {
    /// When the bucket is full again that was so at `full_ns` before.
    pub(crate) fn of(self, full_ns: u64) -> u64 {
        match self {
            Self::Until(time) => time,
            Self::Later(by) => full_ns + by,
        }
    }
}

/// Takes `tokens` out of the bucket that is full again at `full_ns`. All times are of the one clock that only goes forward.
#[inline(always)]
pub fn take(full_ns: u64, now_ns: u64, interval_ns: u32, tokens: u64) -> Result<Taken, Reason> {
    let interval_ns = u64::from(interval_ns);
    let cost_ns = tokens.wrapping_mul(interval_ns);
    let after_ns = full_ns.max(now_ns).wrapping_add(cost_ns);
    if after_ns.wrapping_sub(now_ns) > BURST_TOKENS.wrapping_mul(interval_ns) {
        return Err(Reason::RateLimited);
    }
    Ok(if full_ns < now_ns {
        Taken::Until(after_ns)
    } else {
        Taken::Later(cost_ns)
    })
}

/// Tokens that are left in the bucket, or nothing if there is no limit.
pub fn left(full_ns: u64, now_ns: u64, interval_ns: u32) -> Option<u64> {
    let missing = full_ns.saturating_sub(now_ns).div_ceil(match interval_ns {
        0 => return None,
        interval_ns => interval_ns.into(),
    });
    Some(BURST_TOKENS.saturating_sub(missing))
}

/// When a bucket is full again that has as many tokens left at another rate. As a time it would not do: what takes a slow rate two
/// minutes is more than a fast one's whole bucket, and nothing would be served for so long. Of a bucket whose rate is not known any more
/// as much is missing as the new one lets be.
pub fn at_another_rate(full_ns: u64, now_ns: u64, old_interval_ns: Option<u32>, new_interval_ns: u32) -> u64 {
    let full_in = |missing: u64| now_ns.saturating_add(missing.saturating_mul(new_interval_ns.into()));
    match old_interval_ns.map(|old| left(full_ns, now_ns, old)) {
        None => full_ns.min(full_in(BURST_TOKENS)),
        // There was no limit, and nothing was counted.
        Some(None) => 0,
        Some(Some(left)) => full_in(BURST_TOKENS.saturating_sub(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{IMDS_MAC, LARGE_FRAME_MAX, SMALL_FRAME_MAX, TapBinding};

    const INTERVAL_NS: u32 = TapBinding::to(IMDS_MAC).frame_interval_ns;

    /// How many frames are served that come every `every_ns` for `seconds`.
    fn served(full_ns: &mut u64, from_ns: u64, seconds: u64, every_ns: u64, tokens: u64) -> u64 {
        let mut count = 0;
        for frame in 0..seconds * 1_000_000_000 / every_ns {
            if let Ok(taken) = take(*full_ns, from_ns + frame * every_ns, INTERVAL_NS, tokens) {
                *full_ns = taken.of(*full_ns);
                count += 1;
            }
        }
        count
    }

    #[test]
    fn burst_is_served_at_once_and_the_rate_from_then_on() {
        let mut full_ns = 0;
        let start = 5_000_000_000_000;
        let first = served(&mut full_ns, start, 10, 20_000, 1);
        assert!((1024 + 10_239..=1024 + 10_241).contains(&first), "{first}");
        // A second of silence is a second's worth of tokens.
        let next = served(&mut full_ns, start + 11_000_000_000, 1, 20_000, 1);
        assert!((2046..=2049).contains(&next), "{next}");
    }

    #[test]
    fn who_keeps_to_the_rate_is_never_refused() {
        let mut full_ns = 0;
        assert_eq!(served(&mut full_ns, 1, 100, INTERVAL_NS.into(), 1), 102_400);
    }

    #[test]
    fn large_frames_cost_more() {
        let mut full_ns = 0;
        let cost = tokens(LARGE_FRAME_MAX);
        let first = served(&mut full_ns, 1_000_000_000, 1, 100_000, cost);
        assert!((255..=257).contains(&first), "{first}");
        assert_eq!(
            [tokens(60), tokens(SMALL_FRAME_MAX + 1), tokens(MEDIUM_FRAME_MAX)],
            [1; 3]
        );
    }

    #[test]
    fn what_is_left_is_what_would_be_served() {
        let (mut full_ns, start) = (0, 5_000_000_000_000);
        assert_eq!(left(full_ns, start, INTERVAL_NS), Some(BURST_TOKENS));
        for taken in 1..=BURST_TOKENS {
            full_ns = take(full_ns, start, INTERVAL_NS, 1).unwrap().of(full_ns);
            assert_eq!(left(full_ns, start, INTERVAL_NS), Some(BURST_TOKENS - taken));
        }
        assert_eq!(
            left(full_ns, start + 10_000_000_000, INTERVAL_NS),
            Some(BURST_TOKENS)
        );
    }

    #[test]
    fn no_interval_is_no_limit() {
        assert_eq!(left(7, 0, 0), None);
        assert_eq!(take(0, 7, 0, 8), Ok(Taken::Until(7)));
        assert_eq!(take(7, 7, 0, 8), Ok(Taken::Later(0)));
    }

    #[test]
    fn another_rate_leaves_as_many_tokens() {
        const NOW_NS: u64 = 1 << 40;
        let slow = 1_000_000_000;
        for missing in [0, 1, 24, BURST_TOKENS] {
            let full_ns = NOW_NS + missing * u64::from(slow);
            let faster = at_another_rate(full_ns, NOW_NS, Some(slow), INTERVAL_NS);
            assert_eq!(left(faster, NOW_NS, INTERVAL_NS), Some(BURST_TOKENS - missing));
            let again = at_another_rate(faster, NOW_NS, Some(INTERVAL_NS), slow);
            assert_eq!(left(again, NOW_NS, slow), Some(BURST_TOKENS - missing));
        }
        // A bucket of long ago is full, and so is one that nobody counted on.
        assert_eq!(at_another_rate(5, NOW_NS, Some(slow), INTERVAL_NS), NOW_NS);
        assert_eq!(at_another_rate(NOW_NS * 2, NOW_NS, Some(0), INTERVAL_NS), 0);
        // Nobody was bound in between.
        let empty = at_another_rate(NOW_NS * 2, NOW_NS, None, INTERVAL_NS);
        assert_eq!(left(empty, NOW_NS, INTERVAL_NS), Some(0));
        assert_eq!(at_another_rate(5, NOW_NS, None, INTERVAL_NS), 5);
    }
}
