//! The verdict over one inbound frame: only the service speaks as the metadata address.
//!
//! 1. It carries the service's mark, so the agent injected it or the classifier hairpinned it: it may go in.
//! 2. It claims the address as its IP source, as the sender of an ARP message, or by an NDP advertisement or redirect; or it
//!    hides that behind more tags or extension headers than anyone sends, or ends inside them: [`Reason::InboundForged`].
//! 3. Anything else may go in, be it to the address: no guest has it.

use crate::{
    abi::{INJECT_MARK, Reason},
    classify::Frame,
    concern::{Concern, Role, concern},
};

/// Whether `frame` may go in to the guest. `mark` is what the kernel keeps beside it.
#[inline(always)]
pub fn admit<F: Frame + ?Sized>(frame: &F, mark: u32) -> Result<(), Reason> {
    if mark == INJECT_MARK {
        return Ok(());
    }
    match concern(frame) {
        Ok(Some(Concern {
            role: Role::Claims, ..
        }))
        | Err(_) => Err(Reason::InboundForged),
        Ok(_) => Ok(()),
    }
}
