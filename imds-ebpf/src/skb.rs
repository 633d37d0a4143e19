//! The one door to a frame in the kernel: reading its bytes, answering it in place.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext, Global,
    bindings::__sk_buff,
    helpers::{bpf_redirect, bpf_skb_change_tail, bpf_skb_load_bytes},
    programs::TcContext,
};
use imds_ebpf::{
    abi::{INJECT_MARK, NamespaceNumber, Reason, TapIndex},
    classify::Frame,
};

/// The network namespace whose taps this copy of the programs hangs on, which nothing in a frame's context tells: the agent loads
/// a copy for each namespace and writes its number in here.
#[unsafe(no_mangle)]
static NAMESPACE: Global<u32> = Global::new(NamespaceNumber::OWN.0);

/// A frame on one of a tap's hooks.
pub struct Skb<'a> {
    context: &'a TcContext,
}

impl<'a> Skb<'a> {
    /// The frame that the kernel runs this program for.
    #[inline(always)]
    pub fn of(context: &'a TcContext) -> Self {
        Self { context }
    }

    /// The tap that the frame came in by, or is to leave by.
    #[inline(always)]
    pub fn tap(&self) -> TapIndex {
        TapIndex::within(NamespaceNumber(NAMESPACE.load()), self.fields().ifindex)
    }

    /// Copies the first `length` bytes to `room`.
    ///
    /// # Safety
    /// `room` must have room for `length` bytes, and the verifier must be able to see that.
    #[inline(always)]
    pub unsafe fn copy_to(&self, room: *mut u8, length: u32) -> Result<(), i64> {
        // SAFETY: the caller's promise; the context is the one that this program runs for.
        match unsafe { bpf_skb_load_bytes(self.context.as_ptr().cast(), 0, room.cast(), length) } {
            0 => Ok(()),
            error => Err(error),
        }
    }

    /// What the kernel keeps beside the frame to tell whose it is.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        self.fields().mark
    }

    /// Writes the answer over the question and sends it back out of the tap, marked as the service's: the action that does
    /// so.
    #[inline(always)]
    pub fn hairpin<const N: usize>(&self, answer: Option<[u8; N]>) -> Result<i32, Reason> {
        let answer = answer.ok_or(Reason::HairpinFailed)?;
        if self.length() != N {
            // SAFETY: a helper that takes the context and two numbers.
            let changed = unsafe { bpf_skb_change_tail(self.context.as_ptr().cast(), N as u32, 0) };
            if changed != 0 {
                return Err(Reason::HairpinFailed);
            }
        }
        self.context
            .store(0, &answer, 0)
            .map_err(|_| Reason::HairpinFailed)?;
        self.context.set_mark(INJECT_MARK);
        // SAFETY: a helper without memory arguments.
        let action = unsafe { bpf_redirect(self.fields().ifindex, 0) };
        i32::try_from(action).map_err(|_| Reason::HairpinFailed)
    }

    #[inline(always)]
    fn fields(&self) -> &__sk_buff {
        // SAFETY: the kernel hands a valid context to the program, for as long as it runs.
        unsafe { &*self.context.skb.skb }
    }
}

impl Frame for Skb<'_> {
    /// Reads from the linear part directly, which costs a nanosecond; what lies beyond it (a segmentation offload may
    /// leave little more than the Ethernet header there) is fetched by the helper.
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let start = self.context.data() + offset;
        if start + N <= self.context.data_end() {
            // SAFETY: the linear part holds `N` bytes from `start` on, as just checked and as the verifier demands.
            return Some(unsafe { ptr::read_unaligned(start as *const [u8; N]) });
        }
        self.load_far(offset)
    }

    #[inline(always)]
    fn load_far<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let (room, length) = (bytes.as_mut_ptr().cast(), N as u32);
        // SAFETY: `bytes` has room for `N` bytes, and is read only when the helper has written them.
        unsafe {
            match bpf_skb_load_bytes(self.context.as_ptr().cast(), offset as u32, room, length) {
                0 => Some(bytes.assume_init()),
                _ => None,
            }
        }
    }

    #[inline(always)]
    fn has_vlan_tag_aside(&self) -> bool {
        self.fields().vlan_present != 0
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.context.len() as usize
    }
}
