//! The stacks of one worker and their timers.

use std::{collections::hash_map::Entry, io, sync::Arc, time::Duration};

use imds_ebpf::abi::{MacAddr, NamespaceNumber, TapIndex};
use rand::Rng as _;
use rustc_hash::FxHashMap;

use super::{
    answer::{Answer, Facts, Origin},
    deadlines::Deadlines,
    panics::{Convalescent, survive},
    usage::Usage,
};
use crate::{
    datapath::{Injector, PacketSocket, Punt, PuntRing, punt},
    imds::Imds,
    now::Now,
    observe::{
        Unsent,
        worker_health::{Counted, Report},
    },
    registry::InstanceId,
    request_rate::RequestBuckets,
    stack::{Spares, Stack, Transmit},
};

/// Bytes of an Ethernet header.
const ETHERNET_HEADER_BYTES: usize = 14;

/// The finest step that timers are told apart by.
const TICK: Duration = Duration::from_millis(1);

/// Taps whose time has come that are served at once, before frames get their turn. What each may have to send again then is a
/// megabyte.
const DUE_MAX: usize = 16;

/// The stacks, and all that answers their requests.
pub struct Interfaces {
    facts: Facts,
    imds: Imds,
    injector: Injector,
    buckets: RequestBuckets<TapIndex>,
    spares: Spares,
    /// Only of taps with connections: an idle instance has nothing here.
    stacks: FxHashMap<TapIndex, InterfaceStack>,
    /// Whose each tap is.
    owners: FxHashMap<TapIndex, InstanceId>,
    deadlines: Deadlines,
    /// Taps with frames since the last flush.
    touched: Vec<TapIndex>,
    /// Taps whose stack panicked.
    convalescents: FxHashMap<TapIndex, Convalescent>,
    /// Connections of all stacks, as of the last flush of each.
    connections: usize,
    /// Requests whose answers are not with the kernel yet.
    unsent: Unsent,
    /// What of the frames and connections was not taken, of all stacks.
    refused: Counted,
    report: Report,
}

struct InterfaceStack {
    mac: MacAddr,
    stack: Stack,
    /// Its part of the connections.
    connections: usize,
    is_touched: bool,
}

impl Interfaces {
    /// No stack yet.
    pub fn new(facts: Facts, imds: Imds, injector: Injector) -> Self {
        Self {
            buckets: RequestBuckets::new(facts.requests_per_second),
            unsent: Unsent::default(),
            refused: Counted::default(),
            report: Report::new(Arc::clone(&facts.health)),
            facts,
            imds,
            injector,
            spares: Spares::default(),
            stacks: FxHashMap::default(),
            owners: FxHashMap::default(),
            deadlines: Deadlines::default(),
            touched: Vec::new(),
            convalescents: FxHashMap::default(),
            connections: 0,
        }
    }

    /// Connections of all interfaces, half-open ones included.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Until when [`handle_deadlines`](Self::handle_deadlines) has nothing to do, on the monotonic clock.
    pub fn quiet_until(&self) -> Option<Duration> {
        self.deadlines.quiet_until()
    }

    /// When it has something to do: what to sleep until.
    pub fn deadline(&mut self) -> Option<Duration> {
        self.deadlines.first(Duration::MAX).map(|(due, _)| due)
    }

    /// Takes one frame to its interface's stack.
    pub fn handle_punt(&mut self, now: Now, punt: &Punt<'_>) {
        let &Punt { tap, mac, frame, .. } = punt;
        log::trace!("frame of {} bytes from tap {tap} {mac}", frame.len());
        let Some(packet) = frame.get(ETHERNET_HEADER_BYTES..) else {
            self.refused.frames_malformed = self.refused.frames_malformed.saturating_add(1);
            return;
        };
        if !self.convalescents.is_empty() && self.rests(now, tap) {
            self.refused.frames_paused = self.refused.frames_paused.saturating_add(1);
            return;
        }
        let interface = match self.stacks.entry(tap) {
            Entry::Occupied(entry) if entry.get().mac == mac => entry.into_mut(),
            Entry::Occupied(mut entry) => {
                // The tap was bound anew and the word of it is still on its way to us.
                let anew = InterfaceStack::new(now, mac, &self.spares);
                let last = entry.insert(anew);
                self.connections = self.connections.saturating_sub(last.connections);
                entry.into_mut()
            }
            Entry::Vacant(entry) => entry.insert(InterfaceStack::new(now, mac, &self.spares)),
        };
        if !interface.is_touched {
            interface.is_touched = true;
            self.touched.push(tap);
        }
        let origin = Origin {
            tap,
            mac,
            owner: self.owners.get(&tap),
        };
        let mut service = Answer::new(&self.facts, &mut self.imds, &mut self.buckets, origin)
            .noting(&mut self.unsent, Some(punt.arrived));
        let mut transmit = TapTransmit {
            injector: &mut self.injector,
            tap,
            mac,
        };
        let stack = &mut interface.stack;
        if survive(|| stack.handle_packet(now, packet, &mut service, &mut transmit)).is_none() {
            self.handle_panic(now, tap);
        }
    }

    /// A frame of a tap came that is [not served](Self::serves).
    pub fn pass_over(&mut self) {
        self.refused.frames_not_served = self.refused.frames_not_served.saturating_add(1);
    }

    /// Sends what the stacks that got frames have to say.
    pub fn flush(&mut self, now: Now) -> io::Result<()> {
        let mut touched = std::mem::take(&mut self.touched);
        for &tap in &touched {
            let Some(interface) = self.stacks.get_mut(&tap) else {
                continue;
            };
            interface.is_touched = false;
            let mut transmit = TapTransmit {
                injector: &mut self.injector,
                tap,
                mac: interface.mac,
            };
            if survive(|| interface.stack.flush(now, &mut transmit)).is_none() {
                self.handle_panic(now, tap);
            }
        }
        // Guests need not wait for what is only to be noted.
        let sent = self.send();
        for tap in touched.drain(..) {
            self.settle(now, tap);
        }
        self.touched = touched;
        sent
    }

    /// Lets the stacks act whose time has come, [so many](DUE_MAX) of them: with more [`quiet_until`](Self::quiet_until) stays where
    /// it is.
    pub fn handle_deadlines(&mut self, now: Now) -> io::Result<()> {
        for _ in 0..DUE_MAX {
            let Some((_, tap)) = self.deadlines.first(now.monotonic) else {
                break;
            };
            let Some(interface) = self.stacks.get_mut(&tap) else {
                self.deadlines.set(tap, None);
                continue;
            };
            let origin = Origin {
                tap,
                mac: interface.mac,
                owner: self.owners.get(&tap),
            };
            let mut service = Answer::new(&self.facts, &mut self.imds, &mut self.buckets, origin)
                .noting(&mut self.unsent, None);
            let mut transmit = TapTransmit {
                injector: &mut self.injector,
                tap,
                mac: interface.mac,
            };
            let stack = &mut interface.stack;
            match survive(|| stack.handle_timeout(now, &mut service, &mut transmit)) {
                Some(()) => self.settle(now, tap),
                None => self.handle_panic(now, tap),
            }
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
            ..self.refused
        };
        self.report.tell(counted, self.connections);
    }

    /// Sends to the taps of another network namespace, too, from now on.
    pub fn open_namespace(&mut self, namespace: NamespaceNumber, socket: PacketSocket) {
        self.injector.open_namespace(namespace, socket);
    }

    /// Lets go of another network namespace.
    pub fn close_namespace(&mut self, namespace: NamespaceNumber) {
        self.injector.close_namespace(namespace);
    }

    /// Whether `tap` is anybody's.
    pub fn serves(&self, tap: TapIndex) -> bool {
        self.owners.contains_key(&tap)
    }

    /// Serves `tap` as `instance`'s. Connections of another's end; its own go on, because every tap is told again when the
    /// kernel had too much to tell, and nobody is to notice that.
    pub fn serve(&mut self, tap: TapIndex, instance: InstanceId) {
        if self.owners.get(&tap) != Some(&instance) {
            self.forget(tap);
            self.owners.insert(tap, instance);
        }
    }

    /// What taps use of their limits.
    pub fn usage(&self, now: Now) -> Usage {
        let connections = self
            .stacks
            .iter()
            .map(|(tap, interface)| (*tap, interface.connections));
        Usage {
            requests_left: self.buckets.left(now.monotonic),
            connections: connections.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// Serves nobody on `tap`.
    pub fn forget(&mut self, tap: TapIndex) {
        self.owners.remove(&tap);
        self.drop_stack(tap);
        self.buckets.forget(tap);
        self.convalescents.remove(&tap);
    }

    /// Drops all connections, after a panic that nobody in particular caused. Whose the taps are stays.
    pub fn drop_all_stacks(&mut self) {
        self.stacks.clear();
        self.deadlines.clear();
        self.touched.clear();
        self.connections = 0;
        self.unsent = Unsent::default();
        self.injector.clear();
    }

    /// The stack of `tap` panicked, and nobody knows what state it is in. Nothing else is: what it left half done outside are
    /// the bytes of a frame that was not queued.
    fn handle_panic(&mut self, now: Now, tap: TapIndex) {
        self.drop_stack(tap);
        let convalescent = self.convalescents.entry(tap).or_default();
        let pause = convalescent.handle_panic(now.monotonic, &self.facts.panics);
        let instance = self.owners.get(&tap).map_or("nobody", InstanceId::as_str);
        log::error!(
            "tap {tap} of {instance}: its stack panicked; its connections are dropped, and its frames for {pause:?}"
        );
    }

    fn rests(&self, now: Now, tap: TapIndex) -> bool {
        let convalescent = self.convalescents.get(&tap);
        convalescent.is_some_and(|convalescent| convalescent.rests(now.monotonic))
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
        self.connections = self.connections.saturating_sub(interface.connections);
        self.deadlines.set(tap, None);
    }

    /// Files the stack of `tap` under its next deadline, or forgets it when it remembers nothing.
    fn settle(&mut self, now: Now, tap: TapIndex) {
        let Some(interface) = self.stacks.get_mut(&tap) else {
            return;
        };
        self.connections = self.connections.saturating_sub(interface.connections);
        interface.connections = interface.stack.connection_count();
        self.connections = self.connections.saturating_add(interface.connections);
        while let Some(undelivered) = interface.stack.poll_undelivered() {
            if let Some(instance) = self.owners.get(&tap) {
                self.facts.guests.saw_undelivered(now, instance, undelivered);
            }
        }
        let refused = interface.stack.take_refused();
        let add = |sum: &mut u64, more| *sum = sum.saturating_add(more);
        add(&mut self.refused.frames_malformed, refused.malformed);
        add(&mut self.refused.connections_reset, refused.reset);
        add(&mut self.refused.syns_dropped, refused.dropped);
        let due = interface.stack.poll_timeout();
        self.deadlines
            .set(tap, due.map(|due| due.max(now.monotonic.saturating_add(TICK))));
        if interface.stack.is_idle() {
            self.drop_stack(tap);
        }
    }
}

impl InterfaceStack {
    fn new(now: Now, mac: MacAddr, spares: &Spares) -> Self {
        let stack = Stack::new(now, rand::rng().next_u64(), spares.clone());
        Self {
            mac,
            stack,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imds_tests::segment::Segment;
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;
    use crate::imds::{TokenKey, TokenKeys};

    const ONE: TapIndex = TapIndex(11);
    const TWO: TapIndex = TapIndex(12);

    /// Two taps with an owner and a stack each.
    fn interfaces() -> Interfaces {
        let keys = TokenKeys::new(TokenKey::new([0; 3], [0; 32]), Vec::new());
        let imds = Imds::new(Arc::new(keys), StdRng::seed_from_u64(0));
        let mut interfaces = Interfaces::new(Facts::default(), imds, Injector::on_wire().0);
        for tap in [ONE, TWO] {
            interfaces.serve(tap, format!("i-{tap}").parse().unwrap());
            send(&mut interfaces, at(0), tap);
        }
        interfaces
    }

    fn at(milliseconds: u64) -> Now {
        Now {
            monotonic: Duration::from_millis(milliseconds),
            unix: Duration::from_secs(1_795_248_000),
        }
    }

    fn send(interfaces: &mut Interfaces, now: Now, tap: TapIndex) {
        let punt = Punt {
            tap,
            mac: MacAddr([6, 0, 0, 0, 0, 1]),
            arrived: now.monotonic,
            frame: &[0; 60],
        };
        interfaces.handle_punt(now, &punt);
    }

    fn stacks(interfaces: &Interfaces) -> [bool; 2] {
        [ONE, TWO].map(|tap| interfaces.stacks.contains_key(&tap))
    }

    #[test]
    fn connections_outlive_that_their_owner_is_told_again_and_no_other_owner() {
        let mut interfaces = interfaces();
        interfaces.serve(ONE, format!("i-{ONE}").parse().unwrap());
        assert_eq!(stacks(&interfaces), [true, true]);
        interfaces.serve(ONE, format!("i-{TWO}").parse().unwrap());
        assert_eq!(stacks(&interfaces), [false, true]);
    }

    #[test]
    fn a_tap_that_gets_another_owner_does_not_atone_for_the_last_one() {
        let mut interfaces = interfaces();
        interfaces.handle_panic(at(0), ONE);
        interfaces.serve(ONE, "i-new".parse().unwrap());
        send(&mut interfaces, at(1), ONE);
        assert_eq!(stacks(&interfaces), [true, true]);
    }

    /// Guests whose time comes together are not all served before anybody's frames.
    #[test]
    fn deadlines_of_many_leave_frames_their_turn() {
        const LATER: u64 = 1500;
        let mut interfaces = interfaces();
        let syn = [vec![0; ETHERNET_HEADER_BYTES], Segment::default().ipv4()].concat();
        for tap in (100..).map(TapIndex).take(2 * DUE_MAX + 1) {
            interfaces.serve(tap, "i-many".parse().unwrap());
            let punt = Punt {
                tap,
                mac: MacAddr([6, 0, 0, 0, 0, 1]),
                arrived: Duration::ZERO,
                frame: &syn,
            };
            interfaces.handle_punt(at(0), &punt);
        }
        interfaces.flush(at(0)).unwrap();
        let mut turns = 0;
        while interfaces
            .quiet_until()
            .is_some_and(|due| due <= at(LATER).monotonic)
        {
            interfaces.handle_deadlines(at(LATER)).unwrap();
            turns += 1;
        }
        assert_eq!((turns, interfaces.connections()), (3, 2 * DUE_MAX + 1));
    }

    #[test]
    fn after_a_panic_of_the_worker_only_the_owners_are_left() {
        let mut interfaces = interfaces();
        interfaces.drop_all_stacks();
        assert_eq!(stacks(&interfaces), [false, false]);
        assert!(interfaces.serves(ONE) && interfaces.serves(TWO));
        assert_eq!((interfaces.connections(), interfaces.deadline()), (0, None));
        interfaces.flush(at(1)).unwrap();
        send(&mut interfaces, at(1), ONE);
        assert_eq!(stacks(&interfaces), [true, false], "and it goes on");
    }
}
