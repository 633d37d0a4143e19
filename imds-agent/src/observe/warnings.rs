//! How often what a guest does, or whoever else may as often as it likes, may make the log longer.

use std::time::Duration;

/// The same of one instance is told again after this long at the soonest.
const AGAIN_AFTER: Duration = Duration::from_secs(60 * 60);

/// Lines of all together that may come at once, and from then on one every [`INTERVAL`]: a fleet that is set up
/// wrongly as a whole fills no log, and is found by its first twenty.
const BURST: u32 = 20;

/// 120 lines an hour.
const INTERVAL: Duration = Duration::from_secs(30);

/// A token bucket, remembered as the time at which it is full again.
#[derive(Default, Debug)]
pub struct Warnings {
    full_at: Duration,
}

impl Warnings {
    /// Whether a line may be logged about what was told last at `told_at`, if ever. If so, it counts.
    pub fn may_tell(&mut self, now: Duration, told_at: Option<Duration>) -> bool {
        if told_at.is_some_and(|told_at| now.saturating_sub(told_at) < AGAIN_AFTER) {
            return false;
        }
        let full_at = self.full_at.max(now).saturating_add(INTERVAL);
        if full_at.saturating_sub(now) > INTERVAL.saturating_mul(BURST) {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_at_their_pace() {
        let mut warnings = Warnings::default();
        let at = |seconds: u64| Duration::from_secs(1_000_000 + seconds);
        let mut told = |seconds, told_at| warnings.may_tell(at(seconds), told_at);
        assert!(told(0, None));
        assert!(!told(3599, Some(at(0))) && told(3600, Some(at(0))));
        let mut tell_many = |seconds| (0..100).filter(|_| told(seconds, None)).count();
        assert_eq!(
            [tell_many(10_000), tell_many(10_030), tell_many(10_090)],
            [20, 1, 2]
        );
    }
}
