//! A guest that does nothing but exchanges: connect, one request, close. Made for measuring, so it is one thread, one
//! tap descriptor and no allocation per exchange; whatever serves the other side of the tap gets the same frames.

use std::{
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use imds_ebpf::abi::{IMDS_IPV4, IMDS_PORT, MacAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::tap::Tap;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const HEADERS: usize = ETHERNET + IPV4 + TCP;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// An exchange that takes longer than this lost a frame: it is given up, counted, and begun anew.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// What to send, and for how long.
#[derive(Clone, Debug)]
pub struct Load {
    /// The guest's MAC.
    pub mac: MacAddr,
    /// The guest's address.
    pub address: [u8; 4],
    /// The MAC of whoever serves.
    pub server: MacAddr,
    /// The request, which must make the server close.
    pub request: Vec<u8>,
    /// Exchanges under way at once.
    pub in_flight: usize,
    /// How long.
    pub duration: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Exchanges that ended well.
    pub exchanges: usize,
    /// Exchanges that were given up.
    pub lost: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// From SYN to the whole response, sorted.
    pub latencies: Vec<Duration>,
    /// The first response, whole.
    pub response: Vec<u8>,
}

impl Outcome {
    /// The latency that `share` of the exchanges stayed within; 0.5 is the median.
    pub fn quantile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index into what was counted"
        )]
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies
            .get(index.min(self.latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }

    /// Exchanges per second.
    pub fn per_second(&self) -> f64 {
        self.exchanges as f64 / self.elapsed.as_secs_f64()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    SynSent,
    Requested,
    Closing,
}

struct Flow {
    port: u16,
    state: State,
    /// Our next sequence number.
    sequence: u32,
    /// What we expect next.
    expects: u32,
    begun: Instant,
}

/// Runs exchanges on `tap` until the time is over and those under way have ended.
pub fn run(tap: &Tap, load: &Load) -> Result<Outcome> {
    Client::new(tap, load).run()
}

struct Client<'a> {
    tap: &'a Tap,
    load: &'a Load,
    flows: Vec<Flow>,
    next_port: u16,
    frame: Vec<u8>,
    outcome: Outcome,
}

impl<'a> Client<'a> {
    fn new(tap: &'a Tap, load: &'a Load) -> Self {
        let outcome = Outcome {
            exchanges: 0,
            lost: 0,
            elapsed: Duration::ZERO,
            latencies: Vec::with_capacity(1 << 20),
            response: Vec::new(),
        };
        Self {
            tap,
            load,
            flows: Vec::new(),
            next_port: 10_000,
            frame: template(load),
            outcome,
        }
    }

    fn run(mut self) -> Result<Outcome> {
        let start = Instant::now();
        let end = start + self.load.duration;
        for _ in 0..self.load.in_flight {
            self.begin()?;
        }
        let mut buffer = vec![0; 65_536 + 64];
        let mut checked = start;
        while !self.flows.is_empty() {
            match self.tap.read(&mut buffer) {
                Ok(count) => {
                    let frame = buffer.get(..count).unwrap_or_default();
                    self.handle_frame(frame, end)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(
                        &mut [PollFd::new(self.tap.as_fd(), PollFlags::POLLIN)],
                        PollTimeout::from(100_u16),
                    )?;
                }
                Err(error) => return Err(error.into()),
            }
            if checked.elapsed() > LOST_AFTER {
                checked = Instant::now();
                self.give_up_lost(end)?;
            }
        }
        self.outcome.elapsed = start.elapsed();
        self.outcome.latencies.sort_unstable();
        ensure!(
            self.outcome.exchanges > 0,
            "no exchange ended well: {:?}",
            self.outcome
        );
        Ok(self.outcome)
    }

    fn begin(&mut self) -> Result<()> {
        let port = self.next_port;
        self.next_port = if port == 60_000 { 10_000 } else { port + 1 };
        // Every life of a port begins beyond the one before it. Linux's clock for this steps every 64 ns, which no
        // sender of real segments overtakes.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let sequence = u32::try_from((nanos >> 6) & u128::from(u32::MAX))?;
        self.send(port, sequence, 0, SYN, false)?;
        let sequence = sequence.wrapping_add(1);
        self.flows.push(Flow {
            port,
            state: State::SynSent,
            sequence,
            expects: 0,
            begun: Instant::now(),
        });
        Ok(())
    }

    fn handle_frame(&mut self, frame: &[u8], end: Instant) -> Result<()> {
        let Some(segment) = Segment::parse(frame) else {
            return Ok(());
        };
        let Some(index) = self.flows.iter().position(|flow| flow.port == segment.port) else {
            return Ok(());
        };
        let flow = &mut self.flows[index];
        if segment.flags & RST != 0 {
            self.flows.swap_remove(index);
            self.outcome.lost += 1;
            return self.begin_if_before(end);
        }
        match flow.state {
            State::SynSent if segment.flags & (SYN | ACK) == SYN | ACK => {
                flow.expects = segment.sequence.wrapping_add(1);
                flow.state = State::Requested;
                let (port, sequence, expects) = (flow.port, flow.sequence, flow.expects);
                flow.sequence = sequence.wrapping_add(u32::try_from(self.load.request.len())?);
                self.send(port, sequence, expects, ACK, false)?;
                self.send(port, sequence, expects, PSH | ACK, true)?;
            }
            State::Requested if segment.sequence == flow.expects => {
                flow.expects = flow.expects.wrapping_add(u32::try_from(segment.payload.len())?);
                if self.outcome.exchanges == 0 && index == 0 {
                    self.outcome.response.extend_from_slice(segment.payload);
                }
                if segment.flags & FIN != 0 {
                    flow.expects = flow.expects.wrapping_add(1);
                    flow.state = State::Closing;
                    self.outcome.latencies.push(flow.begun.elapsed());
                    let (port, sequence, expects) = (flow.port, flow.sequence, flow.expects);
                    flow.sequence = sequence.wrapping_add(1);
                    self.send(port, sequence, expects, FIN | ACK, false)?;
                }
            }
            State::Closing if segment.acknowledges == flow.sequence => {
                self.flows.swap_remove(index);
                self.outcome.exchanges += 1;
                return self.begin_if_before(end);
            }
            _ => {}
        }
        Ok(())
    }

    fn begin_if_before(&mut self, end: Instant) -> Result<()> {
        if Instant::now() < end {
            self.begin()
        } else {
            Ok(())
        }
    }

    fn give_up_lost(&mut self, end: Instant) -> Result<()> {
        let before = self.flows.len();
        self.flows.retain(|flow| flow.begun.elapsed() < LOST_AFTER);
        for _ in self.flows.len()..before {
            self.outcome.lost += 1;
            self.begin_if_before(end)?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        port: u16,
        sequence: u32,
        acknowledges: u32,
        flags: u8,
        with_request: bool,
    ) -> io::Result<()> {
        let request: &[u8] = if with_request { &self.load.request } else { &[] };
        let frame = &mut self.frame;
        frame.truncate(HEADERS);
        frame.extend_from_slice(request);
        let length = u16::try_from(frame.len() - ETHERNET).unwrap_or(u16::MAX);
        let (head, tcp) = frame.split_at_mut(ETHERNET + IPV4);
        let ip = &mut head[ETHERNET..];
        ip[2..4].copy_from_slice(&length.to_be_bytes());
        ip[10..12].fill(0);
        let checksum = finish(sum(ip));
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        tcp[0..2].copy_from_slice(&port.to_be_bytes());
        tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&acknowledges.to_be_bytes());
        tcp[13] = flags;
        tcp[16..18].fill(0);
        let pseudo = sum(&ip[12..20]) + 6 + u64::from(length) - IPV4 as u64;
        let checksum = finish(pseudo + sum(tcp));
        tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.tap.send(&self.frame)
    }
}

struct Segment<'a> {
    port: u16,
    sequence: u32,
    acknowledges: u32,
    flags: u8,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        if frame.get(12..14)? != [8, 0] || *packet.get(9)? != 6 {
            return None;
        }
        let length = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
        let tcp = packet.get(..length)?.get(IPV4..)?;
        Some(Self {
            port: u16::from_be_bytes(tcp.get(2..4)?.try_into().ok()?),
            sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
            acknowledges: u32::from_be_bytes(tcp.get(8..12)?.try_into().ok()?),
            flags: *tcp.get(13)?,
            payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
        })
    }
}

/// Everything of a frame that stays the same.
fn template(load: &Load) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADERS + load.request.len());
    frame.extend_from_slice(&load.server.0);
    frame.extend_from_slice(&load.mac.0);
    frame.extend_from_slice(&[0x08, 0x00]);
    frame.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend_from_slice(&load.address);
    frame.extend_from_slice(&IMDS_IPV4);
    frame.extend_from_slice(&[0; 2]);
    frame.extend_from_slice(&IMDS_PORT.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn sum(bytes: &[u8]) -> u64 {
    let mut pairs = bytes.chunks_exact(2);
    let mut sum: u64 = pairs
        .by_ref()
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    if let [last] = pairs.remainder() {
        sum += u64::from(*last) << 8;
    }
    sum
}

fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
