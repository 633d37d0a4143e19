//! Metrics, in the text format of OpenMetrics, which Prometheus reads.
//!
//! Nothing is kept here: each [`Source`] reads at the time of a scrape what others count. What there may be is the table in
//! [`families`], from which `docs/metrics.md` is written too; a source can only speak of rows of that table.

pub mod endpoint;
pub mod families;
mod sources;

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    registry::Registry,
};

pub use endpoint::{Asked, Endpoint, Settings};
pub use families::{FAMILIES, Family, Kind};
pub use sources::{Credentials, Exchanges, Host, Limits, Process, Records, Told, ToldOfTap, Trail, Workers};

use super::latency::{BOUNDS, Observed};

/// Something that has metrics to tell.
pub trait Source: fmt::Debug + Send + Sync + 'static {
    /// Puts all its families, each once, with what it knows at this moment.
    fn put(&self, samples: &mut Samples<'_>) -> fmt::Result;
}

/// All sources.
#[derive(Default, Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// The same with another source.
    pub fn with(mut self, source: impl Source) -> Self {
        self.0.register_collector(Box::new(Reading(source)));
        self
    }

    /// What a scrape gets.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(32 * 1024);
        text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

/// A source as the registry takes it.
#[derive(Debug)]
struct Reading<S>(S);

impl<S: Source> Collector for Reading<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.put(&mut Samples(encoder))
    }
}

/// Where a source puts what it knows.
#[derive(Debug)]
pub struct Samples<'a>(DescriptorEncoder<'a>);

/// A sample's value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// A time, mostly.
    Real(f64),
}

impl From<u64> for Value {
    fn from(whole: u64) -> Self {
        Self::Whole(whole)
    }
}

impl From<usize> for Value {
    fn from(whole: usize) -> Self {
        Self::Whole(whole as u64)
    }
}

impl From<f64> for Value {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}

impl Value {
    fn put(self, kind: Kind, series: &mut MetricEncoder<'_>) -> fmt::Result {
        match (kind, self) {
            (Kind::Counter, Self::Whole(count)) => series.encode_counter::<NoLabelSet, _, u64>(&count, None),
            (Kind::Counter, Self::Real(count)) => series.encode_counter::<NoLabelSet, _, u64>(&count, None),
            (_, Self::Whole(level)) => series.encode_gauge(&level),
            (_, Self::Real(level)) => series.encode_gauge(&level),
        }
    }
}

impl Samples<'_> {
    /// A family of one series without labels.
    pub fn one(&mut self, family: &'static Family, value: impl Into<Value>) -> fmt::Result {
        self.many(family, [([""; 0], value)])
    }

    /// A family with a series for each set of label values, which are in the order of [`Family::labels`].
    pub fn many<L: AsRef<str>, V: Into<Value>, const N: usize>(
        &mut self,
        family: &'static Family,
        series: impl IntoIterator<Item = ([L; N], V)>,
    ) -> fmt::Result {
        debug_assert_eq!(family.labels.len(), N, "{}", family.name);
        let mut metric =
            self.0
                .encode_descriptor(family.name, family.help, family.unit(), family.metric_type())?;
        for (values, value) in series {
            let labels: Vec<(&str, &str)> = (family.labels.iter().copied())
                .zip(values.iter().map(AsRef::as_ref))
                .collect();
            if family.kind == Kind::Info {
                metric.encode_info(&labels)?;
                continue;
            }
            // A set without labels would leave braces without anything in them.
            if labels.is_empty() {
                value.into().put(family.kind, &mut metric)?;
            } else {
                value
                    .into()
                    .put(family.kind, &mut metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    /// A histogram without labels.
    pub fn histogram(&mut self, family: &'static Family, observed: &Observed) -> fmt::Result {
        let mut metric =
            self.0
                .encode_descriptor(family.name, family.help, family.unit(), family.metric_type())?;
        let bounds = BOUNDS.iter().map(|bound| bound.as_secs_f64());
        let bounds = bounds.chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(observed.buckets).collect();
        metric.encode_histogram::<NoLabelSet>(
            observed.sum.as_secs_f64(),
            observed.buckets.iter().sum(),
            &buckets,
            None,
        )
    }
}

#[cfg(test)]
mod tests;
