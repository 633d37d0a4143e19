//! The stacks of one worker and their timers.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    io,
    sync::Arc,
    time::Duration,
};

use imds_ebpf::abi::{MacAddr, TapIndex};
use rand::Rng as _;

use super::answer::{Answer, Facts};
use crate::{
    datapath::{Injector, Punt, PuntRing, punt},
    imds::Imds,
    now::Now,
    observe::{
        Unsent,
        worker_health::{Counted, Report},
    },
    registry::InstanceId,
    stack::{Stack, Transmit},
};

/// Bytes of an Ethernet header.
const ETHERNET_HEADER_BYTES: usize = 14;

/// The finest step that timers are told apart by.
const TICK: Duration = Duration::from_millis(1);

/// The stacks, and all that answers their requests.
pub struct Interfaces {
    facts: Facts,
    imds: Imds,
    injector: Injector,
    /// Only of taps with connections: an idle instance has nothing here.
    stacks: HashMap<TapIndex, InterfaceStack>,
    /// Whose each tap is.
    owners: HashMap<TapIndex, InstanceId>,
    deadlines: BTreeSet<(Duration, TapIndex)>,
    /// Taps with frames since the last flush.
    touched: Vec<TapIndex>,
    /// Connections of all stacks, as of the last flush of each.
    connections: usize,
    /// Requests whose answers are not with the kernel yet.
    unsent: Unsent,
    report: Report,
}

struct InterfaceStack {
    mac: MacAddr,
    stack: Stack,
    /// Its entry in the deadlines.
    deadline: Option<Duration>,
    /// Its part of the connections.
    connections: usize,
    is_touched: bool,
}

impl Interfaces {
    /// No stack yet.
    pub fn new(facts: Facts, imds: Imds, injector: Injector) -> Self {
        Self {
            unsent: Unsent::default(),
            report: Report::new(Arc::clone(&facts.health)),
            facts,
            imds,
            injector,
            stacks: HashMap::new(),
            owners: HashMap::new(),
            deadlines: BTreeSet::new(),
            touched: Vec::new(),
            connections: 0,
        }
    }

    /// Connections of all interfaces, half-open ones included.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// When [`handle_deadlines`](Self::handle_deadlines) has something to do, on the monotonic clock.
    pub fn deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes one frame to its interface's stack.
    pub fn handle_punt(&mut self, now: Now, punt: &Punt<'_>) {
        let &Punt { tap, mac, frame, .. } = punt;
        log::trace!("frame of {} bytes from tap {tap} {mac}", frame.len());
        let Some(packet) = frame.get(ETHERNET_HEADER_BYTES..) else {
            return;
        };
        if self
            .stacks
            .get(&tap)
            .is_some_and(|interface| interface.mac != mac)
        {
            // The tap was bound anew and the word of it is still on its way to us.
            self.drop_stack(tap);
        }
        let interface = match self.stacks.entry(tap) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(InterfaceStack::new(now, mac)),
        };
        if !interface.is_touched {
            interface.is_touched = true;
            self.touched.push(tap);
        }
        let mut service = Answer::new(&self.facts, &mut self.imds, mac, self.owners.get(&tap))
            .noting(&mut self.unsent, Some(punt.arrived));
        let mut transmit = TapTransmit {
            injector: &mut self.injector,
            tap,
            mac,
        };
        interface
            .stack
            .handle_packet(now, packet, &mut service, &mut transmit);
    }

    /// Sends what the stacks that got frames have to say.
    pub fn flush(&mut self, now: Now) -> io::Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        for tap in touched.drain(..) {
            let Some(interface) = self.stacks.get_mut(&tap) else {
                continue;
            };
            interface.is_touched = false;
            let mut transmit = TapTransmit {
                injector: &mut self.injector,
                tap,
                mac: interface.mac,
            };
            interface.stack.flush(now, &mut transmit);
            self.settle(now, tap);
        }
        self.touched = touched;
        self.send()
    }

    /// Lets the stacks act whose time has come.
    pub fn handle_deadlines(&mut self, now: Now) -> io::Result<()> {
        while let Some(&(deadline, tap)) = self.deadlines.first()
            && deadline <= now.monotonic
        {
            self.deadlines.pop_first();
            let Some(interface) = self.stacks.get_mut(&tap) else {
                continue;
            };
            interface.deadline = None;
            let mut service = Answer::new(&self.facts, &mut self.imds, interface.mac, self.owners.get(&tap))
                .noting(&mut self.unsent, None);
            let mut transmit = TapTransmit {
                injector: &mut self.injector,
                tap,
                mac: interface.mac,
            };
            interface.stack.handle_timeout(now, &mut service, &mut transmit);
            self.settle(now, tap);
        }
        self.send()
    }

    /// Tells operators how the worker fares, whose ring is `ring`.
    pub fn report(&mut self, ring: &PuntRing) {
        let counted = Counted {
            malformed: ring.malformed(),
            stale: ring.stale(),
            injected: self.injector.sent(),
            lost: self.injector.lost(),
        };
        self.report.tell(counted, self.connections);
    }

    /// Whether `tap` is anybody's.
    pub fn serves(&self, tap: TapIndex) -> bool {
        self.owners.contains_key(&tap)
    }

    /// Serves `tap` as `instance`'s, without the connections that it had.
    pub fn serve(&mut self, tap: TapIndex, instance: InstanceId) {
        self.drop_stack(tap);
        self.owners.insert(tap, instance);
    }

    /// Serves nobody on `tap`.
    pub fn forget(&mut self, tap: TapIndex) {
        self.drop_stack(tap);
        self.owners.remove(&tap);
    }

    /// Hands what is queued to the kernel.
    fn send(&mut self) -> io::Result<()> {
        self.injector.flush()?;
        let Facts { requests, trace, .. } = &self.facts;
        self.unsent.handle_sent(punt::clock, &requests.latency, trace);
        Ok(())
    }

    fn drop_stack(&mut self, tap: TapIndex) {
        let Some(interface) = self.stacks.remove(&tap) else {
            return;
        };
        self.connections -= interface.connections;
        if let Some(deadline) = interface.deadline {
            self.deadlines.remove(&(deadline, tap));
        }
    }

    /// Files the stack of `tap` under its next deadline, or forgets it when it remembers nothing.
    fn settle(&mut self, now: Now, tap: TapIndex) {
        let Some(interface) = self.stacks.get_mut(&tap) else {
            return;
        };
        self.connections -= interface.connections;
        interface.connections = interface.stack.connection_count();
        self.connections += interface.connections;
        let due = interface.stack.poll_timeout(now);
        let deadline = due.map(|due| due.max(now.monotonic + TICK));
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
            self.drop_stack(tap);
        }
    }
}

impl InterfaceStack {
    fn new(now: Now, mac: MacAddr) -> Self {
        let stack = Stack::new(now, rand::rng().next_u64());
        Self {
            mac,
            stack,
            deadline: None,
            connections: 0,
            is_touched: false,
        }
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
