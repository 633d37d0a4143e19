//! Single segments, and what is none.

use imds_tests::segment::{ACK, FIN, PSH, Segment as Made};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use smoltcp::wire::IpEndpoint;

use super::{
    super::*,
    GUEST, Sent, at_second,
    service::{Pattern, get},
};

/// Feeds one packet and returns the segments that come back.
pub fn feed(stack: &mut Stack, now: Now, packet: &[u8]) -> Vec<Segment> {
    let mut sent = Sent::default();
    stack.handle_packet(now, packet, &mut Pattern, &mut sent);
    stack.flush(now, &mut sent);
    sent.iter()
        .map(|packet| Segment::parse(packet).unwrap())
        .collect()
}

/// A SYN of the guest's port 50000.
pub fn syn(sequence: u32) -> Vec<u8> {
    Made {
        sequence,
        ..Made::default()
    }
    .ipv4()
}

/// Any other segment of that port.
pub fn segment(flags: u8, sequence: u32, acknowledges: u32, payload: &[u8]) -> Vec<u8> {
    Made {
        flags: ACK | flags,
        sequence,
        acknowledges,
        payload,
        ..Made::default()
    }
    .ipv4()
}

/// Our sequence number behind the last of `answers`.
pub fn next(answers: &[Segment]) -> u32 {
    answers.last().expect("an answer").end.0.cast_unsigned()
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut stack = Stack::new(at_second(1), 11, Spares::default());
    let answer = feed(&mut stack, at_second(1), &segment(PSH, 1000, 5, b"GET"));
    assert!(answer[0].rst);
    assert!(stack.is_idle());
}

#[test]
fn a_syn_right_behind_the_last_acknowledgement_of_its_ports_begins_a_connection() {
    let (now, mut stack) = (at_second(1), Stack::new(at_second(1), 14, Spares::default()));
    let ours = feed(&mut stack, now, &syn(999))[0].end.0.cast_unsigned();
    let end = feed(&mut stack, now, &segment(FIN, 1000, ours, b""));
    assert!(end[0].fin);
    let ours = end[0].end.0.cast_unsigned();
    // Both are in one batch.
    let mut sent = Sent::default();
    stack.handle_packet(now, &segment(ACK, 1001, ours, b""), &mut Pattern, &mut sent);
    let answer = feed(&mut stack, now, &syn(500_000));
    assert!(sent.is_empty());
    assert!(answer[0].syn && !answer[0].rst, "{answer:?}");
}

#[test]
fn partial_checksums_are_accepted() {
    let mut stack = Stack::new(at_second(1), 12, Spares::default());
    let mut packet = syn(999);
    packet[20 + 16] ^= 0xff;
    assert!(feed(&mut stack, at_second(1), &packet)[0].syn);
}

/// Each is dropped without a word, and counted.
#[test]
fn what_is_no_whole_segment_is_counted() {
    let with = |change: fn(&mut Vec<u8>)| {
        let mut packet = syn(999);
        change(&mut packet);
        // Of the header, as it is now.
        packet[10..12].fill(0);
        let sum: u32 = packet[..20]
            .chunks(2)
            .map(|two| u32::from(two[0]) << 8 | u32::from(two[1]))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        packet
    };
    let with_options = |options: &[u8]| {
        Made {
            options,
            ..Made::default()
        }
        .ipv4()
    };
    let mut wrong_checksum = syn(999);
    wrong_checksum[10] ^= 0xff;
    let none = [
        Vec::new(),
        wrong_checksum,
        with(|packet| packet[9] = 17),
        with(|packet| packet[12..16].copy_from_slice(&[224, 0, 0, 1])),
        with(|packet| packet[12..16].fill(0)),
        with(|packet| packet[20..22].fill(0)),
        with(|packet| packet[20 + 12] = 0x40),
        with(|packet| packet[20 + 13] |= FIN),
        with(|packet| packet[3] += 1),
        with_options(&[2, 8, 5, 0xb4]),
        with_options(&[1, 1, 8, 10, 0, 0, 0, 1]),
    ];
    let mut stack = Stack::new(at_second(1), 13, Spares::default());
    for packet in &none {
        assert_eq!(feed(&mut stack, at_second(1), packet), [], "{packet:?}");
    }
    assert_eq!(stack.take_refused().malformed, none.len() as u64);
    assert!(stack.is_idle());
    let stamped = with_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0]);
    for whole in [with(|_| ()), stamped, with_options(&[3, 3, 7, 0, 9, 9, 9, 9])] {
        let mut stack = Stack::new(at_second(1), 13, Spares::default());
        assert!(feed(&mut stack, at_second(1), &whole)[0].syn, "{whole:?}");
        assert_eq!(stack.take_refused(), Refused::default());
    }
}

/// How many bytes the segments of a response carry to a guest with these options in its SYN.
fn segment_bytes(options: &[u8], is_ipv6: bool) -> Vec<usize> {
    let ip = |made: Made<'_>| match is_ipv6 {
        false => made.ipv4(),
        true => {
            let mut packet = Vec::new();
            made.write_ipv6(&mut packet);
            packet
        }
    };
    let mut stack = Stack::new(at_second(1), 15, Spares::default());
    let syn = Made {
        options,
        ..Made::default()
    };
    let ours = next(&feed(&mut stack, at_second(1), &ip(syn)));
    let asks = Made {
        sequence: 1,
        acknowledges: ours,
        flags: PSH | ACK,
        payload: &get("/5000"),
        ..Made::default()
    };
    let answers = feed(&mut stack, at_second(1), &ip(asks));
    let bytes = answers
        .iter()
        .map(|segment| segment.end - segment.sequence - usize::from(segment.fin));
    bytes.collect()
}

#[test]
fn a_guest_gets_segments_as_long_as_it_asks_for() {
    for is_ipv6 in [false, true] {
        assert_eq!(segment_bytes(&[2, 4, 0x04, 0xc4], is_ipv6)[..3], [1220; 3]);
        assert_eq!(segment_bytes(&[2, 4, 2, 25, 1, 1, 1, 1], is_ipv6)[..3], [537; 3]);
        assert_eq!(segment_bytes(&[], is_ipv6)[..3], [536; 3]);
    }
}

/// Whatever stands around the option, and however often it stands there.
#[test]
fn no_guest_gets_segments_of_less_than_536_bytes() {
    let options: [&[u8]; 7] = [
        &[2, 4, 0, 0],
        &[2, 4, 0, 1],
        &[2, 4, 0, 48],
        &[2, 4, 2, 23],
        &[1, 2, 4, 0, 48, 3, 3, 7],
        &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 2, 4, 0, 64, 0, 0],
        &[2, 4, 0x05, 0xb4, 2, 4, 0, 48],
    ];
    for options in options {
        for is_ipv6 in [false, true] {
            let bytes = segment_bytes(options, is_ipv6);
            let (last, before) = bytes.split_last().unwrap();
            assert!(before.iter().all(|bytes| *bytes == 536), "{options:?}: {bytes:?}");
            assert!(before.len() > 8 && *last > 0, "{options:?}: {bytes:?}");
        }
    }
}

#[test]
fn garbage_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(13);
    let mut stack = Stack::new(at_second(1), 13, Spares::default());
    for _ in 0..20_000 {
        let made = Made {
            sequence: rng.random(),
            payload: b"hello",
            ..Made::default()
        };
        let mut packet = made.ipv4();
        for _ in 0..rng.random_range(1..8) {
            let index = rng.random_range(0..packet.len());
            packet[index] = rng.random();
        }
        packet.truncate(rng.random_range(0..=packet.len()));
        let mut sent = Sent::default();
        stack.handle_packet(at_second(1), &packet, &mut Pattern, &mut sent);
        stack.flush(at_second(1), &mut sent);
        assert!(stack.connection_count() <= CONNECTIONS_MAX);
    }
}

#[test]
fn segments_know_both_ends() {
    let parsed = Segment::parse(&syn(1)).unwrap();
    assert_eq!(parsed.peer.remote, IpEndpoint::new(GUEST.into(), 50_000));
    assert_eq!(parsed.peer.local, IpEndpoint::new(IMDS_IPV4.into(), 80));
    assert!(parsed.opens());
}
