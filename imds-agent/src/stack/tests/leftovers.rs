//! What a guest left behind that was reset or rolled back, and its next SYN from the same ports.

use imds_tests::segment::{FIN, PSH, RST, Segment as Made};

use super::{
    super::*,
    Sent, at, at_second,
    segments::{feed, next, segment, syn},
    service::{Pattern, get, get_keep_alive, patterned, responses},
};

/// A stack with a connection of port 50000 whose guest sent a SYN, sequence number 999, and then `sends`: each with its
/// flags and the bytes it carries, and each acknowledging all that came before. They are sent at the first second.
fn left_behind(sends: &[(u8, &[u8])]) -> Stack {
    let mut stack = Stack::new(at_second(1), 30, Spares::default());
    let mut ours = next(&feed(&mut stack, at_second(1), &syn(999)));
    let mut theirs = 1000;
    for (flags, payload) in sends {
        let answers = feed(&mut stack, at_second(1), &segment(*flags, theirs, ours, payload));
        theirs += u32::try_from(payload.len()).unwrap() + u32::from(flags & FIN);
        if !answers.is_empty() {
            ours = next(&answers);
        }
    }
    assert_eq!(stack.connection_count(), 1);
    stack
}

/// Checks that a SYN with this sequence number opens a connection at once, on which nothing is left of the one before.
#[track_caller]
fn assert_opens(stack: &mut Stack, now: Now, sequence: u32) {
    let answers = feed(stack, now, &syn(sequence));
    let [syn_ack] = &*answers else {
        panic!("{answers:?}")
    };
    let theirs = sequence.wrapping_add(1);
    assert!(syn_ack.syn && !syn_ack.rst, "{answers:?}");
    assert_eq!(syn_ack.acknowledges.unwrap().0.cast_unsigned(), theirs);
    assert_eq!(stack.connection_count(), 1);
    assert!(stack.time_waits.is_empty());

    let mut sent = Sent::default();
    let asks = segment(PSH, theirs, next(&answers), &get("/7"));
    stack.handle_packet(now, &asks, &mut Pattern, &mut sent);
    stack.flush(now, &mut sent);
    let [response] = &*sent else {
        panic!("{} packets", sent.len())
    };
    let (responses, rest) = responses(&response[40..]);
    assert_eq!((responses.len(), rest), (1, &b""[..]));
    assert_eq!((responses[0].status, &responses[0].body), (200, &patterned(7)));
}

#[test]
fn a_syn_on_the_ports_of_a_connection_opens_another() {
    let (kept, last) = (get_keep_alive("/5"), get("/5"));
    let long = get("/60000");
    let leftovers: [&[(u8, &[u8])]; 8] = [
        // Half-open.
        &[],
        // Established: fresh, within a request, kept alive, with half a response.
        &[(0, b"")],
        &[(PSH, b"GET /latest/ HTTP/1.1\r\nX-Aws-Ec2-")],
        &[(PSH, &kept), (0, b"")],
        &[(PSH, &long)],
        // FIN-WAIT-1, FIN-WAIT-2.
        &[(PSH, &last)],
        &[(PSH, &last), (0, b"")],
        // LAST-ACK.
        &[(FIN, b"")],
    ];
    for leftover in leftovers {
        for sequence in [0, 5, 500_000, u32::MAX] {
            let mut stack = left_behind(leftover);
            assert_opens(&mut stack, at_second(1), sequence);
        }
    }
}

#[test]
fn a_connection_is_not_replaced_by_a_copy_of_its_own_syn() {
    let kept = get_keep_alive("/5");
    for leftover in [&[][..], &[(0, &b""[..])], &[(PSH, &kept), (0, b"")]] {
        let mut stack = left_behind(leftover);
        let soon = at(Duration::from_millis(1900));
        assert!(feed(&mut stack, soon, &syn(999)).is_empty());
        assert_eq!(stack.connection_count(), 1);
        // Nor is the copy a sign of life.
        assert_eq!(stack.connections.idle_at(), Some(Duration::from_millis(1100)));
    }
}

/// A small TCP may begin with the same number after every reset.
#[test]
fn the_same_syn_opens_another_when_the_connection_was_silent() {
    let mut stack = left_behind(&[(PSH, b"GET /latest/ HTTP/1.1\r\nX-Aws-Ec2-")]);
    assert!(feed(&mut stack, at(Duration::from_millis(1500)), &syn(999)).is_empty());
    assert_opens(&mut stack, at(Duration::from_millis(2500)), 999);
}

#[test]
fn a_repeated_syn_leaves_a_half_open_connection_as_it_is() {
    let mut stack = Stack::new(at_second(1), 31, Spares::default());
    let ours = next(&feed(&mut stack, at_second(1), &syn(999)));
    feed(&mut stack, at_second(8), &syn(999));
    let answers = feed(&mut stack, at_second(8), &segment(PSH, 1000, ours, &get("/5")));
    assert!(
        answers.iter().any(|segment| segment.fin && !segment.rst),
        "{answers:?}"
    );
}

#[test]
fn what_a_replaced_connection_was_made_of_is_used_again() {
    let spares = Spares::default();
    let mut stack = Stack::new(at_second(1), 32, spares.clone());
    for sequence in [1, 100_000, 200_000] {
        feed(&mut stack, at_second(1), &syn(sequence));
        assert_eq!(stack.connection_count(), 1);
        assert_eq!(format!("{spares:?}"), "Spares(0)");
    }
    let reset = Made {
        sequence: 200_001,
        flags: RST,
        ..Made::default()
    };
    feed(&mut stack, at_second(1), &reset.ipv4());
    assert!(stack.is_idle());
    assert_eq!(format!("{spares:?}"), "Spares(1)");
}

/// All places are taken by what the guest left behind, and it comes back to one of them.
#[test]
fn a_replaced_connection_makes_room_for_its_own_successor_only() {
    let mut stack = left_behind(&[]);
    for port in 0..u16::try_from(CONNECTIONS_MAX - 1).unwrap() {
        let other = Made {
            port: 1024 + port,
            ..Made::default()
        };
        feed(&mut stack, at_second(1), &other.ipv4());
    }
    assert_eq!(stack.connection_count(), CONNECTIONS_MAX);
    let answers = feed(&mut stack, at_second(1), &syn(500_000));
    assert!(answers.len() == 1 && answers[0].syn, "{answers:?}");
    assert_eq!(stack.connection_count(), CONNECTIONS_MAX);
    assert!(stack.backlog.is_empty());
}

#[test]
fn a_token_response_that_a_replaced_connection_never_delivered_is_told() {
    let token = get("/token/56");
    let mut stack = left_behind(&[(PSH, &token)]);
    feed(&mut stack, at_second(1), &syn(400_000));
    assert_eq!(
        stack.poll_undelivered(),
        None,
        "there was no time to acknowledge it"
    );

    let mut stack = left_behind(&[(PSH, &token)]);
    feed(&mut stack, at_second(3), &syn(400_000));
    let undelivered = stack.poll_undelivered().unwrap();
    assert_eq!(
        (undelivered.hop_limit, undelivered.sign),
        (1, Sign::Unacknowledged)
    );
    assert_eq!(stack.poll_undelivered(), None);
}
