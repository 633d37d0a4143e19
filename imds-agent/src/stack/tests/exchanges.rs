//! Exchanges over a link without faults: which packets they take, and what they leave behind.

use smoltcp::{
    socket::tcp::State,
    wire::{IpAddress, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket},
};

use super::{
    super::*,
    link::{Faults, Link, drain},
    service::{Answered, get, get_keep_alive, patterned, responses},
};

#[test]
fn an_exchange_takes_three_inbound_packets() {
    let mut link = Link::new(1, Faults::NONE);
    let handle = link.connect();
    let response = link.exchange(handle, &get("/10"));
    assert_eq!(bodies(&response), [patterned(10)]);
    link.settle();
    let payloads: Vec<_> = link
        .seen
        .iter()
        .map(|packet| hop_limit_and_payload(packet).1)
        .collect();
    // SYN-ACK; the response, which acknowledges the request and carries our FIN; the acknowledgement of the guest's FIN.
    assert_eq!(payloads, [0, response.len(), 0]);
    assert!(
        link.run_until(|link| link.stack.is_idle()),
        "nothing is left behind"
    );
}

#[test]
fn a_request_may_come_one_byte_at_a_time() {
    let mut link = Link::new(2, Faults::NONE);
    let handle = link.connect();
    link.settle();
    for byte in get("/10") {
        link.socket(handle).send_slice(&[byte]).unwrap();
        link.settle();
    }
    let response = link.exchange(handle, b"");
    assert_eq!(bodies(&response), [patterned(10)]);
}

#[test]
fn requests_that_straddle_the_end_of_the_ring_are_answered() {
    let mut link = Link::new(3, Faults::NONE);
    let handle = link.connect();
    let mut requests: Vec<u8> = (0..400).flat_map(|_| get_keep_alive("/3")).collect();
    requests.extend(get("/3"));
    assert!(requests.len() > 2 * RECEIVE_BUFFER_BYTES);
    let response = link.exchange(handle, &requests);
    assert_eq!(bodies(&response), vec![patterned(3); 401]);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut link = Link::new(4, Faults::NONE);
    let handle = link.connect();
    let mut requests: Vec<u8> = (1..50)
        .flat_map(|number| get_keep_alive(&format!("/{number}")))
        .collect();
    requests.extend(get("/50"));
    let response = link.exchange(handle, &requests);
    assert_eq!(bodies(&response), (1..=50).map(patterned).collect::<Vec<_>>());
}

#[test]
fn a_response_may_be_larger_than_the_send_buffer() {
    let mut link = Link::new(5, Faults::NONE);
    let handle = link.connect();
    let response = link.exchange(handle, &get("/100000"));
    assert_eq!(bodies(&response), [patterned(100_000)]);
}

#[test]
fn a_guest_that_closes_its_half_gets_its_response() {
    let mut link = Link::new(6, Faults::NONE);
    let handle = link.connect();
    link.settle();
    let socket = link.socket(handle);
    socket.send_slice(&get_keep_alive("/5")).unwrap();
    socket.close();
    let mut response = Vec::new();
    let is_over = link.run_until(|link| {
        drain(link.socket(handle), &mut response);
        link.stack.is_idle()
    });
    assert!(is_over);
    assert_eq!(bodies(&response), [patterned(5)]);
}

#[test]
fn only_packets_with_bytes_of_a_token_response_have_its_hop_limit() {
    for service in [IMDS_IPV4.into(), IMDS_IPV6.into()] {
        hop_limits_from(service);
    }
}

fn hop_limits_from(service: IpAddress) {
    let mut link = Link::new(7, Faults::NONE);
    link.service = service;
    let handle = link.connect();
    let requests = [
        get_keep_alive("/20"),
        get_keep_alive("/token/3000"),
        get_keep_alive("/30"),
        get("/40"),
    ]
    .concat();
    let response = link.exchange(handle, &requests);
    assert_eq!(
        bodies(&response),
        [patterned(20), patterned(3000), patterned(30), patterned(40)]
    );
    link.settle();
    for packet in &link.seen {
        let (hop_limit, payload) = hop_limit_and_payload(packet);
        let is_token = payload > 0
            && packet
                .windows(64)
                .any(|window| patterned(3000).windows(64).any(|p| p == window));
        assert_eq!(
            hop_limit,
            if is_token { 1 } else { 64 },
            "{payload} bytes of payload"
        );
    }
    assert_eq!(
        link.seen
            .iter()
            .filter(|packet| hop_limit_and_payload(packet).0 == 1)
            .count(),
        3
    );
}

#[test]
fn the_connection_idle_for_longest_makes_room() {
    let mut link = Link::new(8, Faults::NONE);
    let handles: Vec<_> = (0..=CONNECTIONS_MAX)
        .map(|_| {
            let handle = link.connect();
            link.settle();
            link.now += Duration::from_millis(10);
            handle
        })
        .collect();
    assert_eq!(link.stack.connection_count(), CONNECTIONS_MAX);
    assert_eq!(link.socket(handles[0]).state(), State::Closed, "reset");
    let response = link.exchange(*handles.last().unwrap(), &get("/7"));
    assert_eq!(bodies(&response), [patterned(7)]);
    let response = link.exchange(handles[1], &get("/7"));
    assert_eq!(bodies(&response), [patterned(7)]);
}

/// More connections at once than there may be: all are served, none is reset, and time stands nearly still.
#[test]
fn a_crowd_waits_for_its_turn() {
    let mut link = Link::new(14, Faults::NONE);
    let begin = link.now;
    let handles: Vec<_> = (0..200).map(|_| link.connect()).collect();
    let mut responses = vec![Vec::new(); handles.len()];
    let mut asked = vec![false; handles.len()];
    let is_over = link.run_until(|link| {
        let mut is_over = true;
        for (index, handle) in handles.iter().enumerate() {
            let socket = link.socket(*handle);
            if socket.may_send() && !asked[index] {
                socket.send_slice(&get("/9")).unwrap();
                asked[index] = true;
            }
            drain(socket, &mut responses[index]);
            if socket.state() == State::CloseWait {
                socket.close();
            }
            is_over &= socket.state() == State::Closed;
        }
        is_over
    });
    assert!(is_over);
    assert!(
        responses
            .iter()
            .all(|response| bodies(response) == [patterned(9)])
    );
    let took = link.now - begin;
    assert!(
        took < Duration::from_millis(100),
        "{took:?}: somebody's SYN was dropped"
    );
}

#[test]
fn a_silent_peer_is_forgotten() {
    let mut link = Link::new(9, Faults::NONE);
    let handle = link.connect();
    link.settle();
    assert_eq!(link.stack.connection_count(), 1);
    link.sockets.remove(handle);
    // Without an address the guest answers nothing, not even with a reset.
    link.guest.update_ip_addrs(|addresses| addresses.clear());
    assert!(link.run_until(|link| link.stack.is_idle()), "it waits for ever");
}

/// Hop limit and payload length of an inbound packet.
fn hop_limit_and_payload(packet: &[u8]) -> (u8, usize) {
    let payload = |segment| TcpPacket::new_checked(segment).unwrap().payload().len();
    match IpVersion::of_packet(packet).unwrap() {
        IpVersion::Ipv4 => {
            let packet = Ipv4Packet::new_checked(packet).unwrap();
            assert!(packet.verify_checksum());
            (packet.hop_limit(), payload(packet.payload()))
        }
        IpVersion::Ipv6 => {
            let packet = Ipv6Packet::new_checked(packet).unwrap();
            (packet.hop_limit(), payload(packet.payload()))
        }
    }
}

/// The bodies of the responses in `stream`, all of which must be whole.
fn bodies(stream: &[u8]) -> Vec<Vec<u8>> {
    let (responses, rest) = responses(stream);
    assert_eq!(rest, b"");
    responses
        .into_iter()
        .map(|Answered { status, body, length }| {
            assert_eq!((status, length), (200, body.len()));
            body
        })
        .collect()
}
