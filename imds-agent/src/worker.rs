//! One datapath thread: ring, stacks, taps.
//!
//! A worker owns its ring, the stacks of the interfaces whose frames come through it, and its timers. It reads the
//! current facts and waits for nobody. It does so without any privilege ([`crate::privilege`]), and goes on after a panic.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

mod answer;
mod deadlines;
mod interfaces;
mod panics;
mod usage;

use std::{
    cell::Cell,
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender, SyncSender, TryRecvError},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use imds_ebpf::abi::{NamespaceNumber, TapIndex};
use tokio::sync::oneshot;

pub use self::{answer::Facts, usage::Usage};
use self::{interfaces::Interfaces, panics::TooOften};
use crate::{
    datapath::{Alarm, Injector, PacketSocket, PuntRing},
    imds::Imds,
    now::Now,
    privilege::sandbox::{ConfineError, confine},
    registry::InstanceId,
};

/// Frames handled before the replies are sent. Enough to make batches of, few enough that the first reply of a crowd
/// does not wait for the last request of it.
const BATCH_FRAMES: usize = 64;

/// Batches handled before commands and timers get their turn.
const BATCHES_MAX: usize = 16;

/// How long a worker looks at its ring after a frame before it sleeps: a little longer than a guest takes from one
/// segment of an exchange to the next, and less than it takes to be woken twice.
const SPIN: Duration = Duration::from_micros(30);

/// With more connections than this at once a worker does not spin: frames then come in crowds, and a nap makes batches of
/// them, which is worth more than an early answer to the first.
const SPIN_CONNECTIONS_MAX: usize = 3;

/// How long a worker naps to let a crowd gather. A nap costs a timer interrupt and nobody's wake-up.
const NAP: Duration = Duration::from_micros(20);

/// A crowd of which nothing came for so long is over: the worker sleeps until it is woken.
const LULL: Duration = Duration::from_micros(100);

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// From now on the tap is this instance's. Connections that were another's are none of its business.
    Serve(TapIndex, InstanceId),
    /// The tap is nobody's.
    Forget(TapIndex),
    /// Where frames for the taps of another network namespace go from now on.
    OpenNamespace(NamespaceNumber, PacketSocket),
    /// There are no such taps any more.
    CloseNamespace(NamespaceNumber),
    /// Tell what taps use of their limits.
    TellUsage(oneshot::Sender<Usage>),
    /// End.
    Stop,
}

/// Why a worker ends that was not told to.
#[derive(Debug, thiserror::Error)]
enum WorkerError {
    /// It would have more privileges than it should.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Its ring or its socket is broken.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It keeps panicking.
    #[error(transparent)]
    Panics(#[from] TooOften),
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Worker {
    /// What its clock counts from: the same for all, since others compare what they note.
    pub started: Instant,
    /// Where its frames come from.
    pub ring: PuntRing,
    /// Where its frames go.
    pub injector: Injector,
    /// What requests mean.
    pub imds: Imds,
    /// What answers are made of.
    pub facts: Facts,
}

/// A worker at work: what outlives a panic.
struct Serving {
    clock: Clock,
    alarm: Alarm,
    ring: PuntRing,
    interfaces: Interfaces,
    inbox: Receiver<Command>,
    is_stopped: bool,
}

/// Becomes ready when a worker has ended, whatever ended it.
pub type Ended = oneshot::Receiver<()>;

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    commands: Sender<Command>,
    alarm: Alarm,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    /// Starts the thread, numbered `number`, with what it is told before its first frame.
    pub fn start(self, number: usize, told: Vec<Command>) -> io::Result<(Handle, Ended)> {
        let (commands, inbox) = mpsc::channel();
        for command in told {
            // The inbox is still here.
            let _ = commands.send(command);
        }
        let alarm = Alarm::new()?;
        let (ends, ended) = oneshot::channel();
        let (begins, begun) = mpsc::sync_channel(1);
        let sleeps_by = alarm.clone();
        let run = move || {
            // Dropped when the thread ends, by a panic too.
            let _ends: oneshot::Sender<()> = ends;
            Alarm::be_exact();
            if let Err(error) = self.serve(number, sleeps_by, inbox, &begins) {
                log::error!("worker {number} ended: {error:#}");
            }
        };
        let thread = thread::Builder::new()
            .name(format!("imds-worker-{number}"))
            .spawn(run)?;
        // Whoever says that it serves says so of a thread that is confined already.
        begun
            .recv()
            .map_err(|_| io::Error::other("the worker ended before it began"))?;
        Ok((
            Handle {
                commands,
                alarm,
                thread,
            },
            ended,
        ))
    }

    fn serve(
        self,
        number: usize,
        alarm: Alarm,
        inbox: Receiver<Command>,
        begins: &SyncSender<()>,
    ) -> Result<(), WorkerError> {
        let confined = confine()?;
        log::info!("worker {number}: no capabilities, {confined}");
        // There is room for it, and who waits is there.
        let _ = begins.send(());
        self.work(number, alarm, inbox)
    }

    /// Serves until it is told to stop, whatever panics.
    fn work(self, number: usize, alarm: Alarm, inbox: Receiver<Command>) -> Result<(), WorkerError> {
        let (start, panics) = (self.started, Arc::clone(&self.facts.panics));
        let mut serving = Serving {
            clock: Clock::new(start),
            alarm,
            ring: self.ring,
            interfaces: Interfaces::new(self.facts, self.imds, self.injector),
            inbox,
            is_stopped: false,
        };
        let recover = |serving: &mut Serving, pause| {
            log::error!("worker {number} drops all connections and goes on in {pause:?}");
            serving.interfaces.drop_all_stacks();
            thread::sleep(pause);
        };
        Ok(panics::supervise(
            &mut serving,
            &panics,
            || start.elapsed(),
            Serving::run,
            recover,
        )??)
    }
}

impl Serving {
    fn run(&mut self) -> io::Result<()> {
        while !self.is_stopped {
            self.is_stopped |= obey_all(&self.inbox, &mut self.interfaces, &self.clock);
            let has_more = self.drain()?;
            self.interfaces.report(&self.ring);
            let now = self.clock.now();
            let is_due = |due: Duration| due <= now.monotonic;
            if self.interfaces.quiet_until().is_some_and(is_due) {
                self.interfaces.handle_deadlines(now)?;
            } else if !has_more && !self.is_stopped && self.ring.rest() {
                let due = self.interfaces.deadline();
                let left = due.map(|due| due.saturating_sub(now.monotonic));
                self.alarm.sleep(&self.ring, left)?;
            }
        }
        Ok(())
    }

    /// Handles frames in batches until the ring is empty, and stays so for a while if the frames come singly. Returns whether
    /// there may be more: however many come, commands and timers get their turn.
    fn drain(&mut self) -> io::Result<bool> {
        let mut last_frame = None;
        let mut batches = 0;
        while batches < BATCHES_MAX {
            let mut now = None;
            for _ in 0..BATCH_FRAMES {
                let Some(punt) = self.ring.next() else { break };
                if !self.interfaces.serves(punt.tap) {
                    // The classifier was told of the tap after we were: the word is in the inbox.
                    self.is_stopped |= obey_all(&self.inbox, &mut self.interfaces, &self.clock);
                    if !self.interfaces.serves(punt.tap) {
                        // It is nobody's by now, or another worker's since the last agent: its guest asks again.
                        self.interfaces.pass_over();
                        continue;
                    }
                }
                let now = *now.get_or_insert_with(|| self.clock.now());
                self.interfaces.handle_punt(now, &punt);
            }
            match now {
                Some(now) => {
                    self.interfaces.flush(now)?;
                    last_frame = Some(now.monotonic);
                    batches = batches.saturating_add(1);
                }
                None => match last_frame.map(|last| self.clock.monotonic().saturating_sub(last)) {
                    Some(quiet) if self.interfaces.connections() > SPIN_CONNECTIONS_MAX && quiet < LULL => {
                        thread::sleep(NAP);
                    }
                    Some(quiet) if self.interfaces.connections() <= SPIN_CONNECTIONS_MAX && quiet < SPIN => {
                        std::hint::spin_loop();
                    }
                    _ => return Ok(false),
                },
            }
        }
        Ok(true)
    }
}

impl Handle {
    /// Tells the worker something.
    pub fn tell(&self, command: Command) {
        // A worker that ended has nothing to be told.
        let _ = self.commands.send(command);
        self.alarm.ring();
    }

    /// Ends the worker and waits for it.
    pub fn stop(self) {
        self.tell(Command::Stop);
        if self.thread.join().is_err() {
            log::error!("a worker panicked");
        }
    }
}

/// Does all that the worker is told by now. Returns whether it is to end.
fn obey_all(inbox: &Receiver<Command>, interfaces: &mut Interfaces, clock: &Clock) -> bool {
    loop {
        match inbox.try_recv() {
            Ok(Command::Serve(tap, instance)) => interfaces.serve(tap, instance),
            Ok(Command::Forget(tap)) => interfaces.forget(tap),
            Ok(Command::OpenNamespace(namespace, socket)) => interfaces.open_namespace(namespace, socket),
            Ok(Command::CloseNamespace(namespace)) => interfaces.close_namespace(namespace),
            Ok(Command::TellUsage(asker)) => {
                // Who no longer waits is told nothing.
                let _ = asker.send(interfaces.usage(clock.now()));
            }
            Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return true,
            Err(TryRecvError::Empty) => return false,
        }
    }
}

/// How long the time of day is reckoned from its last reading. A clock that was set is believed after that.
const UNIX_READ_EVERY: Duration = Duration::from_millis(10);

/// The only clock of a worker.
struct Clock {
    start: Instant,
    /// When the time of day was read, and what it was.
    unix: Cell<Option<Now>>,
}

impl Clock {
    fn new(start: Instant) -> Self {
        Self {
            start,
            unix: Cell::new(None),
        }
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn now(&self) -> Now {
        let monotonic = self.monotonic();
        if let Some(read) = self.unix.get() {
            let since = monotonic.saturating_sub(read.monotonic);
            if since < UNIX_READ_EVERY {
                let unix = read.unix.saturating_add(since);
                return Now { monotonic, unix };
            }
        }
        // A clock before 1970 stands still, and no token from before it did is worth anything.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Now { monotonic, unix };
        self.unix.set(Some(now));
        now
    }
}

#[cfg(test)]
mod noting_tests;
#[cfg(test)]
mod panic_tests;
