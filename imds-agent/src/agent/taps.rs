//! What the agent's loop tells of its taps: to the control socket, and for metrics.
//!
//! What has to be asked of the workers first is told by a task of its own: the loop waits for nobody.

use std::collections::BTreeMap;

use imds_ebpf::abi::{BURST_TOKENS, NamespaceNumber, TapBinding, TapIndex};
use tokio::sync::oneshot;

use super::Agent;
use crate::{
    control::{TapMeasures, TapState},
    observe::{
        Budget,
        budget::{Left, Scarcest},
        metrics,
    },
    stack::CONNECTIONS_MAX,
    worker::Usage,
};

/// What taps have left of their limits: of their packets already, of the rest when the workers have answered.
struct Budgets {
    packets: Vec<(TapIndex, Option<Left>)>,
    usage: Vec<oneshot::Receiver<Usage>>,
}

impl Agent {
    /// How the taps are.
    pub(super) fn describe(&self) -> Vec<TapState> {
        self.bindings.taps().map(|tap| self.state(tap)).collect()
    }

    /// How those are on which the kernel refused something.
    pub(super) fn describe_refused(&self) -> Vec<TapState> {
        let refused = self.refused.keys().filter_map(|tap| self.bindings.tap(*tap));
        refused.map(|tap| self.state(tap)).collect()
    }

    fn state(&self, (index, name, binding): (TapIndex, &str, Option<TapBinding>)) -> TapState {
        TapState {
            index,
            name: name.to_owned(),
            mac: binding.map(|binding| binding.mac),
            instance: self.bindings.instance(index).cloned(),
            nobody: self.bindings.nobody(index).map(ToString::to_string),
            refused: self.refused.get(&index).cloned(),
        }
    }

    /// What an earlier agent saw happen on taps is not counted as ours.
    pub(super) fn adopt_counters_in(&mut self, namespace: NamespaceNumber) {
        let attached = self.classifier.attached();
        for tap in attached.filter(|tap| tap.namespace() == namespace) {
            if let Ok(counters) = self.classifier.counters(tap) {
                self.frames.adopt(tap, counters);
            }
        }
    }

    /// Tells what nobody else knows, for metrics. Costs three system calls for each tap.
    pub(super) fn tell(&mut self, asked: metrics::Asked) {
        let mut taps = Vec::new();
        for tap in self.classifier.attached() {
            let Ok(counters) = self.classifier.counters(tap) else {
                continue;
            };
            if self.has_metrics_per_tap
                && let Some(name) = self.bindings.name(tap)
            {
                taps.push((tap, name.to_owned(), counters.clone()));
            }
            self.frames.handle_counters(tap, counters);
        }
        let bound = self.bindings.taps().filter(|(.., bound)| bound.is_some());
        let bound: Vec<_> = bound.map(|(tap, ..)| tap).collect();
        let config = self.reload.config();
        let mut told = metrics::Told {
            hook: self.classifier.hook(),
            attached: self.classifier.attached().count(),
            bound: bound.len(),
            refused: self.refused.len(),
            namespaces: self.elsewhere.count(),
            frames: self.frames.sum().clone(),
            scarcest: Scarcest::default(),
            taps: BTreeMap::new(),
            limits: metrics::Limits {
                packets_per_second: config.packets_per_second(),
                requests_per_second: self.facts.requests_per_second,
                user_data_bytes: config.user_data_bytes_max,
            },
            loaded: self.loaded,
        };
        let budgets = self.budgets(bound);
        tokio::spawn(async move {
            let budgets = budgets.told().await;
            told.scarcest = Scarcest::of(budgets.values());
            let of_tap = |(tap, name, frames)| {
                let budget = budgets.get(&tap).copied();
                (name, metrics::ToldOfTap { frames, budget })
            };
            told.taps = taps.into_iter().map(of_tap).collect();
            // Who asked may have gone.
            _ = asked.send(told);
        });
    }

    /// Tells the frames of these taps, or of all, and what they have left. Costs three system calls for each.
    pub(super) fn measure(&self, taps: Option<Vec<TapIndex>>, asked: oneshot::Sender<Vec<TapMeasures>>) {
        let taps = taps.unwrap_or_else(|| self.bindings.taps().map(|(tap, ..)| tap).collect());
        let measure = |tap: &TapIndex| {
            let counters = self.classifier.counters(*tap).ok()?;
            let dropped = counters.dropped.iter();
            Some(TapMeasures {
                index: *tap,
                name: self.bindings.name(*tap)?.to_owned(),
                punted: counters.punted,
                hairpinned: counters.hairpinned,
                dropped: dropped.map(|(reason, count)| (reason.name(), *count)).collect(),
                budget: None,
            })
        };
        let mut measures: Vec<_> = taps.iter().filter_map(measure).collect();
        let is_bound = |tap: &TapIndex| {
            let tap = self.bindings.tap(*tap);
            tap.is_some_and(|(.., bound)| bound.is_some())
        };
        let budgets = self.budgets(taps.into_iter().filter(is_bound));
        tokio::spawn(async move {
            let budgets = budgets.told().await;
            for measures in &mut measures {
                measures.budget = budgets.get(&measures.index).copied();
            }
            _ = asked.send(measures);
        });
    }

    /// Of these taps, which are all bound.
    fn budgets(&self, taps: impl IntoIterator<Item = TapIndex>) -> Budgets {
        let left = |tap| {
            let left = self.classifier.packets_left(tap).ok().flatten()?;
            Some(Left {
                left,
                of: BURST_TOKENS,
            })
        };
        Budgets {
            packets: taps.into_iter().map(|tap| (tap, left(tap))).collect(),
            usage: self.work.ask_usage(),
        }
    }
}

impl Budgets {
    async fn told(self) -> BTreeMap<TapIndex, Budget> {
        let usage = Usage::gather(self.usage).await;
        let usage = usage.as_ref();
        let budget = |(tap, packets)| {
            let requests = usage.and_then(|usage| usage.requests_left.as_ref());
            let budget = Budget {
                packets,
                requests: requests.map(|requests| Left {
                    left: requests.taps.get(&tap).copied().unwrap_or(requests.full),
                    of: requests.full,
                }),
                connections: usage.map(|usage| {
                    let used = usage.connections.get(&tap).copied().unwrap_or_default();
                    Left {
                        left: CONNECTIONS_MAX.saturating_sub(used) as u64,
                        of: CONNECTIONS_MAX as u64,
                    }
                }),
            };
            (tap, budget)
        };
        self.packets.into_iter().map(budget).collect()
    }
}
