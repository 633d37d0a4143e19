//! A stack and a guest that means well, joined by a seeded network that loses, repeats, delays, cuts and damages.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use smoltcp::{
    iface::{SocketHandle, SocketSet},
    socket::tcp::{Socket, SocketBuffer, State},
    wire::{IpAddress, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket},
};

use super::{super::*, GUEST, GUEST_IPV6, Sent, at, service::Pattern};

/// Chances in percent, and the longest delay.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub lost: u32,
    pub duplicated: u32,
    /// Cut off somewhere.
    pub truncated: u32,
    /// One byte is another when it reaches the guest, which checks its checksums.
    pub corrupted_inbound: u32,
    /// The same on the way to the stack, which does not: on a real host there is no wire in between.
    pub corrupted_outbound: u32,
    pub delay_max: Duration,
}

impl Faults {
    pub const NONE: Self = Self {
        lost: 0,
        duplicated: 0,
        truncated: 0,
        corrupted_inbound: 0,
        corrupted_outbound: 0,
        delay_max: Duration::ZERO,
    };
}

/// Packets under way to one side, by the time of their arrival.
#[derive(Default)]
struct Wire {
    packets: BTreeMap<(Duration, u64), Vec<u8>>,
    sent: u64,
}

impl Wire {
    fn send(&mut self, due: Duration, packet: Vec<u8>) {
        self.sent += 1;
        self.packets.insert((due, self.sent), packet);
    }

    fn receive(&mut self, now: Duration) -> Option<Vec<u8>> {
        let entry = self.packets.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    fn next(&self) -> Option<Duration> {
        self.packets.first_key_value().map(|((due, _), _)| *due)
    }
}

/// Both sides and what is between them.
pub struct Link {
    pub now: Duration,
    pub rng: StdRng,
    faults: Faults,
    pub stack: Stack,
    pub guest: Interface,
    pub sockets: SocketSet<'static>,
    /// The address that the guest connects to: IPv4's unless a test says otherwise.
    pub service: IpAddress,
    outbound: Wire,
    inbound: Wire,
    /// Every inbound packet, before the network had its way with it.
    pub seen: Vec<Vec<u8>>,
    next_port: u16,
    /// The guest's ports that nobody speaks for any more, not even with a reset.
    pub silent: BTreeSet<u16>,
    /// When whoever uses the guest wants to act again.
    pub alarm: Option<Duration>,
    /// Packets that did not arrive as they were sent.
    pub harmed: u64,
    /// Over the headers of everything that was sent, and when.
    digest: DefaultHasher,
    is_traced: bool,
}

impl Link {
    pub fn new(seed: u64, faults: Faults) -> Self {
        let begin = Duration::from_secs(1);
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut guest = Interface::new(
            config,
            &mut PacketDevice::new(None, &mut Nowhere),
            instant(at(begin)),
        );
        guest.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap();
            addresses.push(IpCidr::new(GUEST_IPV6.into(), 64)).unwrap();
        });
        guest.routes_mut().add_default_ipv4_route(GUEST).unwrap();
        guest.routes_mut().add_default_ipv6_route(GUEST_IPV6).unwrap();
        Self {
            now: begin,
            rng: StdRng::seed_from_u64(seed),
            faults,
            stack: Stack::new(at(begin), seed, Spares::default()),
            guest,
            sockets: SocketSet::new(Vec::new()),
            service: IMDS_IPV4.into(),
            outbound: Wire::default(),
            inbound: Wire::default(),
            seen: Vec::new(),
            next_port: 40_000,
            silent: BTreeSet::new(),
            alarm: None,
            harmed: 0,
            digest: DefaultHasher::new(),
            is_traced: false,
        }
    }

    /// The same with other faults, and with every packet printed if `is_traced`.
    pub fn with(self, faults: Faults, is_traced: bool) -> Self {
        Self {
            faults,
            is_traced,
            ..self
        }
    }

    pub fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 64 * 1024]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket
            .connect(self.guest.context(), (self.service, 80), self.next_port)
            .unwrap();
        self.next_port += 1;
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// What two runs of the same seed have in common.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// Lets both sides act at this instant until neither has anything more to say.
    pub fn settle(&mut self) {
        loop {
            let now = at(self.now);
            let mut guest_sent = Sent::default();
            self.poll_guest(None, &mut guest_sent);
            while let Some(packet) = self.inbound.receive(self.now) {
                if self.reaches_guest(&packet) {
                    self.poll_guest(Some(&packet), &mut guest_sent);
                }
            }
            for packet in guest_sent {
                self.send(Direction::Outbound, packet);
            }

            let mut sent = Sent::default();
            let mut is_quiet = true;
            while let Some(packet) = self.outbound.receive(self.now) {
                self.stack.handle_packet(now, &packet, &mut Pattern, &mut sent);
                is_quiet = false;
            }
            self.stack.flush(now, &mut sent);
            if self.stack.poll_timeout().is_some_and(|due| due <= self.now) {
                self.stack.handle_timeout(now, &mut Pattern, &mut sent);
            }
            is_quiet &= sent.is_empty();
            for packet in sent {
                self.seen.push(packet.clone());
                self.send(Direction::Inbound, packet);
            }
            if is_quiet && self.inbound.next().is_none_or(|due| due > self.now) {
                return;
            }
        }
    }

    /// Goes on in time until `done`, at most two minutes.
    pub fn run_until(&mut self, done: impl FnMut(&mut Self) -> bool) -> bool {
        self.run_for(Duration::from_secs(120), done)
    }

    /// Goes on in time until `done`, but not past `limit`.
    pub fn run_for(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let deadline = self.now + limit;
        loop {
            self.settle();
            self.alarm = None;
            if done(self) {
                return true;
            }
            let guest = self.guest.poll_at(instant(at(self.now)), &self.sockets);
            let stack = self.stack.poll_timeout();
            let next = [
                guest.map(duration),
                stack,
                self.outbound.next(),
                self.inbound.next(),
                self.alarm,
            ]
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
    pub fn exchange(&mut self, handle: SocketHandle, request: &[u8]) -> Vec<u8> {
        let mut left = request;
        let mut response = Vec::new();
        let is_over = self.run_until(|link| {
            let socket = link.socket(handle);
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

    fn poll_guest(&mut self, packet: Option<&[u8]>, sent: &mut Sent) {
        let mut device = PacketDevice::new(packet, sent);
        self.guest
            .poll(instant(at(self.now)), &mut device, &mut self.sockets);
    }

    /// Whether the guest's kernel takes the packet: smoltcp is told to check no checksums, so that is done here.
    fn reaches_guest(&self, packet: &[u8]) -> bool {
        let intact = !packet.is_empty()
            && match IpVersion::of_packet(packet) {
                Ok(IpVersion::Ipv4) => Ipv4Packet::new_checked(packet).is_ok_and(|ip| {
                    let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                    ip.verify_checksum()
                        && TcpPacket::new_checked(ip.payload())
                            .is_ok_and(|tcp| tcp.verify_checksum(&from, &to))
                }),
                Ok(IpVersion::Ipv6) => Ipv6Packet::new_checked(packet).is_ok_and(|ip| {
                    let (from, to) = (ip.src_addr().into(), ip.dst_addr().into());
                    TcpPacket::new_checked(ip.payload()).is_ok_and(|tcp| tcp.verify_checksum(&from, &to))
                }),
                Err(_) => false,
            };
        intact && Segment::parse(packet).is_none_or(|segment| !self.silent.contains(&segment.peer.local.port))
    }

    /// Hands `packet` to the network.
    fn send(&mut self, direction: Direction, mut packet: Vec<u8>) {
        let segment = Segment::parse(&packet);
        if direction == Direction::Outbound
            && segment.is_some_and(|segment| self.silent.contains(&segment.peer.remote.port))
        {
            return;
        }
        (self.now, packet.len(), &packet[..packet.len().min(64)]).hash(&mut self.digest);
        let Faults {
            lost,
            duplicated,
            truncated,
            corrupted_inbound,
            corrupted_outbound,
            delay_max,
        } = self.faults;
        let mut happens = |percent| self.rng.random_range(0..100) < percent;
        let is_lost = happens(lost);
        let copies = if is_lost {
            0
        } else {
            1 + usize::from(happens(duplicated))
        };
        let is_truncated = happens(truncated);
        let is_corrupted = happens(match direction {
            Direction::Outbound => corrupted_outbound,
            Direction::Inbound => corrupted_inbound,
        });
        self.harmed += u64::from(is_lost || is_truncated || is_corrupted);
        if is_truncated {
            packet.truncate(self.rng.random_range(0..packet.len()));
        }
        if is_corrupted && !packet.is_empty() {
            let at = self.rng.random_range(0..packet.len());
            packet[at] ^= self.rng.random_range(1..=255);
        }
        let wire = match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        };
        for _ in 0..copies {
            let delay = delay_max.mul_f64(self.rng.random());
            wire.send(self.now + delay, packet.clone());
        }
        if self.is_traced {
            let faults = [
                (copies == 0, " lost"),
                (copies == 2, " twice"),
                (is_truncated, " truncated"),
                (is_corrupted, " corrupted"),
            ];
            let faults: String = faults
                .iter()
                .filter(|(is, _)| *is)
                .map(|(_, name)| *name)
                .collect();
            println!("{:?} {direction:?}{faults}: {}", self.now, show(segment));
        }
    }
}

/// One line of a trace.
fn show(segment: Option<Segment>) -> String {
    let Some(segment) = segment else {
        return "no segment".to_owned();
    };
    let Segment {
        peer,
        sequence,
        end,
        acknowledges,
        syn,
        fin,
        rst,
    } = segment;
    let flags = [(syn, " SYN"), (fin, " FIN"), (rst, " RST")];
    let flags: String = flags
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, name)| *name)
        .collect();
    let acknowledges = acknowledges.map_or_else(String::new, |number| format!(" acknowledges {number}"));
    let (from, to) = (peer.remote.port, peer.local.port);
    format!("{from} to {to}{flags} {sequence} to {end}{acknowledges}")
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Direction {
    Outbound,
    Inbound,
}

pub fn drain(socket: &mut Socket<'_>, into: &mut Vec<u8>) {
    while socket.can_recv() {
        socket
            .recv(|bytes| {
                into.extend_from_slice(bytes);
                (bytes.len(), ())
            })
            .unwrap();
    }
}
