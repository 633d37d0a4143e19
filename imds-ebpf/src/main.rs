//! The programs that run on every tap's ingress and egress hook: one verdict, one action, one counter.
//!
//! Direct actions of `linux/pkt_cls.h`: `TC_ACT_UNSPEC` hands the frame to the next program or filter of the tap as if
//! this one were not there, `TC_ACT_SHOT` consumes it.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    unsafe_code,
    reason = "the kernel's edge: context fields, packet bytes and helpers"
)]
#![expect(
    missing_docs,
    reason = "the classifier attribute makes an item of its own without one"
)]

mod punt;
mod rings;
mod skb;

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_ktime_get_ns,
    macros::{classifier, map},
    maps::{HashMap, PerCpuHashMap},
    programs::TcContext,
};
use imds_ebpf::{
    abi::{HAIRPINNED_SLOT, PUNTED_SLOT, Reason, TAPS_MAX, TapBinding, TapCounters, TapIndex, WorkerNumber},
    bucket::{Taken, take, tokens},
    classify::{Frame, Verdict, classify},
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

/// When each tap's bucket of tokens is full again.
#[map]
static BUCKETS: HashMap<TapIndex, u64> = HashMap::with_max_entries(TAPS_MAX, BPF_F_NO_PREALLOC);

/// What a guest sends.
#[classifier]
pub fn imds_outbound(context: TcContext) -> i32 {
    let skb = Skb::of(&context);
    let (mut interval_ns, mut worker) = (0, WorkerNumber(0));
    let verdict = classify(&skb, || {
        let binding = binding(skb.tap())?;
        (interval_ns, worker) = (binding.frame_interval_ns, binding.worker);
        Some(binding)
    });
    let within_rate = || take_tokens(skb.tap(), tokens(skb.length()), interval_ns);
    let outcome = match verdict {
        Verdict::Pass => return TC_ACT_UNSPEC,
        Verdict::Drop(reason) => Err(reason),
        Verdict::HairpinArp => within_rate()
            .and_then(|()| skb.hairpin(arp_reply(&skb)))
            .map(|action| (action, HAIRPINNED_SLOT)),
        Verdict::HairpinNdp => within_rate()
            .and_then(|()| skb.hairpin(advertisement(&skb)))
            .map(|action| (action, HAIRPINNED_SLOT)),
        Verdict::Punt => within_rate()
            .and_then(|()| punt::punt(&skb, rings::of(worker)))
            .map(|()| (TC_ACT_SHOT, PUNTED_SLOT)),
    };
    let (action, slot) = match outcome {
        Ok(outcome) => outcome,
        Err(reason) => (TC_ACT_SHOT, reason as u32),
    };
    count(skb.tap(), slot);
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
fn binding(tap: TapIndex) -> Option<TapBinding> {
    // SAFETY: the map is not preallocated, so an entry that is removed meanwhile stays intact until this program ends.
    unsafe { TAPS.get(tap) }.copied()
}

/// Takes a frame's tokens out of the tap's bucket. A tap without a bucket has no tokens.
///
/// CPUs that serve frames of one tap at the very same time (it must have several queues for that) may find the last token
/// there for a frame each, which the bucket is behind by then; and those that find it full may begin it once each, in a window of
/// a few nanoseconds after every time that the guest was silent for long enough. Else none is lost: an exchange that is atomic
/// would want Linux 5.12, an addition is everywhere.
#[inline(always)]
fn take_tokens(tap: TapIndex, tokens: u64, interval_ns: u32) -> Result<(), Reason> {
    if interval_ns == 0 {
        return Ok(());
    }
    let bucket = BUCKETS.get_ptr_mut(tap).ok_or(Reason::RateLimited)?;
    // SAFETY: the map is not preallocated, so the entry stays until this program ends, and an aligned number is read and
    // written as a whole.
    unsafe {
        let now_ns = bpf_ktime_get_ns();
        match take(bucket.read_volatile(), now_ns, interval_ns, tokens)? {
            Taken::Until(time) => bucket.write_volatile(time),
            // Rust's atomic numbers are not to be had for BPF's first instruction set, of which this one is.
            Taken::Later(by) => asm!("lock *(u64 *)({} + 0) += {}", in(reg) bucket, in(reg) by),
        }
    }
    Ok(())
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
