//! One exchange in process: SYN, ACK, a GET with a session token, FIN, ACK, through the real stack, HTTP, token check and
//! tree. What the kernel and the taps cost is not in it.

use std::{sync::Arc, time::Duration};

use imds_agent::{
    http::{Request, Response, Service},
    imds::{
        Caller, Imds, identity,
        token::{TokenKey, TokenKeys},
    },
    now::Now,
    registry::{MetadataOptions, snapshot::Member},
    stack::{Spares, Stack, Transmit},
};
use imds_tests::segment::{ACK, FIN, PSH, SYN, Segment};
use rand::{SeedableRng as _, rngs::StdRng};
use smoltcp::wire::{Ipv4Packet, TcpPacket};

fn main() {
    divan::main();
}

/// A whole exchange on a stack that has just seen others.
#[divan::bench]
fn tokened_get(bencher: divan::Bencher<'_, '_>) {
    let mut guest = Guest::new();
    let token = guest
        .exchange(b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n");
    let request = format!(
        "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept: */*\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
    );
    assert_eq!(guest.exchange(request.as_bytes()), "i-0123456789abcdef0");
    bencher.bench_local(|| guest.exchange_discarding(request.as_bytes()));
}

/// What answers: one instance, nothing counted.
struct Answer {
    imds: Imds,
    member: Member,
    identities: identity::Published,
}

impl Service for Answer {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        let interface = &self.member.instance.network_interfaces[0];
        let caller = Caller {
            member: &self.member,
            interface,
            role_state: None,
            identity_state: None,
            identities: &self.identities,
        };
        self.imds.respond(now, Some(&caller), request, response);
    }
}

/// Where the stack's packets go.
#[derive(Default)]
struct Inbound {
    bytes: Vec<u8>,
    packets: usize,
    response: Vec<u8>,
    next: u32,
    keeps_response: bool,
}

impl Transmit for Inbound {
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.bytes.resize(length, 0);
        let result = fill(&mut self.bytes);
        self.packets += 1;
        let packet = Ipv4Packet::new_unchecked(&self.bytes[..]);
        let tcp = TcpPacket::new_unchecked(packet.payload());
        self.next = u32::from_ne_bytes((tcp.seq_number() + tcp.segment_len()).0.to_ne_bytes());
        if self.keeps_response {
            self.response.extend_from_slice(tcp.payload());
        }
        result
    }
}

/// A guest's TCP that knows only the happy path.
struct Guest {
    stack: Stack,
    answer: Answer,
    inbound: Inbound,
    packet: Vec<u8>,
    port: u16,
    now: Duration,
}

impl Guest {
    fn new() -> Self {
        let record = serde_json::json!({
            "InstanceId": "i-0123456789abcdef0",
            "NetworkInterfaces": [{ "MacAddress": "06:00:00:00:00:02" }],
        });
        let member = Member {
            instance: serde_json::from_value(record).expect("a good record"),
            options: MetadataOptions::default(),
            instance_profile: None,
            role: None,
            last_modified: jiff::Timestamp::UNIX_EPOCH,
        };
        let keys = TokenKeys::new(TokenKey::new([1, 2, 3], [7; 32]), Vec::new());
        let imds = Imds::new(Arc::new(keys), StdRng::seed_from_u64(1));
        let now = Duration::from_secs(1);
        Self {
            stack: Stack::new(at(now), 1, Spares::default()),
            answer: Answer {
                imds,
                member,
                identities: identity::Published::default(),
            },
            inbound: Inbound::default(),
            packet: Vec::new(),
            port: 10_000,
            now,
        }
    }

    fn exchange(&mut self, request: &[u8]) -> String {
        self.inbound.keeps_response = true;
        self.inbound.response.clear();
        self.exchange_discarding(request);
        self.inbound.keeps_response = false;
        let response = String::from_utf8(self.inbound.response.clone()).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("a whole response");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body.to_owned()
    }

    fn exchange_discarding(&mut self, request: &[u8]) {
        self.port = if self.port == 60_000 {
            10_000
        } else {
            self.port + 1
        };
        self.now += Duration::from_micros(10);
        self.inbound.packets = 0;
        self.send(SYN, 1000, 0, b"");
        let ours = self.inbound.next;
        self.send(ACK, 1001, ours, b"");
        self.send(ACK | PSH, 1001, ours, request);
        let end = 1001 + u32::try_from(request.len()).expect("a short request");
        self.send(ACK | FIN, end, self.inbound.next, b"");
        // SYN-ACK, the response with our FIN, the last acknowledgement.
        assert_eq!(self.inbound.packets, 3);
    }

    fn send(&mut self, flags: u8, sequence: u32, acknowledges: u32, payload: &[u8]) {
        let segment = Segment {
            port: self.port,
            sequence,
            acknowledges,
            flags,
            payload,
            ..Segment::default()
        };
        segment.write_ipv4(&mut self.packet);
        let now = at(self.now);
        self.stack
            .handle_packet(now, &self.packet, &mut self.answer, &mut self.inbound);
        self.stack.flush(now, &mut self.inbound);
        // The worker asks after every flush.
        divan::black_box(self.stack.poll_timeout());
    }
}

fn at(monotonic: Duration) -> Now {
    Now {
        monotonic,
        unix: Duration::from_secs(1_795_248_000) + monotonic,
    }
}
