//! The stack against a client in the same process, joined by a seeded network that loses, duplicates and reorders.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{Socket, SocketBuffer, State},
    wire::{
        IpAddress, IpEndpoint, IpProtocol, IpRepr, IpVersion, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket,
        TcpRepr, TcpSeqNumber,
    },
};

use super::{device::checksums, *};
use crate::http::{Request, Response};

const GUEST: Ipv4Address = Ipv4Address::new(10, 0, 0, 2);
const GUEST_IPV6: Ipv6Address = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

/// Answers `/<n>` with n patterned bytes, and `/token/<n>` so with hop limit 1.
struct Pattern;

impl Service for Pattern {
    fn respond(&mut self, _now: Now, request: &Request<'_>, response: &mut Response) {
        let number = request
            .target
            .trim_start_matches("/token")
            .trim_start_matches('/');
        response
            .body
            .extend((0..number.parse::<usize>().unwrap()).map(pattern));
        if request.target.starts_with("/token") {
            response.hop_limit = Some(1);
        }
    }
}

fn pattern(index: usize) -> u8 {
    b'a' + u8::try_from(index % 23).unwrap()
}

/// Chances in percent, and the longest delay.
#[derive(Clone, Copy, Default)]
struct Faults {
    lost: u32,
    duplicated: u32,
    delay_max: Duration,
}

/// Packets under way to one side, by the time of their arrival.
#[derive(Default)]
struct Wire {
    packets: BTreeMap<(Duration, u64), Vec<u8>>,
    sent: u64,
}

impl Wire {
    fn send(&mut self, now: Duration, packet: &[u8], faults: Faults, rng: &mut StdRng) {
        if rng.random_range(0..100) < faults.lost {
            return;
        }
        let copies = if rng.random_range(0..100) < faults.duplicated {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let delay = faults.delay_max.mul_f64(rng.random());
            self.sent += 1;
            self.packets.insert((now + delay, self.sent), packet.to_vec());
        }
    }

    fn receive(&mut self, now: Duration) -> Option<Vec<u8>> {
        let (&(due, number), _) = self.packets.first_key_value()?;
        if due <= now {
            self.packets.remove(&(due, number))
        } else {
            None
        }
    }

    fn next(&self) -> Option<Duration> {
        self.packets.first_key_value().map(|((due, _), _)| *due)
    }
}

#[derive(Default)]
struct Sent(Vec<Vec<u8>>);

impl Transmit for Sent {
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

/// Both sides and what is between them.
struct Simulation {
    now: Duration,
    rng: StdRng,
    faults: Faults,
    stack: Stack,
    guest: Interface,
    sockets: SocketSet<'static>,
    /// The address that the guest connects to: IPv4's unless a test says otherwise.
    service: IpAddress,
    outbound: Wire,
    inbound: Wire,
    /// Every inbound packet, before the network had its way with it.
    seen: Vec<Vec<u8>>,
    next_port: u16,
}

impl Simulation {
    fn new(seed: u64, faults: Faults) -> Self {
        let now = Now {
            monotonic: Duration::from_secs(1),
            unix: Duration::from_secs(1_700_000_000),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut guest = Interface::new(config, &mut PacketDevice::new(None, &mut Nowhere), instant(now));
        guest.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap();
            addresses.push(IpCidr::new(GUEST_IPV6.into(), 64)).unwrap();
        });
        guest.routes_mut().add_default_ipv4_route(GUEST).unwrap();
        guest.routes_mut().add_default_ipv6_route(GUEST_IPV6).unwrap();
        Self {
            now: now.monotonic,
            rng: StdRng::seed_from_u64(seed),
            faults,
            stack: Stack::new(now, seed, Spares::default()),
            guest,
            sockets: SocketSet::new(Vec::new()),
            service: IMDS_IPV4.into(),
            outbound: Wire::default(),
            inbound: Wire::default(),
            seen: Vec::new(),
            next_port: 40_000,
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic: self.now,
            unix: Duration::from_secs(1_700_000_000) + self.now,
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let port = self.next_port;
        self.next_port += 1;
        self.connect_from(port)
    }

    fn connect_from(&mut self, port: u16) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 64 * 1024]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket
            .connect(self.guest.context(), (self.service, 80), port)
            .unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets both sides act at this instant until neither has anything more to say.
    fn settle(&mut self) {
        loop {
            let mut guest_sent = Sent::default();
            let mut device = PacketDevice::new(None, &mut guest_sent);
            self.guest
                .poll(instant(self.now()), &mut device, &mut self.sockets);
            while let Some(packet) = self.inbound.receive(self.now) {
                let mut device = PacketDevice::new(Some(&packet), &mut guest_sent);
                self.guest
                    .poll(instant(self.now()), &mut device, &mut self.sockets);
            }
            for packet in guest_sent.0 {
                self.outbound.send(self.now, &packet, self.faults, &mut self.rng);
            }

            let mut sent = Sent::default();
            let now = self.now();
            let mut is_quiet = true;
            while let Some(packet) = self.outbound.receive(self.now) {
                self.stack.handle_packet(now, &packet, &mut Pattern, &mut sent);
                is_quiet = false;
            }
            self.stack.flush(now, &mut sent);
            if self.stack.poll_timeout().is_some_and(|due| due <= self.now) {
                self.stack.handle_timeout(now, &mut Pattern, &mut sent);
            }
            is_quiet &= sent.0.is_empty();
            for packet in sent.0 {
                self.inbound.send(self.now, &packet, self.faults, &mut self.rng);
                self.seen.push(packet);
            }
            if is_quiet && self.inbound.next().is_none_or(|due| due > self.now) {
                return;
            }
        }
    }

    /// Goes on in time until `done`, at most two simulated minutes.
    fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = self.now + Duration::from_secs(120);
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let guest = self
                .guest
                .poll_at(instant(self.now()), &self.sockets)
                .map(duration);
            let stack = self.stack.poll_timeout();
            let next = [guest, stack, self.outbound.next(), self.inbound.next()]
                .into_iter()
                .flatten()
                .min();
            match next {
                Some(next) if next < deadline => self.now = next.max(self.now + Duration::from_micros(100)),
                _ => return false,
            }
        }
    }

    /// Sends `request` and returns everything that comes back until the stack closes.
    fn exchange(&mut self, handle: SocketHandle, request: &[u8]) -> Vec<u8> {
        let mut left = request;
        let mut response = Vec::new();
        let is_over = self.run_until(|simulation| {
            let socket = simulation.socket(handle);
            if socket.may_send() && !left.is_empty() {
                left = &left[socket.send_slice(left).unwrap()..];
            }
            drain(socket, &mut response);
            let is_over =
                matches!(socket.state(), State::CloseWait | State::Closed) && socket.recv_queue() == 0;
            if is_over && socket.state() == State::CloseWait {
                socket.close();
            }
            is_over
        });
        assert!(
            is_over,
            "no end of the exchange; so far {}",
            String::from_utf8_lossy(&response)
        );
        response
    }
}

fn drain(socket: &mut Socket<'_>, into: &mut Vec<u8>) {
    while socket.can_recv() {
        socket
            .recv(|bytes| {
                into.extend_from_slice(bytes);
                (bytes.len(), ())
            })
            .unwrap();
    }
}

/// Splits `stream` into the bodies of the responses in it, all of which must be whole.
fn bodies(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut bodies = Vec::new();
    while !stream.is_empty() {
        let end = stream
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a whole head")
            + 4;
        let head = std::str::from_utf8(&stream[..end]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))
            .unwrap();
        let body_end = end + length.parse::<usize>().unwrap();
        bodies.push(stream[end..body_end].to_vec());
        stream = &stream[body_end..];
    }
    bodies
}

fn patterned(length: usize) -> Vec<u8> {
    (0..length).map(pattern).collect()
}

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").into_bytes()
}

fn get_keep_alive(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nConnection: keep-alive\r\n\r\n").into_bytes()
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

#[test]
fn an_exchange_takes_three_inbound_packets() {
    let mut simulation = Simulation::new(1, Faults::default());
    let handle = simulation.connect();
    let response = simulation.exchange(handle, &get("/10"));
    assert_eq!(bodies(&response), [patterned(10)]);
    simulation.settle();
    let payloads: Vec<_> = simulation
        .seen
        .iter()
        .map(|packet| hop_limit_and_payload(packet).1)
        .collect();
    // SYN-ACK; the response, which acknowledges the request and carries our FIN; the acknowledgement of the guest's FIN.
    assert_eq!(payloads, [0, response.len(), 0]);
    assert!(
        simulation.run_until(|simulation| simulation.stack.is_idle()),
        "nothing is left behind"
    );
}

#[test]
fn a_request_may_come_one_byte_at_a_time() {
    let mut simulation = Simulation::new(2, Faults::default());
    let handle = simulation.connect();
    simulation.settle();
    for byte in get("/10") {
        simulation.socket(handle).send_slice(&[byte]).unwrap();
        simulation.settle();
    }
    let response = simulation.exchange(handle, b"");
    assert_eq!(bodies(&response), [patterned(10)]);
}

#[test]
fn requests_that_straddle_the_end_of_the_ring_are_answered() {
    let mut simulation = Simulation::new(3, Faults::default());
    let handle = simulation.connect();
    let mut requests: Vec<u8> = (0..400).flat_map(|_| get_keep_alive("/3")).collect();
    requests.extend(get("/3"));
    assert!(requests.len() > 2 * RECEIVE_BUFFER_BYTES);
    let response = simulation.exchange(handle, &requests);
    assert_eq!(bodies(&response), vec![patterned(3); 401]);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let mut simulation = Simulation::new(4, Faults::default());
    let handle = simulation.connect();
    let mut requests: Vec<u8> = (1..50)
        .flat_map(|number| get_keep_alive(&format!("/{number}")))
        .collect();
    requests.extend(get("/50"));
    let response = simulation.exchange(handle, &requests);
    assert_eq!(bodies(&response), (1..=50).map(patterned).collect::<Vec<_>>());
}

#[test]
fn a_response_may_be_larger_than_the_send_buffer() {
    let mut simulation = Simulation::new(5, Faults::default());
    let handle = simulation.connect();
    let response = simulation.exchange(handle, &get("/100000"));
    assert_eq!(bodies(&response), [patterned(100_000)]);
}

#[test]
fn a_guest_that_closes_its_half_gets_its_response() {
    let mut simulation = Simulation::new(6, Faults::default());
    let handle = simulation.connect();
    simulation.settle();
    let socket = simulation.socket(handle);
    socket.send_slice(&get_keep_alive("/5")).unwrap();
    socket.close();
    let mut response = Vec::new();
    let is_over = simulation.run_until(|simulation| {
        drain(simulation.socket(handle), &mut response);
        simulation.stack.is_idle()
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
    let mut simulation = Simulation::new(7, Faults::default());
    simulation.service = service;
    let handle = simulation.connect();
    let requests = [
        get_keep_alive("/20"),
        get_keep_alive("/token/3000"),
        get_keep_alive("/30"),
        get("/40"),
    ]
    .concat();
    let response = simulation.exchange(handle, &requests);
    assert_eq!(
        bodies(&response),
        [patterned(20), patterned(3000), patterned(30), patterned(40)]
    );
    simulation.settle();
    for packet in &simulation.seen {
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
        simulation
            .seen
            .iter()
            .filter(|packet| hop_limit_and_payload(packet).0 == 1)
            .count(),
        3
    );
}

#[test]
fn the_connection_idle_for_longest_makes_room() {
    let mut simulation = Simulation::new(8, Faults::default());
    let handles: Vec<_> = (0..=CONNECTIONS_MAX)
        .map(|_| {
            let handle = simulation.connect();
            simulation.settle();
            simulation.now += Duration::from_millis(10);
            handle
        })
        .collect();
    assert_eq!(simulation.stack.connection_count(), CONNECTIONS_MAX);
    assert_eq!(simulation.socket(handles[0]).state(), State::Closed, "reset");
    let response = simulation.exchange(*handles.last().unwrap(), &get("/7"));
    assert_eq!(bodies(&response), [patterned(7)]);
    let response = simulation.exchange(handles[1], &get("/7"));
    assert_eq!(bodies(&response), [patterned(7)]);
}

/// More connections at once than there may be: all are served, none is reset, and time stands nearly still.
#[test]
fn a_crowd_waits_for_its_turn() {
    let mut simulation = Simulation::new(14, Faults::default());
    let begin = simulation.now;
    let handles: Vec<_> = (0..200).map(|_| simulation.connect()).collect();
    let mut responses = vec![Vec::new(); handles.len()];
    let mut asked = vec![false; handles.len()];
    let is_over = simulation.run_until(|simulation| {
        let mut is_over = true;
        for (index, handle) in handles.iter().enumerate() {
            let socket = simulation.socket(*handle);
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
    let took = simulation.now - begin;
    assert!(
        took < Duration::from_millis(100),
        "{took:?}: somebody's SYN was dropped"
    );
}

#[test]
fn a_silent_peer_is_forgotten() {
    let mut simulation = Simulation::new(9, Faults::default());
    let handle = simulation.connect();
    simulation.settle();
    assert_eq!(simulation.stack.connection_count(), 1);
    simulation.sockets.remove(handle);
    // Without an address the guest answers nothing, not even with a reset.
    simulation.guest.update_ip_addrs(|addresses| addresses.clear());
    assert!(
        simulation.run_until(|simulation| simulation.stack.is_idle()),
        "it waits for ever"
    );
}

/// A segment of the guest's port 50000, made by hand.
fn segment(control: TcpControl, sequence: u32, acknowledges: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let tcp = TcpRepr {
        src_port: 50_000,
        dst_port: 80,
        control,
        seq_number: TcpSeqNumber(sequence.cast_signed()),
        ack_number: acknowledges.map(|number| TcpSeqNumber(number.cast_signed())),
        window_len: 30_000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ip = IpRepr::new(
        GUEST.into(),
        IMDS_IPV4.into(),
        IpProtocol::Tcp,
        tcp.buffer_len(),
        64,
    );
    let mut packet = vec![0; ip.buffer_len()];
    ip.emit(&mut packet[..], &checksums());
    let mut segment = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
    tcp.emit(&mut segment, &GUEST.into(), &IMDS_IPV4.into(), &checksums());
    packet
}

/// Feeds one packet and returns the segments that come back.
fn feed(stack: &mut Stack, now: Now, packet: &[u8]) -> Vec<Segment> {
    let mut sent = Sent::default();
    stack.handle_packet(now, packet, &mut Pattern, &mut sent);
    stack.flush(now, &mut sent);
    sent.0
        .iter()
        .map(|packet| Segment::parse(packet).unwrap())
        .collect()
}

/// Brings a stack into TIME-WAIT by an exchange from port 50000. Returns it with our and the guest's next sequence number.
fn time_wait(now: Now) -> (Stack, u32, u32) {
    let mut stack = Stack::new(now, 10, Spares::default());
    let syn_ack = feed(&mut stack, now, &segment(TcpControl::Syn, 999, None, b""));
    let ours = u32::from_ne_bytes(syn_ack[0].end.0.to_ne_bytes());
    let request = get("/5");
    let response = feed(
        &mut stack,
        now,
        &segment(TcpControl::Psh, 1000, Some(ours), &request),
    );
    assert!(response[0].fin);
    let ours = u32::from_ne_bytes(response[0].end.0.to_ne_bytes());
    let theirs = 1000 + u32::try_from(request.len()).unwrap();
    let last = feed(
        &mut stack,
        now,
        &segment(TcpControl::Fin, theirs, Some(ours), b""),
    );
    assert_eq!(last.len(), 1);
    assert_eq!(
        last[0].acknowledges,
        Some(TcpSeqNumber((theirs + 1).cast_signed()))
    );
    assert_eq!(stack.connection_count(), 0, "the socket is gone");
    (stack, ours, theirs + 1)
}

fn at(seconds: u64) -> Now {
    Now {
        monotonic: Duration::from_secs(seconds),
        unix: Duration::from_secs(1_700_000_000 + seconds),
    }
}

#[test]
fn time_wait_acknowledges_a_repeated_fin() {
    let (mut stack, ours, theirs) = time_wait(at(1));
    let again = feed(
        &mut stack,
        at(2),
        &segment(TcpControl::Fin, theirs - 1, Some(ours), b""),
    );
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].sequence, TcpSeqNumber(ours.cast_signed()));
    assert_eq!(again[0].acknowledges, Some(TcpSeqNumber(theirs.cast_signed())));
    assert!(!again[0].rst);
    stack.handle_timeout(at(12), &mut Pattern, &mut Sent::default());
    assert!(stack.is_idle());
}

#[test]
fn time_wait_lets_a_new_connection_of_the_same_ports_in() {
    let (mut stack, _, theirs) = time_wait(at(1));
    let syn_ack = feed(
        &mut stack,
        at(2),
        &segment(TcpControl::Syn, theirs + 5000, None, b""),
    );
    assert!(syn_ack[0].syn && syn_ack[0].acknowledges.is_some());
    assert_eq!(stack.connection_count(), 1);
}

#[test]
fn time_wait_takes_no_old_syn_for_a_new_connection() {
    let (mut stack, ours, _) = time_wait(at(1));
    let answer = feed(&mut stack, at(2), &segment(TcpControl::Syn, 999, None, b""));
    assert_eq!(answer[0].sequence, TcpSeqNumber(ours.cast_signed()));
    assert!(!answer[0].syn);
    assert_eq!(stack.connection_count(), 0);
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut stack = Stack::new(at(1), 11, Spares::default());
    let answer = feed(
        &mut stack,
        at(1),
        &segment(TcpControl::Psh, 1000, Some(5), b"GET"),
    );
    assert!(answer[0].rst);
    assert!(stack.is_idle());
}

#[test]
fn partial_checksums_are_accepted() {
    let mut stack = Stack::new(at(1), 12, Spares::default());
    let mut packet = segment(TcpControl::Syn, 999, None, b"");
    packet[20 + 16] ^= 0xff;
    assert!(feed(&mut stack, at(1), &packet)[0].syn);
}

#[test]
fn garbage_changes_nothing() {
    let mut rng = StdRng::seed_from_u64(13);
    let mut stack = Stack::new(at(1), 13, Spares::default());
    for _ in 0..20_000 {
        let mut packet = segment(TcpControl::Syn, rng.random(), None, b"hello");
        for _ in 0..rng.random_range(1..8) {
            let index = rng.random_range(0..packet.len());
            packet[index] = rng.random();
        }
        packet.truncate(rng.random_range(0..=packet.len()));
        let mut sent = Sent::default();
        stack.handle_packet(at(1), &packet, &mut Pattern, &mut sent);
        stack.flush(at(1), &mut sent);
        assert!(stack.connection_count() <= CONNECTIONS_MAX);
    }
}

/// Every exchange ends right on a network that loses, repeats and reorders, and leaves nothing behind.
#[test]
fn exchanges_survive_a_bad_network() {
    for seed in 0..300 {
        let faults = Faults {
            lost: 10,
            duplicated: 10,
            delay_max: Duration::from_millis(20),
        };
        let mut simulation = Simulation::new(seed, faults);
        if seed % 2 == 1 {
            simulation.service = IMDS_IPV6.into();
        }
        let length = simulation.rng.random_range(0..40_000);
        let handle = simulation.connect();
        let requests = [get_keep_alive("/token/56"), get(&format!("/{length}"))].concat();
        let response = simulation.exchange(handle, &requests);
        assert_eq!(
            bodies(&response),
            [patterned(56), patterned(length)],
            "seed {seed}"
        );
        assert!(
            simulation.run_until(|simulation| simulation.stack.is_idle()),
            "seed {seed} leaves something behind"
        );
    }
}

#[test]
fn segments_know_both_ends() {
    let parsed = Segment::parse(&segment(TcpControl::Syn, 1, None, b"")).unwrap();
    assert_eq!(parsed.peer.remote, IpEndpoint::new(GUEST.into(), 50_000));
    assert_eq!(parsed.peer.local, IpEndpoint::new(IMDS_IPV4.into(), 80));
    assert!(parsed.opens());
}
