//! What the agent's loop tells of its taps: to the control socket, and for metrics.
//!
//! Taps are read a few at a time, between other events, and what has to be asked of the workers is told by a task of its own:
//! the loop waits for nobody, and nobody waits long for the loop.

use std::{collections::BTreeMap, vec};

use imds_ebpf::abi::{BURST_TOKENS, NamespaceNumber, TapBinding, TapIndex};
use tokio::sync::oneshot;

use super::Agent;
use crate::{
    control::{TapMeasures, TapState},
    datapath::Counters,
    observe::{
        Budget,
        budget::{Left, Scarcest},
        metrics,
    },
    stack::CONNECTIONS_MAX,
    worker::Usage,
};

/// Taps that are read at once. The kernel copies half a kilobyte for each tap and processor.
const TAPS_AT_ONCE: usize = 32;

/// Somebody who waits for taps that are read.
pub(super) struct Round {
    left: vec::IntoIter<TapIndex>,
    /// What was counted of each, where that is wanted.
    frames: Vec<(TapIndex, String, Counters)>,
    /// What each has left of its packets that is somebody's.
    packets: Vec<(TapIndex, Option<Left>)>,
    asked: Asked,
}

enum Asked {
    Metrics(metrics::Asked),
    Control(oneshot::Sender<Vec<TapMeasures>>),
}

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

    /// Tells what nobody else knows, for metrics, once all taps are read.
    pub(super) fn tell(&mut self, asked: metrics::Asked) {
        let taps = self.classifier.attached().collect();
        self.rounds.push_back(Round::new(taps, Asked::Metrics(asked)));
    }

    /// Tells the frames of these taps, or of all, and what they have left, once they are read.
    pub(super) fn measure(&mut self, taps: Option<Vec<TapIndex>>, asked: oneshot::Sender<Vec<TapMeasures>>) {
        let taps = taps.unwrap_or_else(|| self.bindings.taps().map(|(tap, ..)| tap).collect());
        self.rounds.push_back(Round::new(taps, Asked::Control(asked)));
    }

    /// Whether somebody waits for taps that are to be read.
    pub(super) fn is_reading(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Reads the next few taps for whoever asked first, and answers when that were the last.
    pub(super) fn read_on(&mut self) {
        let Some(mut round) = self.rounds.pop_front() else {
            return;
        };
        if round.asked.has_gone() {
            return;
        }
        for _ in 0..TAPS_AT_ONCE {
            let Some(tap) = round.left.next() else {
                return self.answer(round);
            };
            self.read(tap, &mut round);
        }
        self.rounds.push_front(round);
    }

    /// Costs three system calls.
    fn read(&mut self, tap: TapIndex, round: &mut Round) {
        let Ok(counters) = self.classifier.counters(tap) else {
            return;
        };
        let is_each_wanted = match round.asked {
            Asked::Metrics(_) => self.has_metrics_per_tap,
            Asked::Control(_) => true,
        };
        if is_each_wanted && let Some(name) = self.bindings.name(tap) {
            round.frames.push((tap, name.to_owned(), counters.clone()));
        }
        self.frames.handle_counters(tap, counters);
        if self.bindings.tap(tap).is_some_and(|(.., bound)| bound.is_some()) {
            let left = self.classifier.packets_left(tap).ok().flatten();
            let of = BURST_TOKENS;
            round.packets.push((tap, left.map(|left| Left { left, of })));
        }
    }

    fn answer(&self, round: Round) {
        let Round {
            frames,
            packets,
            asked,
            ..
        } = round;
        let budgets = Budgets {
            packets,
            usage: self.work.ask_usage(),
        };
        match asked {
            Asked::Metrics(asked) => {
                let told = self.told(budgets.packets.len());
                tokio::spawn(async move {
                    let budgets = budgets.told().await;
                    let of_tap = |(tap, name, frames)| {
                        let budget = budgets.get(&tap).copied();
                        (name, metrics::ToldOfTap { frames, budget })
                    };
                    // Who asked may have gone.
                    _ = asked.send(metrics::Told {
                        scarcest: Scarcest::of(budgets.values()),
                        taps: frames.into_iter().map(of_tap).collect(),
                        ..told
                    });
                });
            }
            Asked::Control(asked) => {
                tokio::spawn(async move {
                    let budgets = budgets.told().await;
                    let of_tap = |(index, name, frames): (TapIndex, _, Counters)| TapMeasures {
                        index,
                        name,
                        punted: frames.punted,
                        hairpinned: frames.hairpinned,
                        dropped: frames
                            .dropped
                            .iter()
                            .map(|(reason, count)| (reason.name(), *count))
                            .collect(),
                        budget: budgets.get(&index).copied(),
                    };
                    _ = asked.send(frames.into_iter().map(of_tap).collect());
                });
            }
        }
    }

    /// All but what there is to tell of each tap. So many taps are bound.
    fn told(&self, bound: usize) -> metrics::Told {
        let config = self.reload.config();
        metrics::Told {
            hook: self.classifier.hook(),
            attached: self.classifier.attached().count(),
            bound,
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
        }
    }
}

impl Round {
    fn new(taps: Vec<TapIndex>, asked: Asked) -> Self {
        Self {
            left: taps.into_iter(),
            frames: Vec::new(),
            packets: Vec::new(),
            asked,
        }
    }
}

impl Asked {
    fn has_gone(&self) -> bool {
        match self {
            Self::Metrics(asked) => asked.is_closed(),
            Self::Control(asked) => asked.is_closed(),
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
