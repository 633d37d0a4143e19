//! Panics that go through what has to catch them: where a request is answered, in a stack that is flushed, in one whose time has
//! come, and in the worker itself. What each costs, and that all goes on.

use imds_ebpf::abi::MacAddr;
use imds_tests::segment::{ACK, FIN, PSH, RST, SYN, Segment};
use rand::{SeedableRng as _, rngs::StdRng};

use super::{answer::PANICS, *};
use crate::{
    datapath::{
        Punt,
        inject::wire::{Doing, Wire},
    },
    imds::token::{TokenKey, TokenKeys},
    now::Now,
    observe::Panics,
    registry::{HttpTokens, MetadataOptions, Snapshot, snapshot::Member},
};

/// Whose stack panics, and who is to notice nothing of it.
const HURT: TapIndex = TapIndex(11);
const NEIGHBOUR: TapIndex = TapIndex(12);

/// What is asked for: the answer says whose connection it is.
const WHO: &str = "/latest/meta-data/instance-id";

/// How long a worker may take to answer, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

const ETHERNET_BYTES: usize = 14;
const IPV4_BYTES: usize = 20;

fn instance(tap: TapIndex) -> String {
    format!("i-{tap}")
}

fn mac(tap: TapIndex) -> MacAddr {
    MacAddr([6, 0, 0, 0, 0, tap.0 as u8])
}

fn at(milliseconds: u64) -> Now {
    Now {
        monotonic: Duration::from_millis(milliseconds),
        unix: Duration::from_secs(1_795_248_000),
    }
}

/// A worker for the two taps, and the wire that its frames go to.
fn worker(ring: PuntRing) -> (Worker, Wire) {
    let mut snapshot = Snapshot::default();
    for tap in [HURT, NEIGHBOUR] {
        let record = serde_json::json!({
            "InstanceId": instance(tap),
            "NetworkInterfaces": [{ "MacAddress": mac(tap).to_string(), "Tap": format!("tap{tap}") }],
        });
        snapshot.add(&Arc::new(Member {
            instance: serde_json::from_value(record).unwrap(),
            options: MetadataOptions {
                http_tokens: HttpTokens::Optional,
                ..MetadataOptions::default()
            },
            instance_profile: None,
            role: None,
            last_modified: jiff::Timestamp::UNIX_EPOCH,
        }));
    }
    let facts = Facts::default();
    facts.registry.publish(snapshot);
    let keys = TokenKeys::new(TokenKey::new([0; 3], [0; 32]), Vec::new());
    let (injector, wire) = Injector::on_wire();
    let worker = Worker {
        started: Instant::now(),
        ring,
        injector,
        imds: Imds::new(Arc::new(keys), StdRng::seed_from_u64(0)),
        facts,
    };
    (worker, wire)
}

/// A guest's end of a connection.
struct Connection {
    tap: TapIndex,
    /// What it sends next, and what it expects.
    next: u32,
    expects: u32,
}

/// What a frame says to a guest.
#[derive(PartialEq, Eq, Debug)]
enum Heard {
    SynAck,
    Reset,
    /// Part of a response.
    Text(String),
    /// What it has heard before, or an acknowledgement.
    Nothing,
}

impl Connection {
    fn new(tap: TapIndex) -> Self {
        Self {
            tap,
            next: 1,
            expects: 0,
        }
    }

    fn syn(&self) -> Vec<u8> {
        frame(&Segment::default())
    }

    fn request(&mut self, target: &str) -> Vec<u8> {
        let request = format!("GET {target} HTTP/1.1\r\nConnection: keep-alive\r\n\r\n");
        let segment = Segment {
            sequence: self.next,
            acknowledges: self.expects,
            flags: PSH | ACK,
            payload: request.as_bytes(),
            ..Segment::default()
        };
        self.next += request.len() as u32;
        frame(&segment)
    }

    fn hear(&mut self, frame: &[u8]) -> Heard {
        let tcp = &frame[ETHERNET_BYTES + IPV4_BYTES..];
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        let (header_bytes, flags) = (usize::from(tcp[12] >> 4) * 4, tcp[13]);
        let payload = &tcp[header_bytes..];
        if flags & RST != 0 {
            return Heard::Reset;
        }
        if flags & SYN != 0 {
            self.expects = sequence.wrapping_add(1);
            return Heard::SynAck;
        }
        if payload.is_empty() || sequence != self.expects {
            return Heard::Nothing;
        }
        assert_eq!(flags & FIN, 0, "the connection is kept alive");
        self.expects = sequence.wrapping_add(payload.len() as u32);
        Heard::Text(String::from_utf8(payload.to_vec()).unwrap())
    }
}

fn frame(segment: &Segment<'_>) -> Vec<u8> {
    [vec![0; ETHERNET_BYTES], segment.ipv4()].concat()
}

#[track_caller]
fn assert_served(heard: &Heard, tap: TapIndex) {
    let Heard::Text(response) = heard else {
        panic!("no response: {heard:?}")
    };
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, instance(tap));
}

/// The stacks of a worker, without its ring and its clock.
struct Host {
    interfaces: Interfaces,
    panics: Arc<Panics>,
    wire: Wire,
    /// What was sent and not heard yet.
    sent: Vec<(TapIndex, Vec<u8>)>,
}

impl Host {
    fn new() -> Self {
        let (ring, _) = PuntRing::fed();
        let (
            Worker {
                injector,
                imds,
                facts,
                ..
            },
            wire,
        ) = worker(ring);
        let panics = Arc::clone(&facts.panics);
        let mut interfaces = Interfaces::new(facts, imds, injector);
        for tap in [HURT, NEIGHBOUR] {
            interfaces.serve(tap, instance(tap).parse().unwrap());
        }
        Self {
            interfaces,
            panics,
            wire,
            sent: Vec::new(),
        }
    }

    fn punt(&mut self, now: Now, tap: TapIndex, frame: &[u8]) {
        let punt = Punt {
            tap,
            mac: mac(tap),
            arrived: now.monotonic,
            frame,
        };
        self.interfaces.handle_punt(now, &punt);
    }

    /// Everything that the guest of `connection` was sent and has not heard.
    fn heard(&mut self, connection: &mut Connection) -> Vec<Heard> {
        self.sent.extend(self.wire.frames.try_iter());
        let tap = connection.tap;
        self.sent
            .extract_if(.., |(of, _)| *of == tap)
            .map(|(_, frame)| connection.hear(&frame))
            .collect()
    }

    fn connect(&mut self, now: Now, tap: TapIndex) -> (Connection, Vec<Heard>) {
        let mut connection = Connection::new(tap);
        self.punt(now, tap, &connection.syn());
        self.interfaces.flush(now).unwrap();
        let heard = self.heard(&mut connection);
        (connection, heard)
    }

    /// Two guests with a connection each.
    fn with_connections() -> (Self, Connection, Connection) {
        let mut host = Self::new();
        let [hurt, neighbour] = [HURT, NEIGHBOUR].map(|tap| {
            let (connection, heard) = host.connect(at(0), tap);
            assert_eq!(heard, [Heard::SynAck]);
            connection
        });
        (host, hurt, neighbour)
    }

    #[track_caller]
    fn assert_answers(&mut self, now: Now, connection: &mut Connection) {
        let request = connection.request(WHO);
        self.punt(now, connection.tap, &request);
        self.interfaces.flush(now).unwrap();
        let heard = self.heard(connection);
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_served(&heard[0], connection.tap);
    }

    /// The stack of [`HURT`] panicked at `milliseconds`: that was counted, its connection is gone and its frames are passed over for
    /// a while. On the connection of [`NEIGHBOUR`] nothing is to be noticed.
    #[track_caller]
    fn assert_one_was_hurt(&mut self, milliseconds: u64, mut hurt: Connection, mut neighbour: Connection) {
        assert_eq!((self.panics.of_interfaces(), self.panics.of_workers()), (1, 0));
        assert_eq!(self.heard(&mut hurt), []);
        assert_eq!(self.interfaces.connections(), 1);
        self.assert_answers(at(milliseconds), &mut neighbour);

        assert!(self.interfaces.serves(HURT), "whose the tap is stays");
        let (_, heard) = self.connect(at(milliseconds + 99), HURT);
        assert_eq!(heard, [], "its frames are passed over");
        let request = hurt.request(WHO);
        self.punt(at(milliseconds + 100), HURT, &request);
        self.interfaces.flush(at(milliseconds + 100)).unwrap();
        assert_eq!(self.heard(&mut hurt), [Heard::Reset]);
        let (mut anew, heard) = self.connect(at(milliseconds + 100), HURT);
        assert_eq!(heard, [Heard::SynAck]);
        self.assert_answers(at(milliseconds + 100), &mut anew);
        self.assert_answers(at(milliseconds + 100), &mut neighbour);
        assert_eq!(self.panics.of_interfaces(), 1);
    }
}

#[test]
fn a_request_that_panics_where_it_is_answered_hurts_its_own_interface() {
    let (mut host, mut hurt, neighbour) = Host::with_connections();
    host.punt(at(10), HURT, &hurt.request(PANICS));
    host.interfaces.flush(at(10)).unwrap();
    host.assert_one_was_hurt(10, hurt, neighbour);
}

#[test]
fn a_stack_that_panics_when_it_is_flushed_takes_no_answer_from_its_neighbour() {
    let (mut host, mut hurt, mut neighbour) = Host::with_connections();
    host.wire.panic_at(Doing::Queue(HURT));
    host.punt(at(10), HURT, &hurt.request(WHO));
    host.punt(at(10), NEIGHBOUR, &neighbour.request(WHO));
    host.interfaces.flush(at(10)).unwrap();
    let heard = host.heard(&mut neighbour);
    assert_eq!(heard.len(), 1, "{heard:?}");
    assert_served(&heard[0], NEIGHBOUR);
    host.assert_one_was_hurt(10, hurt, neighbour);
}

#[test]
fn a_stack_that_panics_at_its_deadline_keeps_its_neighbour_from_none_of_its_own() {
    let (mut host, hurt, mut neighbour) = Host::with_connections();
    // Nobody acknowledges, so both say again what they said.
    host.wire.panic_at(Doing::Queue(HURT));
    let due = host.interfaces.deadline().unwrap();
    let later = u64::try_from(due.as_millis()).unwrap() + 100;
    host.interfaces.handle_deadlines(at(later)).unwrap();
    assert_eq!(host.heard(&mut neighbour), [Heard::SynAck]);
    host.assert_one_was_hurt(later, hurt, neighbour);
}

#[test]
fn a_worker_that_panics_drops_all_connections_and_serves_again() {
    let (ring, mut feed) = PuntRing::fed();
    let (worker, wire) = worker(ring);
    let (started, panics) = (worker.started, Arc::clone(&worker.facts.panics));
    let (commands, inbox) = mpsc::channel();
    for tap in [HURT, NEIGHBOUR] {
        let serve = Command::Serve(tap, instance(tap).parse().unwrap());
        commands.send(serve).unwrap();
    }
    let working = thread::spawn(move || worker.work(0, Alarm::new().unwrap(), inbox));
    let mut punt = |tap, frame: &[u8]| feed.punt(tap, mac(tap), started.elapsed(), frame);
    let hear = |connection: &mut Connection| {
        loop {
            let (tap, frame) = wire.frames.recv_timeout(PATIENCE).expect("the worker answers");
            if tap == connection.tap {
                match connection.hear(&frame) {
                    Heard::Nothing => {}
                    heard => return heard,
                }
            }
        }
    };

    let mut before = Connection::new(HURT);
    punt(HURT, &before.syn());
    assert_eq!(hear(&mut before), Heard::SynAck);
    punt(HURT, &before.request(WHO));
    assert_served(&hear(&mut before), HURT);

    // Where all answers are sent no stack is to blame.
    wire.panic_at(Doing::Send);
    let mut after = Connection::new(NEIGHBOUR);
    punt(NEIGHBOUR, &after.syn());
    let patient_until = Instant::now() + PATIENCE;
    while panics.of_workers() == 0 && !working.is_finished() && Instant::now() < patient_until {
        thread::yield_now();
    }
    assert_eq!((panics.of_workers(), panics.of_interfaces()), (1, 0));

    // As its guest does when nobody answers.
    punt(NEIGHBOUR, &after.syn());
    assert_eq!(hear(&mut after), Heard::SynAck);
    punt(NEIGHBOUR, &after.request(WHO));
    assert_served(&hear(&mut after), NEIGHBOUR);
    punt(HURT, &before.request(WHO));
    assert_eq!(
        hear(&mut before),
        Heard::Reset,
        "the connection is gone, and the tap is served"
    );

    commands.send(Command::Stop).unwrap();
    working.join().unwrap().unwrap();
    assert_eq!((panics.of_workers(), panics.of_interfaces()), (1, 0));
}
