//! SYNs that wait, and come again while they do.

use imds_tests::segment::{ACK, Segment as Made};

use super::{
    super::*,
    at, at_second,
    segments::{feed, next, syn},
};

#[test]
fn a_repeated_syn_waits_in_place_of_one_that_waited_for_too_long() {
    let mut backlog = Backlog::default();
    let (packet, again) = (syn(999), [syn(999), vec![0]].concat());
    let peer = Segment::parse(&packet).unwrap().peer;
    backlog.push(at_second(1), peer, &packet);
    backlog.push(at(Duration::from_millis(1999)), peer, &again);
    backlog.push(at_second(2), peer, &again);
    assert_eq!(backlog.pop(at(Duration::from_millis(2999))), Some(again));
    assert!(backlog.is_empty());
    // The one that waited for too long, and none that only came again.
    assert_eq!((backlog.take_dropped(), backlog.take_dropped()), (1, 0));
    backlog.push(at_second(3), peer, &[0; backlog::PACKET_BYTES_MAX + 1]);
    assert_eq!(backlog.take_dropped(), 1);
}

/// The first of two SYNs waits. The second comes when there is room, before anybody looked whether the first may go.
#[test]
fn a_syn_that_comes_twice_opens_one_connection() {
    let mut stack = Stack::new(at_second(1), 40, Spares::default());
    for port in 0..u16::try_from(CONNECTIONS_MAX).unwrap() {
        let port = 1024 + port;
        let other = Made {
            port,
            ..Made::default()
        };
        let ours = next(&feed(&mut stack, at_second(1), &other.ipv4()));
        let established = Made {
            port,
            sequence: 1,
            acknowledges: ours,
            flags: ACK,
            ..Made::default()
        };
        feed(&mut stack, at_second(1), &established.ipv4());
    }
    assert!(feed(&mut stack, at_second(1), &syn(999)).is_empty(), "it waits");
    let answers = feed(&mut stack, at(Duration::from_millis(1900)), &syn(999));
    let count = |is: fn(&Segment) -> bool| answers.iter().filter(|segment| is(segment)).count();
    assert_eq!(
        (count(|segment| segment.rst), count(|segment| segment.syn)),
        (1, 1),
        "{answers:?}"
    );
    assert!(stack.backlog.is_empty());
    let reset = Refused {
        reset: 1,
        ..Refused::default()
    };
    assert_eq!(stack.take_refused(), reset);
}
