//! TIME-WAIT, segment by segment.

use imds_tests::segment::{FIN, PSH, RST, Segment as Made};
use smoltcp::wire::TcpSeqNumber;

use super::{
    super::*,
    Sent, at_second,
    segments::{feed, segment, syn},
    service::{Pattern, get},
};

/// Brings a stack into TIME-WAIT by an exchange from port 50000. Returns it with our and the guest's next sequence number.
fn time_wait(now: Now) -> (Stack, u32, u32) {
    let mut stack = Stack::new(now, 10, Spares::default());
    let syn_ack = feed(&mut stack, now, &syn(999));
    let ours = number(syn_ack[0].end);
    let request = get("/5");
    let response = feed(&mut stack, now, &segment(PSH, 1000, ours, &request));
    assert!(response[0].fin);
    let ours = number(response[0].end);
    let theirs = 1000 + u32::try_from(request.len()).unwrap();
    let last = feed(&mut stack, now, &segment(FIN, theirs, ours, b""));
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].acknowledges.map(number), Some(theirs + 1));
    assert_eq!(stack.connection_count(), 0, "the socket is gone");
    (stack, ours, theirs + 1)
}

fn number(sequence: TcpSeqNumber) -> u32 {
    sequence.0.cast_unsigned()
}

#[test]
fn time_wait_acknowledges_a_repeated_fin() {
    let (mut stack, ours, theirs) = time_wait(at_second(1));
    let again = feed(&mut stack, at_second(2), &segment(FIN, theirs - 1, ours, b""));
    assert_eq!(again.len(), 1);
    assert_eq!(number(again[0].sequence), ours);
    assert_eq!(again[0].acknowledges.map(number), Some(theirs));
    assert!(!again[0].rst);
    stack.handle_timeout(at_second(12), &mut Pattern, &mut Sent::default());
    assert!(stack.is_idle());
}

#[test]
fn time_wait_lets_a_new_connection_of_the_same_ports_in() {
    let (mut stack, _, theirs) = time_wait(at_second(1));
    let syn_ack = feed(&mut stack, at_second(2), &syn(theirs + 5000));
    assert!(syn_ack[0].syn && syn_ack[0].acknowledges.is_some());
    assert_eq!(stack.connection_count(), 1);
}

#[test]
fn time_wait_takes_no_old_syn_for_a_new_connection() {
    let (mut stack, ours, _) = time_wait(at_second(1));
    let answer = feed(&mut stack, at_second(2), &syn(999));
    assert_eq!(number(answer[0].sequence), ours);
    assert!(!answer[0].syn);
    assert_eq!(stack.connection_count(), 0);
}

/// A guest that was reset does not know the connection that our acknowledgement is of, and says so.
#[test]
fn time_wait_ends_when_the_peer_knows_nothing_of_it() {
    let (mut stack, ..) = time_wait(at_second(1));
    let answer = feed(&mut stack, at_second(2), &syn(999));
    let expected = answer[0].acknowledges.map(number).unwrap();
    assert!(feed(&mut stack, at_second(2), &reset(expected)).is_empty());
    assert!(stack.is_idle());
    let syn_ack = feed(&mut stack, at_second(2), &syn(999));
    assert!(syn_ack[0].syn && syn_ack[0].acknowledges.is_some());
}

#[test]
fn time_wait_ignores_a_reset_beside_what_it_expects() {
    for beside in [-1, 1, 5000] {
        let (mut stack, _, theirs) = time_wait(at_second(1));
        let reset = reset(theirs.wrapping_add_signed(beside));
        assert!(feed(&mut stack, at_second(2), &reset).is_empty());
        assert!(!stack.is_idle());
    }
}

/// What a TCP without the connection answers an acknowledgement with (RFC 9293, section 3.10.7.1).
fn reset(sequence: u32) -> Vec<u8> {
    Made {
        sequence,
        flags: RST,
        ..Made::default()
    }
    .ipv4()
}
