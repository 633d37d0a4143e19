//! How many connections there may be, in all and of one peer: who takes all of its own takes nobody else's.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections of one address at once. An SDK keeps a handful.
pub const OF_ONE_PEER_MAX: usize = 32;

/// Who has how many connections.
#[derive(Default, Debug)]
pub struct Seats(Mutex<HashMap<IpAddr, usize>>);

/// A connection's seat, given back when dropped.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
}

impl Seats {
    /// A seat for one more connection of `peer`, unless it has all that it may have.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        // An IPv6 guest has a whole network of addresses, of which the first half names it.
        let peer = match peer.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer).or_default();
        if *count >= OF_ONE_PEER_MAX {
            return None;
        }
        *count += 1;
        let seats = Arc::clone(self);
        Some(Seat { seats, peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_gets_its_own_and_no_more_and_gives_them_back() {
        let seats = Arc::new(Seats::default());
        let greedy: IpAddr = "10.0.0.2".parse().unwrap();
        let mut taken: Vec<_> = (0..OF_ONE_PEER_MAX)
            .map(|_| seats.take(greedy).unwrap())
            .collect();
        assert!(seats.take(greedy).is_none());
        assert!(seats.take("::ffff:10.0.0.2".parse().unwrap()).is_none());
        assert!(seats.take("10.0.0.3".parse().unwrap()).is_some());
        taken.pop();
        taken.push(seats.take(greedy).unwrap());
        drop(taken);
        assert!(seats.0.lock().unwrap().is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let seats = Arc::new(Seats::default());
        let take = |address: &str| seats.take(address.parse().unwrap());
        let taken: Vec<_> = (0..OF_ONE_PEER_MAX)
            .map(|number| take(&format!("fd00::{number:x}")).unwrap())
            .collect();
        assert!(take("fd00::ffff").is_none());
        assert!(take("fd00:0:0:1::1").is_some());
        drop(taken);
    }
}
