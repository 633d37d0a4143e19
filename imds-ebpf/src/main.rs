//! The programs that run on every tap's ingress and egress hook: one verdict, one action, one counter.
//!
//! Direct actions of `linux/pkt_cls.h`: `TC_ACT_UNSPEC` hands the frame to the next program or filter of the tap as if
//! this one were not there, `TC_ACT_SHOT` consumes it.

#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "the kernel's edge: context fields, packet bytes and helpers"
)]
#![expect(
    missing_docs,
    reason = "the classifier attribute makes an item of its own without one"
)]

mod punt;
mod skb;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::{classifier, map},
    maps::{HashMap, PerCpuHashMap, RingBuf},
    programs::TcContext,
};
use imds_ebpf::{
    abi::{HAIRPINNED_SLOT, PUNTED_SLOT, RING_BYTES, Reason, TAPS_MAX, TapBinding, TapCounters, TapIndex},
    classify::{Verdict, classify},
    hairpin::{advertisement, arp_reply},
    inbound::admit,
};
use skb::Skb;

/// What is known of each tap. Entries are allocated when they are made, so that a removed one is never read half
/// overwritten.
#[map]
static TAPS: HashMap<TapIndex, TapBinding> = HashMap::with_max_entries(TAPS_MAX, BPF_F_NO_PREALLOC);

/// What happened on each tap.
#[map]
static COUNTERS: PerCpuHashMap<TapIndex, TapCounters> =
    PerCpuHashMap::with_max_entries(TAPS_MAX, BPF_F_NO_PREALLOC);

/// The way to the first worker.
#[map]
static RING_0: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// What a guest sends.
#[classifier]
pub fn imds_outbound(context: TcContext) -> i32 {
    let skb = Skb::of(&context);
    let tap = skb.tap();
    let (action, slot) = match classify(&skb, || binding(tap)) {
        Verdict::Pass => return TC_ACT_UNSPEC,
        Verdict::Drop(reason) => (TC_ACT_SHOT, reason as u32),
        Verdict::HairpinArp => hairpinned(skb.hairpin(arp_reply(&skb))),
        Verdict::HairpinNdp => hairpinned(skb.hairpin(advertisement(&skb))),
        Verdict::Punt => match punt::punt(&skb, &RING_0) {
            Ok(()) => (TC_ACT_SHOT, PUNTED_SLOT),
            Err(reason) => (TC_ACT_SHOT, reason as u32),
        },
    };
    count(tap, slot);
    action
}

/// What a guest is sent.
#[classifier]
pub fn imds_inbound(context: TcContext) -> i32 {
    let skb = Skb::of(&context);
    match admit(&skb, skb.mark()) {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => {
            count(skb.tap(), reason as u32);
            TC_ACT_SHOT
        }
    }
}

#[inline(always)]
fn hairpinned(result: Result<i32, Reason>) -> (i32, u32) {
    match result {
        Ok(action) => (action, HAIRPINNED_SLOT),
        Err(reason) => (TC_ACT_SHOT, reason as u32),
    }
}

#[inline(always)]
fn binding(tap: TapIndex) -> Option<TapBinding> {
    // SAFETY: the map is not preallocated, so an entry that is removed meanwhile stays intact until this program ends.
    unsafe { TAPS.get(tap) }.copied()
}

/// A tap that has no counters (yet, or any more) goes uncounted.
#[inline(always)]
fn count(tap: TapIndex, slot: u32) {
    let Some(counters) = COUNTERS.get_ptr_mut(tap) else {
        return;
    };
    // SAFETY: the entry is this CPU's own and stays until this program ends; both hooks run with softirqs off, so that
    // nothing else writes to it meanwhile.
    let counters = unsafe { &mut *counters };
    if let Some(counter) = counters.get_mut(slot as usize) {
        *counter = counter.wrapping_add(1);
    }
}

/// Never runs: nothing in here panics, and the verifier would refuse the loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends its GPL-only helpers to programs that say so.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
