//! A guest that knows only what to send when, and a router of it that speaks ICMP.

use std::time::Duration;

use imds_ebpf::abi::{IMDS_IPV4 as SERVICE_IPV4, IMDS_IPV6 as SERVICE_IPV6};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};

use super::{
    super::{Spares, Stack, Transmit},
    *,
};
use crate::{
    http::{Request, Response, Service},
    now::Now,
};

const GUEST: [u8; 4] = [10, 0, 0, 2];
const ROUTER: [u8; 4] = [10, 0, 0, 9];
const PORT: u16 = 40_000;

/// Answers a PUT with hop limit 2, and a GET with the ordinary one.
struct Tokens;

impl Service for Tokens {
    fn respond(&mut self, _now: Now, request: &Request<'_>, response: &mut Response) {
        response.body.extend_from_slice(b"token");
        response.hop_limit = (request.method == "PUT").then_some(2);
    }
}

/// What the stack sent last.
#[derive(Default)]
struct Last(Vec<u8>);

impl Transmit for Last {
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.0 = vec![0; length];
        fill(&mut self.0)
    }
}

struct Guest {
    stack: Stack,
    now: Duration,
    addresses: [IpAddress; 2],
    port: u16,
    /// Our next sequence number, and what we acknowledge.
    sequence: u32,
    expects: u32,
    last: Last,
}

impl Guest {
    fn new() -> Self {
        Self::between([IpAddr::from(GUEST), IpAddr::from(SERVICE_IPV4)])
    }

    fn between(addresses: [IpAddr; 2]) -> Self {
        let now = Duration::from_secs(1);
        Self {
            stack: Stack::new(at(now), 1, Spares::default()),
            now,
            addresses: addresses.map(IpAddress::from),
            port: PORT,
            sequence: 1000,
            expects: 0,
            last: Last::default(),
        }
    }

    /// Connects and sends `request`, whose response it has not acknowledged then.
    fn ask(&mut self, request: &[u8]) {
        self.send(TcpControl::Syn, b"");
        self.expects = self.next_of_service();
        self.send(TcpControl::Psh, request);
    }

    fn send(&mut self, control: TcpControl, payload: &[u8]) {
        let [guest, service] = self.addresses;
        let tcp = TcpRepr {
            src_port: self.port,
            dst_port: 80,
            control,
            seq_number: TcpSeqNumber(self.sequence.cast_signed()),
            ack_number: (control != TcpControl::Syn).then_some(TcpSeqNumber(self.expects.cast_signed())),
            window_len: 64_000,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        self.sequence += u32::try_from(tcp.segment_len()).unwrap();
        let ip = IpRepr::new(guest, service, IpProtocol::Tcp, tcp.buffer_len(), 64);
        let mut packet = vec![0; ip.buffer_len()];
        let checksums = ChecksumCapabilities::default();
        ip.emit(&mut packet[..], &checksums);
        let mut segment = TcpPacket::new_unchecked(&mut packet[ip.header_len()..]);
        tcp.emit(&mut segment, &guest, &service, &checksums);
        self.hand_over(&packet);
    }

    fn hand_over(&mut self, packet: &[u8]) {
        let now = at(self.now);
        self.stack.handle_packet(now, packet, &mut Tokens, &mut self.last);
        self.stack.flush(now, &mut self.last);
    }

    /// The sequence number behind the last packet of the service.
    fn next_of_service(&self) -> u32 {
        let segment = match self.addresses[0] {
            IpAddress::Ipv4(_) => self.last.0[20..].to_vec(),
            IpAddress::Ipv6(_) => self.last.0[40..].to_vec(),
        };
        let segment = TcpPacket::new_checked(segment).unwrap();
        (segment.seq_number() + segment.segment_len()).0.cast_unsigned()
    }

    /// The router's word about `expired`, as much of it as is quoted at least.
    fn time_exceeded(&self, expired: &[u8]) -> Vec<u8> {
        let service = self.addresses[1];
        let (router, protocol, kind, quoted) = match service {
            IpAddress::Ipv4(_) => (IpAddr::from(ROUTER), IpProtocol::Icmp, 11, 28),
            IpAddress::Ipv6(_) => (
                IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 9]),
                IpProtocol::Icmpv6,
                3,
                48,
            ),
        };
        let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &expired[..quoted]].concat();
        let ip = IpRepr::new(router.into(), service, protocol, message.len(), 64);
        let mut packet = vec![0; ip.buffer_len()];
        ip.emit(&mut packet[..], &ChecksumCapabilities::default());
        packet[ip.header_len()..].copy_from_slice(&message);
        packet
    }

    /// Lets the stack act on its deadlines for as long.
    fn wait(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while let Some(due) = self.stack.poll_timeout().filter(|due| *due <= end) {
            self.now = due.max(self.now + Duration::from_millis(1));
            self.stack
                .handle_timeout(at(self.now), &mut Tokens, &mut self.last);
        }
        self.now = self.now.max(end);
    }

    fn told(&mut self) -> Vec<Undelivered> {
        std::iter::from_fn(|| self.stack.poll_undelivered()).collect()
    }
}

fn at(monotonic: Duration) -> Now {
    Now {
        monotonic,
        unix: Duration::from_secs(1_700_000_000) + monotonic,
    }
}

const PUT: &[u8] = b"PUT /latest/api/token HTTP/1.1\r\n\r\n";
const PUT_KEEP_ALIVE: &[u8] = b"PUT /latest/api/token HTTP/1.1\r\nConnection: keep-alive\r\n\r\n";
const GET: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

#[test]
fn routers_word_of_a_token_response_is_told_once() {
    let service_v6 = [
        IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]),
        IpAddr::from(SERVICE_IPV6),
    ];
    for mut guest in [Guest::new(), Guest::between(service_v6)] {
        guest.ask(PUT);
        assert_eq!(guest.told(), []);
        let word = guest.time_exceeded(&guest.last.0);
        guest.hand_over(&word);
        let [undelivered] = guest.told()[..] else {
            panic!("not told once");
        };
        assert_eq!(
            undelivered.remote,
            SocketAddr::new(guest.addresses[0].into(), PORT)
        );
        assert_eq!(undelivered.hop_limit, 2);
        assert!(
            matches!(undelivered.sign, Sign::TimeExceeded { router } if router != undelivered.remote.ip())
        );
        // Nor again for its repetitions, nor when the connection is given up.
        guest.hand_over(&word);
        guest.wait(60);
        assert_eq!(guest.told(), []);
        assert!(guest.stack.connection_count() == 0);
    }
}

#[test]
fn word_of_what_is_not_under_way_is_not_believed() {
    let mut guest = Guest::new();
    guest.ask(PUT);
    let response = guest.last.0.clone();
    // Of another port of the guest, of another address, of another port of ours: no such connection.
    for (at, byte) in [(23, 1), (19, 1), (21, 81)] {
        let mut other = response.clone();
        other[at] = byte;
        guest.hand_over(&guest.time_exceeded(&other));
    }
    assert_eq!(guest.told(), []);
    // Of a connection whose response was acknowledged.
    guest.expects = guest.next_of_service();
    guest.send(TcpControl::Fin, b"");
    guest.hand_over(&guest.time_exceeded(&response));
    assert_eq!(guest.told(), []);
    // Of a response without a hop limit of its own.
    let mut guest = Guest::new();
    guest.ask(GET);
    guest.hand_over(&guest.time_exceeded(&guest.last.0));
    guest.wait(60);
    assert_eq!(guest.told(), []);
}

#[test]
fn response_on_a_kept_alive_connection_is_under_way_until_it_is_acknowledged() {
    let mut guest = Guest::new();
    guest.ask(PUT_KEEP_ALIVE);
    let response = guest.last.0.clone();
    guest.expects = guest.next_of_service();
    // The next request acknowledges the token, and its own response is an ordinary one.
    guest.send(
        TcpControl::Psh,
        b"GET / HTTP/1.1\r\nConnection: keep-alive\r\n\r\n",
    );
    guest.hand_over(&guest.time_exceeded(&response));
    assert_eq!(guest.told(), []);
    guest.expects = guest.next_of_service();
    guest.send(TcpControl::Psh, PUT_KEEP_ALIVE);
    guest.hand_over(&guest.time_exceeded(&guest.last.0));
    assert_eq!(guest.told().len(), 1);
}

#[test]
fn response_that_nobody_acknowledges_is_told_at_the_end() {
    let expected = Undelivered {
        remote: SocketAddr::from((GUEST, PORT)),
        hop_limit: 2,
        sign: Sign::Unacknowledged,
    };
    // The client hangs.
    let mut guest = Guest::new();
    guest.ask(PUT);
    guest.wait(19);
    assert_eq!(guest.told(), []);
    guest.wait(41);
    assert_eq!(guest.told(), [expected]);
    assert!(guest.stack.connection_count() == 0);
    // It gives up after a while, with a FIN or with a reset.
    for control in [TcpControl::Fin, TcpControl::Rst] {
        let mut guest = Guest::new();
        guest.ask(PUT);
        guest.wait(2);
        guest.send(control, b"");
        guest.wait(60);
        assert_eq!(guest.told(), [expected], "{control:?}");
    }
}

#[test]
fn client_that_is_gone_at_once_tells_nothing() {
    let mut guest = Guest::new();
    guest.ask(PUT);
    guest.send(TcpControl::Rst, b"");
    guest.wait(60);
    assert_eq!(guest.told(), []);
}

#[test]
fn what_nobody_asks_for_does_not_pile_up() {
    let mut guest = Guest::new();
    for port in 0..1000 {
        guest.port = 10_000 + port;
        guest.ask(PUT);
        guest.hand_over(&guest.time_exceeded(&guest.last.0));
        guest.send(TcpControl::Rst, b"");
    }
    assert_eq!(guest.told().len(), super::super::CONNECTIONS_MAX);
}

#[test]
fn message_that_is_cut_anywhere_is_none() {
    let mut guest = Guest::new();
    guest.ask(PUT);
    let word = guest.time_exceeded(&guest.last.0);
    assert!(TimeExceeded::parse(&word).is_some());
    for length in 0..word.len() {
        assert_eq!(TimeExceeded::parse(&word[..length]), None, "{length}");
    }
}
