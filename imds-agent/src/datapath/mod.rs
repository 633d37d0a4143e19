//! Between kernel and agent: the classifier's life, the taps, frames out of the ring and frames into the taps.
//!
//! Nothing in here knows what a request is. Nearly all `unsafe` of the agent is in here.
//!
//! Read in this order: [`support`] (what it takes), [`program`] (what the agent does with the classifier), [`attach`] and [`detach`] (what an operator
//! does without one), [`hook`] and [`filters`] (how it hangs on a tap), [`pins`] (what outlives the agent), [`punt`],
//! [`ring`] and [`inject`] (the frames), [`link_watch`] and [`tap`] (the devices), [`netlink`] (how the kernel is asked about them), [`namespace`] and [`mount_watch`] (where they
//! are).

pub mod attach;
mod bpf;
pub mod counters;
pub mod detach;
pub mod filters;
pub mod grace_period;
pub mod hook;
pub mod inject;
pub mod link_watch;
pub mod mount_watch;
pub mod namespace;
mod netlink;
mod object;
pub mod pins;
pub mod program;
mod programs;
pub mod punt;
mod ring;
pub mod sleep;
pub mod support;
pub mod tap;

pub use counters::Counters;
pub use detach::DetachError;
pub use grace_period::{GracePeriods, RcuSwitch};
pub use hook::{Direction, Hook};
pub use inject::{Injector, PacketSocket};
pub use link_watch::{LinkEvent, LinkWatch};
pub use mount_watch::MountWatch;
pub use namespace::{Namespace, Namespaces};
pub use program::{Classifier, LoadError};
pub use punt::{Punt, PuntRing};
pub use sleep::Alarm;

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers are threads of their own, to which these are handed.
    #[test]
    fn everything_may_move_to_its_thread() {
        fn is_send<T: Send>() {}
        is_send::<Classifier>();
        is_send::<Injector>();
        is_send::<LinkWatch>();
        is_send::<PuntRing>();
    }
}
