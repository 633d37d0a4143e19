//! One datapath thread: ring, stacks, taps.
//!
//! A worker owns its ring, the stacks of the interfaces whose frames come through it, and its timers. It reads the
//! registry's and the credentials' current snapshots and waits for nobody.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use imds_ebpf::abi::{MacAddr, TapIndex};
use rand::Rng as _;
use tokio::sync::mpsc;

use crate::{
    credentials,
    datapath::{Injector, Punt, PuntRing},
    http::{Request, Response, Service},
    imds::{Caller, Imds, identity},
    now::Now,
    observe::Requests,
    registry::{self, Snapshot},
    stack::{Stack, Transmit},
};

/// Frames handled before the replies are sent. Enough to make batches of, few enough that the first reply of a crowd
/// does not wait for the last request of it.
const BATCH_FRAMES: usize = 64;

/// Bytes of an Ethernet header.
const ETHERNET_HEADER_BYTES: usize = 14;

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// The tap is gone or bound to somebody else: its connections are none of the next one's business.
    Forget(TapIndex),
    /// End.
    Stop,
}

/// What wakes a worker.
enum Event {
    Command(Command),
    Frames,
    Deadline,
}

/// What a worker is made of.
pub struct Worker {
    /// Where its frames come from.
    pub ring: PuntRing,
    /// Where its frames go.
    pub injector: Injector,
    /// What requests mean.
    pub imds: Imds,
    /// Who is who.
    pub registry: Arc<registry::Published>,
    /// The role sessions.
    pub credentials: Arc<credentials::Published>,
    /// The signed identity documents.
    pub identities: Arc<identity::Published>,
    /// What became of requests.
    pub requests: Arc<Requests>,
}

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
}

impl Handle {
    /// Tells the worker something.
    pub fn tell(&self, command: Command) {
        // A worker that ended has nothing to be told.
        let _ = self.commands.send(command);
    }

    /// Ends the worker and waits for it.
    pub fn stop(self) {
        self.tell(Command::Stop);
        if self.thread.join().is_err() {
            log::error!("a worker panicked");
        }
    }
}

impl Worker {
    /// Starts the thread, numbered `number`.
    pub fn start(self, number: usize) -> io::Result<Handle> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let thread = thread::Builder::new()
            .name(format!("imds-worker-{number}"))
            .spawn(move || {
                if let Err(error) = runtime.block_on(self.run(inbox)) {
                    log::error!("worker {number} ended: {error}");
                }
            })?;
        Ok(Handle { commands, thread })
    }

    async fn run(self, mut inbox: mpsc::UnboundedReceiver<Command>) -> io::Result<()> {
        let Self {
            ring,
            mut injector,
            imds,
            registry,
            credentials,
            identities,
            requests,
        } = self;
        let mut ring = ring.into_async()?;
        let mut interfaces = Interfaces {
            clock: Clock::new(),
            imds,
            registry,
            credentials,
            identities,
            requests,
            stacks: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: Vec::new(),
        };
        loop {
            let event = tokio::select! {
                biased;
                command = inbox.recv() => Event::Command(command.unwrap_or(Command::Stop)),
                ready = ring.readable() => {
                    // The ring is drained below until it is empty, and only a later frame makes it ready again.
                    ready?.clear_ready();
                    Event::Frames
                }
                () = interfaces.until_deadline() => Event::Deadline,
            };
            match event {
                Event::Command(Command::Stop) => return Ok(()),
                Event::Command(Command::Forget(tap)) => interfaces.forget(tap),
                Event::Frames => interfaces.handle_frames(ring.get_mut(), &mut injector)?,
                Event::Deadline => interfaces.handle_deadlines(&mut injector)?,
            }
        }
    }
}

/// The stacks of a worker, and all that answers their requests.
struct Interfaces {
    clock: Clock,
    imds: Imds,
    registry: Arc<registry::Published>,
    credentials: Arc<credentials::Published>,
    identities: Arc<identity::Published>,
    requests: Arc<Requests>,
    /// Only of taps with connections: an idle instance has nothing here.
    stacks: HashMap<TapIndex, InterfaceStack>,
    deadlines: BTreeSet<(Duration, TapIndex)>,
    /// Taps with frames in the current batch.
    touched: Vec<TapIndex>,
}

struct InterfaceStack {
    mac: MacAddr,
    stack: Stack,
    /// Its entry in the deadlines.
    deadline: Option<Duration>,
    is_touched: bool,
}

impl Interfaces {
    fn handle_frames(&mut self, ring: &mut PuntRing, injector: &mut Injector) -> io::Result<()> {
        loop {
            let now = self.clock.now();
            let mut frames = 0;
            while frames < BATCH_FRAMES
                && let Some(punt) = ring.next()
            {
                self.handle_punt(now, &punt, injector);
                frames += 1;
            }
            self.flush_touched(now, injector);
            injector.flush()?;
            if frames < BATCH_FRAMES {
                return Ok(());
            }
        }
    }

    fn handle_punt(&mut self, now: Now, punt: &Punt<'_>, injector: &mut Injector) {
        log::trace!(
            "frame of {} bytes from tap {} {}",
            punt.frame.len(),
            punt.tap,
            punt.mac
        );
        let Some(packet) = punt.frame.get(ETHERNET_HEADER_BYTES..) else {
            return;
        };
        let interface = match self.stacks.entry(punt.tap) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(InterfaceStack::new(now, punt.mac)),
        };
        if interface.mac != punt.mac {
            // The tap was bound anew and the word of it is still on its way to us.
            *interface = InterfaceStack {
                deadline: interface.deadline,
                ..InterfaceStack::new(now, punt.mac)
            };
        }
        if !interface.is_touched {
            interface.is_touched = true;
            self.touched.push(punt.tap);
        }
        let mut service = Answer {
            imds: &mut self.imds,
            snapshot: &self.registry.load(),
            credentials: &self.credentials,
            identities: &self.identities,
            requests: &self.requests,
            mac: punt.mac,
        };
        let mut transmit = TapTransmit {
            injector,
            tap: punt.tap,
            mac: punt.mac,
        };
        interface
            .stack
            .handle_packet(now, packet, &mut service, &mut transmit);
    }

    fn flush_touched(&mut self, now: Now, injector: &mut Injector) {
        let mut touched = std::mem::take(&mut self.touched);
        for tap in touched.drain(..) {
            let Some(interface) = self.stacks.get_mut(&tap) else {
                continue;
            };
            interface.is_touched = false;
            interface.stack.flush(
                now,
                &mut TapTransmit {
                    injector,
                    tap,
                    mac: interface.mac,
                },
            );
            self.settle(now, tap);
        }
        self.touched = touched;
    }

    fn handle_deadlines(&mut self, injector: &mut Injector) -> io::Result<()> {
        let now = self.clock.now();
        while let Some(&(deadline, tap)) = self.deadlines.first()
            && deadline <= now.monotonic
        {
            self.deadlines.pop_first();
            let Some(interface) = self.stacks.get_mut(&tap) else {
                continue;
            };
            interface.deadline = None;
            let mut service = Answer {
                imds: &mut self.imds,
                snapshot: &self.registry.load(),
                credentials: &self.credentials,
                identities: &self.identities,
                requests: &self.requests,
                mac: interface.mac,
            };
            let mut transmit = TapTransmit {
                injector,
                tap,
                mac: interface.mac,
            };
            interface.stack.handle_timeout(now, &mut service, &mut transmit);
            self.settle(now, tap);
        }
        injector.flush()
    }

    /// Files the stack of `tap` under its next deadline, or forgets it when it remembers nothing.
    fn settle(&mut self, now: Now, tap: TapIndex) {
        let Some(interface) = self.stacks.get_mut(&tap) else {
            return;
        };
        let deadline = interface
            .stack
            .poll_timeout(now)
            .map(|due| due.max(now.monotonic + Clock::TICK));
        if deadline != interface.deadline {
            if let Some(old) = interface.deadline {
                self.deadlines.remove(&(old, tap));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, tap));
            }
            interface.deadline = deadline;
        }
        if interface.stack.is_idle() {
            self.forget(tap);
        }
    }

    fn forget(&mut self, tap: TapIndex) {
        if let Some(InterfaceStack {
            deadline: Some(deadline),
            ..
        }) = self.stacks.remove(&tap)
        {
            self.deadlines.remove(&(deadline, tap));
        }
    }

    async fn until_deadline(&self) {
        match self.deadlines.first() {
            Some((deadline, _)) => tokio::time::sleep_until(self.clock.instant(*deadline).into()).await,
            None => std::future::pending().await,
        }
    }
}

impl InterfaceStack {
    fn new(now: Now, mac: MacAddr) -> Self {
        Self {
            mac,
            stack: Stack::new(now, rand::rng().next_u64()),
            deadline: None,
            is_touched: false,
        }
    }
}

/// Answers one interface's requests.
struct Answer<'a> {
    imds: &'a mut Imds,
    snapshot: &'a Snapshot,
    credentials: &'a credentials::Published,
    identities: &'a identity::Published,
    requests: &'a Requests,
    mac: MacAddr,
}

impl Service for Answer<'_> {
    fn respond(&mut self, now: Now, request: &Request<'_>, response: &mut Response) {
        let outcome = match self.snapshot.interface(self.mac) {
            None => self.imds.respond(now, None, request, response),
            Some((member, interface)) => {
                let role = member.role.as_ref();
                let state = role.and_then(|role| {
                    self.credentials
                        .state(&member.instance.instance_id, &role.role_name, now.timestamp())
                });
                let caller = Caller {
                    member,
                    interface,
                    role_state: state.as_ref(),
                    identities: self.identities,
                };
                self.imds.respond(now, Some(&caller), request, response)
            }
        };
        self.requests.count(&outcome);
    }
}

/// Puts the packets of one interface into frames for its tap.
struct TapTransmit<'a> {
    injector: &'a mut Injector,
    tap: TapIndex,
    mac: MacAddr,
}

impl Transmit for TapTransmit<'_> {
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        self.injector.push(self.tap, self.mac, length, fill)
    }
}

/// The only clock of a worker.
struct Clock {
    start: Instant,
}

impl Clock {
    /// The finest step that timers are told apart by.
    const TICK: Duration = Duration::from_millis(1);

    fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    fn now(&self) -> Now {
        // A clock before 1970 makes every token expired, which is the safe side.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic: self.start.elapsed(),
            unix,
        }
    }

    fn instant(&self, monotonic: Duration) -> Instant {
        self.start + monotonic
    }
}
