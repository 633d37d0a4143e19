//! What the agent's loop tells the control socket of its taps.

use imds_ebpf::abi::{TapBinding, TapIndex};

use super::Agent;
use crate::control::{TapFrames, TapState};

impl Agent {
    /// How the taps are.
    pub(super) fn describe(&self) -> Vec<TapState> {
        let describe = |(index, name, binding): (TapIndex, &str, Option<TapBinding>)| TapState {
            index,
            name: name.to_owned(),
            mac: binding.map(|binding| binding.mac),
            nobody: self.bindings.nobody(index).map(ToString::to_string),
            refused: self.refused.get(&index).cloned(),
        };
        self.bindings.taps().map(describe).collect()
    }

    /// The frames of some taps. Costs a system call for each.
    pub(super) fn count(&self, taps: &[String]) -> Vec<TapFrames> {
        let named = self
            .bindings
            .taps()
            .filter(|(_, name, _)| taps.iter().any(|tap| tap == name));
        let counted = named.filter_map(|(index, name, _)| {
            let counters = self.classifier.counters(index).ok()?;
            let dropped = counters
                .dropped
                .into_iter()
                .map(|(reason, count)| (reason.name(), count));
            Some(TapFrames {
                tap: name.to_owned(),
                punted: counters.punted,
                hairpinned: counters.hairpinned,
                dropped: dropped.collect(),
            })
        });
        counted.collect()
    }
}
