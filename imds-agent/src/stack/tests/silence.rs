//! Connections on which nothing moves: which are closed, which are reset, and when.

use imds_tests::segment::{FIN, PSH};

use super::{
    super::*,
    Sent, at, at_second,
    segments::{feed, next, segment, syn},
    service::{Pattern, get, get_keep_alive},
};

/// What the stack sends and when, until it has forgotten a peer that says nothing more.
fn silence(stack: &mut Stack, mut now: Duration) -> Vec<(Duration, Segment)> {
    let mut heard = Vec::new();
    while let Some(due) = stack.poll_timeout() {
        now = due.max(now + Duration::from_millis(1));
        assert!(now < Duration::from_secs(300), "it waits for ever");
        let mut sent = Sent::default();
        stack.handle_timeout(at(now), &mut Pattern, &mut sent);
        heard.extend(sent.iter().map(|packet| (now, Segment::parse(packet).unwrap())));
    }
    assert!(stack.is_idle());
    heard
}

/// A connection of port 50000 at the first second, and our next sequence number.
fn connect() -> (Stack, u32) {
    let mut stack = Stack::new(at_second(1), 20, Spares::default());
    let ours = next(&feed(&mut stack, at_second(1), &syn(999)));
    assert!(feed(&mut stack, at_second(1), &segment(0, 1000, ours, b"")).is_empty());
    (stack, ours)
}

/// Has `request` answered at the fifth second, and returns the next sequence numbers, ours and the guest's.
fn answered(stack: &mut Stack, ours: u32, request: &[u8]) -> (u32, u32) {
    let asks = segment(PSH, 1000, ours, request);
    let ours = next(&feed(stack, at_second(5), &asks));
    (ours, 1000 + u32::try_from(request.len()).unwrap())
}

fn seconds(heard: Option<&(Duration, Segment)>) -> u64 {
    heard.expect("a packet").0.as_secs()
}

/// The first packet is a FIN at `closed`. Nobody acknowledges it, so that it comes again, and then a reset 20 s later.
#[track_caller]
fn assert_closed_at(closed: u64, heard: &[(Duration, Segment)]) {
    let (last, before) = heard.split_last().expect("a packet");
    assert_eq!(seconds(before.first()), closed, "{heard:?}");
    assert!(before.len() > 1, "{heard:?}");
    for (_, segment) in before {
        assert!(segment.fin && segment.end - segment.sequence == 1, "{heard:?}");
    }
    assert!(last.1.rst, "{heard:?}");
    assert_eq!(last.0.as_secs(), closed + 20);
}

#[test]
fn a_fresh_connection_is_closed_after_30_s() {
    let (mut stack, _) = connect();
    assert_closed_at(31, &silence(&mut stack, Duration::from_secs(1)));
}

#[test]
fn a_connection_kept_alive_is_closed_after_30_s() {
    let (mut stack, ours) = connect();
    let (ours, theirs) = answered(&mut stack, ours, &get_keep_alive("/5"));
    feed(&mut stack, at_second(6), &segment(0, theirs, ours, b""));
    assert_closed_at(35, &silence(&mut stack, Duration::from_secs(6)));
}

#[test]
fn a_peer_that_closes_in_turn_is_never_reset() {
    let (mut stack, ours) = connect();
    let mut sent = Sent::default();
    stack.handle_timeout(at_second(31), &mut Pattern, &mut sent);
    assert_eq!(sent.len(), 1);
    let answers = feed(&mut stack, at_second(31), &segment(FIN, 1000, ours + 1, b""));
    assert!(answers.iter().all(|segment| !segment.rst), "{answers:?}");
    assert!(silence(&mut stack, Duration::from_secs(31)).is_empty());
}

#[test]
fn a_peer_that_acknowledges_no_response_is_reset_after_20_s() {
    for request in [get("/5"), get_keep_alive("/5")] {
        let (mut stack, ours) = connect();
        feed(&mut stack, at_second(15), &segment(PSH, 1000, ours, &request));
        let heard = silence(&mut stack, Duration::from_secs(15));
        assert!(heard.last().is_some_and(|(_, segment)| segment.rst));
        assert_eq!(seconds(heard.last()), 35);
    }
}

#[test]
fn a_peer_that_acknowledges_no_fin_is_reset_after_20_s() {
    let (mut stack, ours) = connect();
    let (ours, theirs) = answered(&mut stack, ours, &get("/5"));
    feed(&mut stack, at_second(6), &segment(0, theirs, ours - 1, b""));
    let heard = silence(&mut stack, Duration::from_secs(6));
    assert!(heard.last().is_some_and(|(_, segment)| segment.rst));
    assert_eq!(seconds(heard.last()), 26);
}

#[test]
fn a_half_open_connection_is_reset_after_20_s() {
    let mut stack = Stack::new(at_second(1), 21, Spares::default());
    feed(&mut stack, at_second(1), &syn(999));
    let heard = silence(&mut stack, Duration::from_secs(1));
    assert!(heard.last().is_some_and(|(_, segment)| segment.rst));
    assert_eq!(seconds(heard.last()), 21);
}
