//! How many connections and requests there may be of one peer: who takes all of its own takes nobody else's.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::request_rate::RequestBuckets;

/// Connections of one peer at once. An SDK keeps a handful.
pub const CONNECTIONS_MAX: usize = 32;

/// What every peer has taken.
#[derive(Debug)]
pub struct Peers {
    connections: Mutex<HashMap<IpAddr, usize>>,
    requests: Mutex<RequestBuckets<IpAddr>>,
}

/// A connection's seat, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    peers: Arc<Peers>,
    peer: IpAddr,
}

impl Peers {
    /// Nobody has taken anything yet, and each may ask so often. Zero sets no limit.
    pub fn new(requests_per_second: u32) -> Self {
        Self {
            connections: Mutex::default(),
            requests: Mutex::new(RequestBuckets::new(requests_per_second)),
        }
    }

    /// A seat for one more connection from this address, unless its peer has all that it may have.
    pub fn seat(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let peer = peer(address);
        let mut taken = held(&self.connections);
        let count = taken.entry(peer).or_default();
        if *count >= CONNECTIONS_MAX {
            return None;
        }
        *count = count.saturating_add(1);
        let peers = Arc::clone(self);
        Some(Seat { peers, peer })
    }

    /// Whether a request from this address is to be answered at `now` (of the monotonic clock).
    pub fn may_ask(&self, address: IpAddr, now: Duration) -> bool {
        held(&self.requests).take(now, peer(address))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = held(&self.peers.connections);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// Who has an address: an IPv6 guest has a whole network of them, of which the first half names it.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn held<T>(taken: &Mutex<T>) -> MutexGuard<'_, T> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_gets_its_own_and_no_more_and_gives_them_back() {
        let peers = Arc::new(Peers::new(0));
        let greedy: IpAddr = "10.0.0.2".parse().unwrap();
        let mut taken: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| peers.seat(greedy).unwrap())
            .collect();
        assert!(peers.seat(greedy).is_none());
        assert!(peers.seat("::ffff:10.0.0.2".parse().unwrap()).is_none());
        assert!(peers.seat("10.0.0.3".parse().unwrap()).is_some());
        taken.pop();
        taken.push(peers.seat(greedy).unwrap());
        drop(taken);
        assert!(held(&peers.connections).is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let peers = Arc::new(Peers::new(0));
        let take = |address: &str| peers.seat(address.parse().unwrap());
        let taken: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|number| take(&format!("fd00::{number:x}")).unwrap())
            .collect();
        assert!(take("fd00::ffff").is_none());
        assert!(take("fd00:0:0:1::1").is_some());
        drop(taken);
    }

    #[test]
    fn one_peer_asks_as_often_as_it_may_and_others_notice_nothing() {
        let peers = Peers::new(10);
        let may_ask =
            |address: &str, now| peers.may_ask(address.parse().unwrap(), Duration::from_millis(now));
        let answered = (0..100).filter(|_| may_ask("10.0.0.2", 1000)).count();
        assert_eq!(answered, 40);
        assert!(!may_ask("::ffff:10.0.0.2", 1000) && may_ask("10.0.0.3", 1000));
        assert!(may_ask("10.0.0.2", 1100) && !may_ask("10.0.0.2", 1100));
    }
}
