//! What other network namespaces that come, go or change their names are to the taps in there.

use std::collections::BTreeSet;

use imds_ebpf::abi::{NamespaceNumber, TapIndex};

use super::{super::Agent, Changed, News};
use crate::{
    bindings::Change,
    datapath::{
        LinkEvent,
        namespace::{self, Sighting},
    },
};

impl Agent {
    pub(in crate::agent) fn handle_news(&mut self, news: News) {
        let namespace = news.namespace;
        if let Some(event) = self.elsewhere.current(news) {
            self.handle_link(namespace, event);
        }
    }

    /// Namespaces may have come or gone, or may be to be tried again.
    pub(in crate::agent) fn handle_namespaces(&mut self) {
        let config = &self.reload.config().network_namespaces;
        let Changed { has_renamed, gone } = self.elsewhere.look(config, &mut self.classifier);
        if has_renamed {
            self.rename_taps();
        }
        for sighting in gone {
            self.close_namespace(&sighting);
        }
        let waiting = self.elsewhere.waiting();
        // What went before it had its turn will not be told.
        for number in self.untold.clone() {
            let is_known = waiting.contains(&number) || self.elsewhere.name(number).is_some();
            if number != NamespaceNumber::OWN && !is_known {
                self.handle_told(number);
            }
        }
        self.classifier.settle_left_behind(&waiting);
    }

    /// Whether there is anything left that takes its time.
    pub(in crate::agent) fn is_behind(&self) -> bool {
        self.elsewhere.is_behind() || self.classifier.has_stale()
    }

    /// The next namespace that came into sight has its turn, and then the next tap on which an earlier agent's programs go on.
    pub(in crate::agent) fn catch_up(&mut self) {
        if !self.elsewhere.is_behind() {
            return self.classifier.refresh_next();
        }
        let workers = self.requests.len();
        match self.elsewhere.open_next(workers, &mut self.classifier) {
            Some((number, Some(sockets))) => {
                self.work.open_namespace(number, sockets);
                self.adopt_counters_in(number);
            }
            Some((number, None)) => self.handle_told(number),
            None => {}
        }
    }

    /// Taps are called as their namespaces are by now: when this returns none is bound by an old name any more.
    fn rename_taps(&mut self) {
        let renamed = |(index, name, _): (TapIndex, &str, _)| {
            let (known, tap) = name.split_once('/')?;
            let its_name = self.elsewhere.name(index.namespace())?;
            (known != its_name).then(|| (index, format!("{its_name}/{tap}")))
        };
        let taps: Vec<_> = self.bindings.taps().filter_map(renamed).collect();
        for (index, name) in taps {
            let appeared = LinkEvent::Appeared {
                index,
                name,
                mac: None,
                is_tap: true,
            };
            self.handle_link(index.namespace(), appeared);
        }
        // The new name may select others.
        self.elsewhere.tell_again();
    }

    fn close_namespace(&mut self, sighting: &Sighting) {
        let number = sighting.number;
        // One that is there and none of our business any more gets its taps back. What went may have a machine in it still.
        let is_there = namespace::is_there(sighting);
        if !is_there {
            self.classifier.close_namespace(number);
        }
        let bound = self.bindings.taps().map(|(tap, ..)| tap);
        let mut taps: BTreeSet<_> = bound.chain(self.classifier.attached()).collect();
        taps.retain(|tap| tap.namespace() == number);
        for tap in taps {
            self.refused.remove(&tap);
            let mut changes = self.bindings.handle_gone(tap, &self.snapshot);
            if changes.is_empty() {
                changes.push(Change::Detach(tap));
            }
            self.apply(changes);
        }
        self.classifier.close_namespace(number);
        self.work.close_namespace(number);
        self.elsewhere.close(number);
        log::info!("network namespace {}: out of sight", sighting.name);
        self.handle_told(number);
    }
}
