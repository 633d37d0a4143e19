//! The stack against guests in the same process: one that is smoltcp and means well, joined by a seeded network that does
//! not, and one that sends whatever it likes.

mod backlog;
mod exchanges;
mod hostile;
mod leftovers;
mod link;
mod seeds;
mod segments;
mod service;
mod silence;
mod simulation;
mod time_wait;

use super::*;

/// The guest's addresses, as its hand-made segments have them.
const GUEST: Ipv4Address = Ipv4Address::from_octets(imds_tests::frames::GUEST_IP);
const GUEST_IPV6: Ipv6Address = Ipv6Address::from_octets(imds_tests::frames::GUEST_IPV6);

fn at(since_begin: Duration) -> Now {
    Now {
        monotonic: since_begin,
        unix: Duration::from_secs(1_700_000_000) + since_begin,
    }
}

fn at_second(second: u64) -> Now {
    at(Duration::from_secs(second))
}

/// The packets that a call sends.
type Sent = Vec<Vec<u8>>;

/// What is left of guests that are gone: connections with their sockets, waiting SYNs, TIME-WAIT states, timers.
fn leftovers(stack: &Stack) -> Option<String> {
    let timer = stack.poll_timeout();
    (!stack.is_idle() || timer.is_some()).then(|| {
        format!(
            "{} connections, backlog empty: {}, TIME-WAITs empty: {}, timer at {timer:?}",
            stack.connection_count(),
            stack.backlog.is_empty(),
            stack.time_waits.is_empty(),
        )
    })
}
