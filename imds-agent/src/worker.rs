//! One datapath thread: ring, stacks, taps.
//!
//! A worker owns its ring, the stacks of the interfaces whose frames come through it, and its timers. It reads the
//! current facts and waits for nobody.

mod answer;
mod interfaces;

use std::{
    io, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use imds_ebpf::abi::TapIndex;
use tokio::sync::{mpsc, oneshot};

pub use self::answer::Facts;
use self::interfaces::Interfaces;
use crate::{
    datapath::{Injector, PuntRing},
    imds::Imds,
    now::Now,
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

/// With more connections than this at once a worker does not spin: frames then come in crowds, and sleeping a moment makes
/// batches of them, which is worth more than an early answer to the first.
const SPIN_CONNECTIONS_MAX: usize = 3;

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// From now on the tap is this instance's. What connections it had are none of the instance's business.
    Serve(TapIndex, InstanceId),
    /// The tap is nobody's.
    Forget(TapIndex),
    /// End.
    Stop,
}

type Inbox = mpsc::UnboundedReceiver<Command>;

/// What wakes a worker.
enum Event {
    Command(Command),
    Frames,
    Deadline,
}

/// What a worker is made of.
#[derive(Debug)]
pub struct Worker {
    /// Where its frames come from.
    pub ring: PuntRing,
    /// Where its frames go.
    pub injector: Injector,
    /// What requests mean.
    pub imds: Imds,
    /// What answers are made of.
    pub facts: Facts,
}

/// Becomes ready when a worker has ended, whatever ended it.
pub type Ended = oneshot::Receiver<()>;

/// A running worker.
#[derive(Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    /// Starts the thread, numbered `number`, with what it is told before its first frame.
    pub fn start(self, number: usize, told: Vec<Command>) -> io::Result<(Handle, Ended)> {
        let (commands, inbox) = mpsc::unbounded_channel();
        for command in told {
            // The inbox is still here.
            let _ = commands.send(command);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        let (ends, ended) = oneshot::channel();
        let run = move || {
            // Dropped when the thread ends, by a panic too.
            let _ends: oneshot::Sender<()> = ends;
            if let Err(error) = runtime.block_on(self.run(inbox)) {
                log::error!("worker {number} ended: {error}");
            }
        };
        let thread = thread::Builder::new()
            .name(format!("imds-worker-{number}"))
            .spawn(run)?;
        Ok((Handle { commands, thread }, ended))
    }

    async fn run(self, mut inbox: Inbox) -> io::Result<()> {
        let clock = Clock::new();
        let mut ring = self.ring.into_async()?;
        let mut interfaces = Interfaces::new(self.facts, self.imds, self.injector);
        let mut has_more = false;
        loop {
            // Not by tokio's timer, which stands still for as long as frames keep coming.
            let now = clock.now();
            if interfaces
                .deadline()
                .is_some_and(|deadline| deadline <= now.monotonic)
            {
                interfaces.handle_deadlines(now)?;
            }
            let event = tokio::select! {
                biased;
                command = inbox.recv() => Event::Command(command.unwrap_or(Command::Stop)),
                () = clock.sleep_until(interfaces.deadline()) => Event::Deadline,
                () = std::future::ready(()), if has_more => Event::Frames,
                ready = ring.readable() => {
                    // The ring is drained from here on, and a frame that comes after that makes it ready again.
                    ready?.clear_ready();
                    Event::Frames
                }
            };
            match event {
                Event::Command(Command::Stop) => return Ok(()),
                Event::Command(command) => obey(command, &mut interfaces),
                Event::Deadline => interfaces.handle_deadlines(clock.now())?,
                Event::Frames => has_more = drain(ring.get_mut(), &mut interfaces, &clock, &mut inbox)?,
            }
        }
    }
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

/// Does all that the worker is told by now.
fn obey_all(inbox: &mut Inbox, interfaces: &mut Interfaces) {
    while let Ok(command) = inbox.try_recv() {
        if matches!(command, Command::Stop) {
            // The run loop finds the end of it, and ends.
            inbox.close();
        }
        obey(command, interfaces);
    }
}

/// Does what the worker is told. That it is to end is the run loop's business.
fn obey(command: Command, interfaces: &mut Interfaces) {
    match command {
        Command::Serve(tap, instance) => interfaces.serve(tap, instance),
        Command::Forget(tap) => interfaces.forget(tap),
        Command::Stop => {}
    }
}

/// Handles frames in batches until the ring is empty, and stays so for a while if the frames come singly. Returns whether
/// there may be more: however many come, commands and timers get their turn.
fn drain(
    ring: &mut PuntRing,
    interfaces: &mut Interfaces,
    clock: &Clock,
    inbox: &mut Inbox,
) -> io::Result<bool> {
    let mut last_frame = Instant::now();
    let mut batches = 0;
    while batches < BATCHES_MAX {
        let mut now = None;
        for _ in 0..BATCH_FRAMES {
            let Some(punt) = ring.next() else { break };
            if !interfaces.serves(punt.tap) {
                // The classifier was told of the tap after we were: the word is in the inbox.
                obey_all(inbox, interfaces);
            }
            interfaces.handle_punt(*now.get_or_insert_with(|| clock.now()), &punt);
        }
        match now {
            Some(now) => {
                interfaces.flush(now)?;
                last_frame = Instant::now();
                batches += 1;
            }
            None if interfaces.connections() > SPIN_CONNECTIONS_MAX || last_frame.elapsed() > SPIN => {
                return Ok(false);
            }
            None => std::hint::spin_loop(),
        }
    }
    Ok(true)
}

/// The only clock of a worker.
struct Clock {
    start: Instant,
}

impl Clock {
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

    async fn sleep_until(&self, deadline: Option<Duration>) {
        match deadline {
            Some(deadline) => tokio::time::sleep_until((self.start + deadline).into()).await,
            None => std::future::pending().await,
        }
    }
}
