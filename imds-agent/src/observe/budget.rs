//! What taps have left of their limits at one moment, each of its own and all of them together.
//!
//! A guest at its limit is refused what is over it and slowed down by nobody else, so that is nothing to wake anybody up
//! for; but software that lives there does not work as it should, and what is refused says only how often, not to how many.

/// What is limited of a tap, as labels say it.
pub const LIMITS: [&str; 3] = ["packets", "requests", "connections"];

/// A tap with a smaller part of a limit left than one in so many is at it. At the very limit a bucket is never seen empty
/// for long: each moment puts a token in, and the flood takes it out.
const AT_LIMIT_BELOW: u64 = 16;

/// What is left of one limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Left {
    /// So much.
    pub left: u64,
    /// Of so much, which a tap has when it rests.
    pub of: u64,
}

/// What one tap has left. A limit that is switched off is absent, and so are those of a worker that does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Budget {
    /// Packets that the classifier would serve at this moment.
    pub packets: Option<Left>,
    /// Requests that would be answered.
    pub requests: Option<Left>,
    /// Connections that may be made before an older one has to go.
    pub connections: Option<Left>,
}

/// What all taps together have left.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Scarcest([Option<Scarce>; LIMITS.len()]);

/// One limit of all taps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scarce {
    /// The least that any of them has left.
    pub least: u64,
    /// How many are at the limit.
    pub at_limit: u64,
}

impl Left {
    /// Whether it is next to nothing.
    pub fn is_at_limit(self) -> bool {
        self.left.saturating_mul(AT_LIMIT_BELOW) < self.of
    }
}

impl Budget {
    /// Each limit that there is, by its label.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, Left)> {
        let all = LIMITS
            .into_iter()
            .zip([self.packets, self.requests, self.connections]);
        all.filter_map(|(limit, left)| Some((limit, left?)))
    }
}

impl Scarcest {
    /// Of these taps.
    pub fn of<'a>(taps: impl IntoIterator<Item = &'a Budget>) -> Self {
        let mut all = Self::default();
        for Budget {
            packets,
            requests,
            connections,
        } in taps
        {
            for (scarce, left) in all.0.iter_mut().zip([packets, requests, connections]) {
                let Some(left) = left else { continue };
                let scarce = scarce.get_or_insert(Scarce {
                    least: left.left,
                    at_limit: 0,
                });
                scarce.least = scarce.least.min(left.left);
                scarce.at_limit = scarce.at_limit.saturating_add(left.is_at_limit().into());
            }
        }
        all
    }

    /// Each limit that any of them has, by its label.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, Scarce)> {
        let all = LIMITS.into_iter().zip(self.0);
        all.filter_map(|(limit, scarce)| Some((limit, scarce?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packets(left: u64) -> Budget {
        Budget {
            packets: Some(Left { left, of: 1024 }),
            ..Budget::default()
        }
    }

    #[test]
    fn a_tap_is_at_its_limit_below_a_sixteenth() {
        let is_at_limit = |left, of| Left { left, of }.is_at_limit();
        assert!(!is_at_limit(64, 1024) && is_at_limit(63, 1024));
        assert!(!is_at_limit(0, 0) && !is_at_limit(u64::MAX, u64::MAX));
    }

    #[test]
    fn the_scarcest_is_told_of_limits_that_there_are() {
        let scarcest = Scarcest::of(&[packets(1024), packets(3), packets(0), Budget::default()]);
        let told: Vec<_> = scarcest.limits().collect();
        assert_eq!(
            told,
            [(
                "packets",
                Scarce {
                    least: 0,
                    at_limit: 2
                }
            )]
        );
        assert_eq!(Scarcest::of([]).limits().next(), None);
    }
}
