//! Requests that are answered and whose answers are not with the kernel yet.

use std::time::Duration;

use super::{
    latency::Latency,
    trace::{self, Trace},
};

/// Those of one worker: emptied with every batch of frames that it sends.
#[derive(Default, Debug)]
pub struct Unsent(Vec<Answered>);

#[derive(Debug)]
struct Answered {
    /// When the frame arrived that let the request be answered; nothing where a timer did.
    arrived: Option<Duration>,
    told: Option<Box<trace::Request>>,
}

impl Unsent {
    /// A request was answered. What is neither timed nor traced is not remembered.
    pub fn push(&mut self, arrived: Option<Duration>, told: Option<trace::Request>) {
        if arrived.is_some() || told.is_some() {
            let told = told.map(Box::new);
            self.0.push(Answered { arrived, told });
        }
    }

    /// The answers are with the kernel. `clock` is that of the arrivals, and is read only if there were any.
    pub fn handle_sent(&mut self, clock: impl FnOnce() -> Duration, latency: &Latency, trace: &Trace) {
        if self.0.is_empty() {
            return;
        }
        let sent = clock();
        for Answered { arrived, told } in self.0.drain(..) {
            let took = arrived.map(|arrived| sent.saturating_sub(arrived));
            if let Some(took) = took {
                latency.observe(took);
            }
            if let Some(told) = told {
                trace.publish(*told, took);
            }
        }
    }
}
