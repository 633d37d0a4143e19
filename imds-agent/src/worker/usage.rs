//! What taps use of the limits that workers keep: requests and connections.

use std::time::Duration;

use imds_ebpf::abi::TapIndex;
use rustc_hash::FxHashMap;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use crate::request_rate::RequestsLeft;

/// How long workers may take to answer: one with a full ring looks at its inbox after a thousand frames, some ten
/// milliseconds.
const PATIENCE: Duration = Duration::from_millis(500);

/// Of the taps of one worker, or of all.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// What they have left of their requests, or nothing if there is no limit.
    pub requests_left: Option<RequestsLeft>,
    /// Connections, half-open ones included, of taps that have any.
    pub connections: FxHashMap<TapIndex, usize>,
}

impl Usage {
    /// What the workers that were asked answer; nothing if there are none, or one of them takes too long: a tap that the
    /// others do not speak of may be its.
    pub async fn gather(asked: Vec<oneshot::Receiver<Self>>) -> Option<Self> {
        #[expect(clippy::arithmetic_side_effects, reason = "half a second from now is a time")]
        let deadline = Instant::now() + PATIENCE;
        let mut all: Option<Self> = None;
        for told in asked {
            let told = timeout_at(deadline, told).await.ok()?.ok()?;
            match &mut all {
                Some(all) => all.add(told),
                None => all = Some(told),
            }
        }
        all
    }

    /// Takes in what another worker tells of other taps.
    fn add(&mut self, other: Self) {
        self.connections.extend(other.connections);
        if let (Some(own), Some(others)) = (&mut self.requests_left, other.requests_left) {
            own.taps.extend(others.taps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(tap: u64) -> Usage {
        Usage {
            requests_left: Some(RequestsLeft {
                full: 1024,
                taps: FxHashMap::from_iter([(TapIndex(tap), tap)]),
            }),
            connections: FxHashMap::from_iter([(TapIndex(tap), 1)]),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn workers_are_told_together_or_not_at_all() {
        let (askers, asked): (Vec<_>, Vec<_>) = (0..2).map(|_| oneshot::channel()).unzip();
        for (number, asker) in (1..).zip(askers) {
            asker.send(usage(number)).unwrap();
        }
        let all = Usage::gather(asked).await.unwrap();
        assert_eq!(all.connections.len(), 2);
        assert_eq!(all.requests_left.unwrap().taps[&TapIndex(2)], 2);

        let (_stuck, never) = oneshot::channel();
        let (asker, asked) = oneshot::channel();
        asker.send(usage(1)).unwrap();
        assert_eq!(Usage::gather(vec![asked, never]).await, None);
        let (ended, never) = oneshot::channel();
        drop(ended);
        assert_eq!(Usage::gather(vec![never]).await, None);
        assert_eq!(Usage::gather(Vec::new()).await, None);
    }
}
