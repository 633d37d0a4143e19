//! Guests that do nothing but exchanges: connect, one request or many, close. Made for measuring, so a run is one thread
//! and allocates nothing per exchange; whatever serves the other side of a tap gets the same frames.

mod crowd;
mod wire;

use std::{
    collections::VecDeque,
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use imds_ebpf::abi::MacAddr;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use self::crowd::{run_all, run_in_turn};
use self::wire::{ACK, FIN, PSH, RST, SYN, Segment};
use crate::tap::Tap;

/// An exchange that takes longer than this lost a frame: it is given up, counted, and begun anew.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// What one guest sends, and for how long.
#[derive(Clone, Debug)]
pub struct Load {
    /// The guest's MAC.
    pub mac: MacAddr,
    /// The guest's address.
    pub address: [u8; 4],
    /// The MAC of whoever serves.
    pub server: MacAddr,
    /// The requests, one an exchange, each in its turn.
    pub requests: Vec<Vec<u8>>,
    /// Exchanges under way at once.
    pub in_flight: usize,
    /// Begin no exchange after this time.
    pub duration: Duration,
    /// Begin no more exchanges than this.
    pub exchanges_max: usize,
    /// How long to wait from one exchange to the next.
    pub pause: Duration,
    /// Whether the client looks for frames all the time instead of sleeping until there are some: what it takes to wake it is
    /// then in no latency.
    pub spins: bool,
    /// The bytes of every response, where connections are kept for further requests; nothing where each is closed after one.
    pub kept_alive: Option<usize>,
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Outcome {
    /// Exchanges that ended well.
    pub exchanges: usize,
    /// Exchanges that were given up or reset.
    pub lost: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// From SYN (on a kept connection: from the request) to the whole response, in the order in which they ended.
    pub latencies: Vec<Duration>,
    /// The first response, whole.
    pub response: Vec<u8>,
}

impl Outcome {
    /// With latencies from the least to the most. A run leaves that to whoever has measured what it cost.
    pub fn sorted(mut self) -> Self {
        self.latencies.sort_unstable();
        self
    }

    /// The latency that `share` of the exchanges stayed within, once they are sorted; 0.5 is the median.
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

    /// What many guests had, as one, sorted.
    pub fn of_all(outcomes: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for outcome in outcomes {
            all.exchanges += outcome.exchanges;
            all.lost += outcome.lost;
            all.elapsed = all.elapsed.max(outcome.elapsed);
            all.latencies.extend(outcome.latencies);
        }
        all.sorted()
    }
}

/// Runs one guest on `tap` until the time is over and the exchanges under way have ended.
pub fn run(tap: &Tap, load: &Load) -> Result<Outcome> {
    let mut guest = Guest::new(tap, load, LATENCIES);
    let mut buffer = vec![0; BUFFER_BYTES];
    guest.begin()?;
    let mut checked = Instant::now();
    while !guest.is_done() {
        match tap.read(&mut buffer) {
            Ok(count) => guest.handle_frame(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && load.spins => std::hint::spin_loop(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(
                    &mut [PollFd::new(tap.as_fd(), PollFlags::POLLIN)],
                    PollTimeout::from(100_u16),
                )?;
            }
            Err(error) => return Err(error.into()),
        }
        if checked.elapsed() > LOST_AFTER {
            checked = Instant::now();
            guest.handle_time()?;
        }
    }
    let outcome = guest.end();
    ensure!(
        outcome.exchanges > 0,
        "no exchange ended well, {} were lost",
        outcome.lost
    );
    Ok(outcome)
}

/// As many latencies are kept without allocating while exchanges are under way.
const LATENCIES: usize = 1 << 20;

/// The longest frame that a tap hands out.
const BUFFER_BYTES: usize = 65_536 + 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    SynSent,
    Requested,
    Closing,
}

struct Flow {
    port: u16,
    state: State,
    /// Which request it sends.
    request: usize,
    /// Our next sequence number.
    sequence: u32,
    /// What we expect next.
    expects: u32,
    /// Bytes of the response that are still to come, on a kept connection.
    missing: usize,
    begun: Instant,
}

/// One guest and its exchanges.
struct Guest<'a> {
    tap: &'a Tap,
    load: &'a Load,
    start: Instant,
    flows: Vec<Flow>,
    /// When exchanges are to begin that wait.
    pauses: VecDeque<Instant>,
    next_port: u16,
    begun: usize,
    /// Whether somebody else says when the next exchange begins.
    takes_turns: bool,
    frame: Vec<u8>,
    outcome: Outcome,
}

impl<'a> Guest<'a> {
    fn new(tap: &'a Tap, load: &'a Load, latencies: usize) -> Self {
        let outcome = Outcome {
            latencies: Vec::with_capacity(load.exchanges_max.min(latencies)),
            ..Outcome::default()
        };
        Self {
            tap,
            load,
            start: Instant::now(),
            flows: Vec::with_capacity(load.in_flight),
            pauses: VecDeque::with_capacity(load.in_flight),
            next_port: 10_000,
            begun: 0,
            takes_turns: false,
            frame: wire::template(load),
            outcome,
        }
    }

    /// Begins the first exchanges.
    fn begin(&mut self) -> Result<()> {
        self.start = Instant::now();
        for _ in 0..self.load.in_flight {
            self.begin_one()?;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.flows.is_empty() && self.pauses.is_empty()
    }

    /// Exchanges that ended, well or not.
    fn ended(&self) -> usize {
        self.outcome.exchanges + self.outcome.lost
    }

    fn end(mut self) -> Outcome {
        self.outcome.elapsed = self.start.elapsed();
        self.outcome
    }

    /// Whether one more exchange may begin, and then counts it.
    fn may_begin(&mut self) -> bool {
        let may = self.begun < self.load.exchanges_max && self.start.elapsed() < self.load.duration;
        self.begun += usize::from(may);
        may
    }

    fn begin_one(&mut self) -> Result<()> {
        if !self.may_begin() {
            return Ok(());
        }
        let request = (self.begun - 1) % self.load.requests.len();
        let port = self.next_port;
        self.next_port = if port == 60_000 { 10_000 } else { port + 1 };
        // Every life of a port begins beyond the one before it. Linux's clock for this steps every 64 ns, which no
        // sender of real segments overtakes.
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let sequence = u32::try_from((nanos >> 6) & u128::from(u32::MAX))?;
        self.send(port, sequence, 0, SYN, None)?;
        let sequence = sequence.wrapping_add(1);
        self.flows.push(Flow {
            port,
            state: State::SynSent,
            request,
            sequence,
            expects: 0,
            missing: 0,
            begun: Instant::now(),
        });
        Ok(())
    }

    fn begin_after_pause(&mut self) -> Result<()> {
        if self.takes_turns {
            return Ok(());
        }
        if self.load.pause.is_zero() {
            return self.begin_one();
        }
        self.pauses.push_back(Instant::now() + self.load.pause);
        Ok(())
    }

    fn handle_frame(&mut self, frame: &[u8]) -> Result<()> {
        let Some(segment) = Segment::parse(frame) else {
            return Ok(());
        };
        let Some(index) = self.flows.iter().position(|flow| flow.port == segment.port) else {
            return Ok(());
        };
        if segment.flags & RST != 0 {
            self.flows.swap_remove(index);
            self.outcome.lost += 1;
            return self.begin_after_pause();
        }
        let flow = &mut self.flows[index];
        match flow.state {
            State::SynSent if segment.flags & (SYN | ACK) == SYN | ACK => {
                flow.expects = segment.sequence.wrapping_add(1);
                let (port, sequence, expects) = (flow.port, flow.sequence, flow.expects);
                self.send(port, sequence, expects, ACK, None)?;
                self.request(index)
            }
            State::Requested if segment.sequence == flow.expects => self.handle_response(index, &segment),
            // We closed first, so the last acknowledgement is ours.
            State::Closing if self.load.kept_alive.is_some() => {
                if segment.flags & FIN != 0 {
                    let (port, sequence) = (flow.port, flow.sequence);
                    self.flows.swap_remove(index);
                    self.send(port, sequence, segment.sequence.wrapping_add(1), ACK, None)?;
                }
                Ok(())
            }
            State::Closing if segment.acknowledges == flow.sequence => {
                self.flows.swap_remove(index);
                self.outcome.exchanges += 1;
                self.begin_after_pause()
            }
            _ => Ok(()),
        }
    }

    /// Sends the flow's request.
    fn request(&mut self, index: usize) -> Result<()> {
        let flow = &mut self.flows[index];
        let bytes = self.load.requests.get(flow.request).map_or(0, Vec::len);
        let (port, sequence, expects, request) = (flow.port, flow.sequence, flow.expects, flow.request);
        flow.state = State::Requested;
        flow.sequence = sequence.wrapping_add(u32::try_from(bytes)?);
        flow.missing = self.load.kept_alive.unwrap_or_default();
        Ok(self.send(port, sequence, expects, PSH | ACK, Some(request))?)
    }

    fn handle_response(&mut self, index: usize, segment: &Segment<'_>) -> Result<()> {
        let flow = &mut self.flows[index];
        flow.expects = flow.expects.wrapping_add(u32::try_from(segment.payload.len())?);
        if self.outcome.exchanges == 0 && index == 0 {
            self.outcome.response.extend_from_slice(segment.payload);
        }
        let is_closed = segment.flags & FIN != 0;
        flow.expects = flow.expects.wrapping_add(u32::from(is_closed));
        flow.missing = flow.missing.saturating_sub(segment.payload.len());
        if self.load.kept_alive.is_some() && flow.missing == 0 && !is_closed {
            self.outcome.latencies.push(flow.begun.elapsed());
            self.outcome.exchanges += 1;
            flow.begun = Instant::now();
            if self.may_begin() {
                return self.request(index);
            }
            return self.close(index);
        }
        if is_closed {
            let took = flow.begun.elapsed();
            if self.load.kept_alive.is_some() {
                self.outcome.lost += 1;
            } else {
                self.outcome.latencies.push(took);
            }
            return self.close(index);
        }
        Ok(())
    }

    fn close(&mut self, index: usize) -> Result<()> {
        let flow = &mut self.flows[index];
        flow.state = State::Closing;
        let (port, sequence, expects) = (flow.port, flow.sequence, flow.expects);
        flow.sequence = sequence.wrapping_add(1);
        Ok(self.send(port, sequence, expects, FIN | ACK, None)?)
    }

    /// Gives up what is lost, and begins what has waited.
    fn handle_time(&mut self) -> Result<()> {
        let before = self.flows.len();
        self.flows.retain(|flow| flow.begun.elapsed() < LOST_AFTER);
        for _ in self.flows.len()..before {
            self.outcome.lost += 1;
            if !self.takes_turns {
                self.begin_one()?;
            }
        }
        let now = Instant::now();
        while self.pauses.front().is_some_and(|due| *due <= now) {
            self.pauses.pop_front();
            self.begin_one()?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        port: u16,
        sequence: u32,
        acknowledges: u32,
        flags: u8,
        request: Option<usize>,
    ) -> io::Result<()> {
        let request: &[u8] = request
            .and_then(|index| self.load.requests.get(index))
            .map_or(&[], Vec::as_slice);
        wire::write(&mut self.frame, port, sequence, acknowledges, flags, request);
        self.tap.send(&self.frame)
    }
}
