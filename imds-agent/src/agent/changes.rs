//! What changes of bindings are to the kernel and the workers.

use std::fmt;

use anyhow::{Result, ensure};
use imds_ebpf::abi::{TapBinding, TapIndex};

use super::{Agent, RETRY_AFTER};
use crate::bindings::Change;

impl Agent {
    /// Carries changes out. One that the kernel refuses costs its tap the service, and nobody else anything: until all that
    /// is to be so on it works in a row, nothing more is bound to it.
    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            let tap = change.tap();
            let is_dark = matches!(change, Change::Unbind(..) | Change::Detach(_));
            if !is_dark && self.refused.contains_key(&tap) {
                continue;
            }
            let is_over = matches!(change, Change::Detach(_));
            match self.try_apply(change) {
                Ok(()) if is_over => drop(self.refused.remove(&tap)),
                Ok(()) => {}
                Err(error) => {
                    log::error!("{error:#}; trying again every {RETRY_AFTER:?}");
                    self.refused.insert(tap, format!("{error:#}"));
                }
            }
        }
    }

    /// Tries all again that the kernel refused.
    pub(super) fn retry(&mut self) {
        let refused: Vec<_> = self.refused.keys().copied().collect();
        for tap in refused {
            self.retry_tap(tap);
        }
    }

    /// Tries again what the kernel refused of a tap, if it did, and says so only where it works now.
    pub(super) fn retry_tap(&mut self, tap: TapIndex) {
        if self.refused.remove(&tap).is_none() {
            return;
        }
        let changes = self.bindings.repeat(tap);
        match changes.into_iter().try_for_each(|change| self.try_apply(change)) {
            Ok(()) => log::info!("tap {}: the kernel no longer refuses", self.name(tap)),
            Err(error) => {
                log::debug!("{error:#}");
                self.refused.insert(tap, format!("{error:#}"));
            }
        }
    }

    fn try_apply(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Attach(tap) => {
                let is_new = !self.classifier.is_attached(tap);
                let expedited = is_new.then(|| self.grace_periods.expedite());
                self.classifier.attach(tap)?;
                drop(expedited);
                if is_new {
                    log::info!("tap {}: attached", self.name(tap));
                }
            }
            Change::Bind(tap, binding, instance) => {
                self.expect_name(tap)?;
                self.signer.handle_bound(instance.clone());
                let worker = self.work.serve(tap, instance);
                self.classifier.bind(tap, binding.with_worker(worker))?;
                log::info!("tap {}: bound to {}", self.name(tap), Bound(binding));
            }
            Change::Amend(tap, binding) => {
                self.expect_name(tap)?;
                let worker = self.work.worker_of(tap).unwrap_or_default();
                self.classifier.bind(tap, binding.with_worker(worker))?;
                log::info!("tap {}: now bound to {}", self.name(tap), Bound(binding));
            }
            Change::Unbind(tap, why) => {
                self.classifier.unbind(tap)?;
                self.work.forget(tap);
                let level = if why.is_ambiguous() {
                    log::Level::Warn
                } else {
                    log::Level::Info
                };
                log::log!(level, "tap {}: bound to nobody: {why}", self.name(tap));
            }
            Change::Detach(tap) => {
                self.work.forget(tap);
                if let Ok(counters) = self.classifier.counters(tap) {
                    self.frames.handle_counters(tap, counters);
                }
                let expedited = self.grace_periods.expedite();
                self.classifier.detach(tap)?;
                drop(expedited);
                self.frames.forget(tap);
                log::info!("tap {}: detached", self.index(tap));
            }
        }
        Ok(())
    }

    /// Fails when the tap is not, or no longer, the one that a binding was decided for: links are told of a moment late, and
    /// another device may have got the index. Once the classifier is attached that is told for certain, because a device
    /// that takes the index over from here on comes without the classifier, and nothing is served on it.
    fn expect_name(&self, tap: TapIndex) -> Result<()> {
        let (known, name) = (self.name(tap), self.classifier.name_of(tap)?);
        ensure!(name == known, "tap {known} (index {tap}) is called {name} by now");
        Ok(())
    }

    pub(super) fn name(&self, tap: TapIndex) -> String {
        let name = self.bindings.name(tap);
        name.map_or_else(|| self.index(tap), str::to_owned)
    }

    /// A tap without a name (any more).
    fn index(&self, tap: TapIndex) -> String {
        match self.elsewhere.name(tap.namespace()) {
            Some(namespace) => format!("{namespace}/#{}", tap.ifindex()),
            None => tap.to_string(),
        }
    }
}

/// A binding as the log tells it.
struct Bound(TapBinding);

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let also = if self.0.serves_ipv6() { ", IPv6 too" } else { "" };
        write!(f, "{}{also}", self.0.mac)
    }
}
