//! What is about to happen to a running instance, as its record tells it.
//!
//! *Ours* as a section of the record: EC2 keeps these outside the instance. Each notice has the shape that AWS gives it
//! where it gives one. Read first: EC2 user guide, "Spot Instance interruption notices", "EC2 instance rebalance
//! recommendations", "Scheduled events for your instances"; EC2 API reference, `InstanceStatusEvent`; Auto Scaling user
//! guide, "Retrieve the target lifecycle state through instance metadata".
//!
//! A notice can be written down before it is time: with `VisibleAfter` the guest sees it from that moment on, with
//! `VisibleUntil` no longer from that moment on. Nothing waits for these moments: what is visible is computed from the
//! time of each request, so they are exact and survive a restart.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;

/// Everything that is to be noticed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Events {
    /// The instance will be interrupted: `spot/instance-action` and `spot/termination-time`.
    pub spot_interruption: Option<SpotInterruption>,
    /// The risk of that has grown: `events/recommendations/rebalance`.
    pub rebalance_recommendation: Option<RebalanceRecommendation>,
    /// `events/maintenance/scheduled` and, once over, `events/maintenance/history`.
    pub maintenance: Vec<MaintenanceEvent>,
    /// `autoscaling/target-lifecycle-state`: the last one of these that is visible.
    pub auto_scaling: Vec<AutoScalingState>,
}

impl Events {
    /// Nothing is.
    pub const NONE: Self = Self {
        spot_interruption: None,
        rebalance_recommendation: None,
        maintenance: Vec::new(),
        auto_scaling: Vec::new(),
    };
}

/// From when to when a notice can be seen. Nothing said means: as long as it is in the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Visibility {
    after: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Visibility {
    /// Whether it can be seen at `unix`, a time since the Unix epoch.
    pub fn includes(self, unix: Duration) -> bool {
        self.after.is_none_or(|after| has_come(after, unix))
            && self.until.is_none_or(|until| !has_come(until, unix))
    }

    /// When it last appeared or went, if it did by `unix`.
    pub fn last_change(self, unix: Duration) -> Option<Timestamp> {
        let changes = [self.after, self.until].into_iter().flatten();
        changes.filter(|change| has_come(*change, unix)).max()
    }
}

fn has_come(time: Timestamp, unix: Duration) -> bool {
    i128::try_from(unix.as_nanos()).is_ok_and(|unix| time.as_nanosecond() <= unix)
}

macro_rules! notices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)+ })+) => { $(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)+
            /// *Ours*: not to be seen before.
            pub visible_after: Option<Timestamp>,
            /// *Ours*: not to be seen from then on.
            pub visible_until: Option<Timestamp>,
        }

        impl $name {
            /// When it can be seen.
            pub fn visibility(&self) -> Visibility {
                Visibility { after: self.visible_after, until: self.visible_until }
            }
        }
    )+ };
}

notices! {
    /// EC2 needs the capacity back.
    SpotInterruption {
        /// What happens to the instance.
        action: SpotAction,
        /// When, about.
        time: Timestamp,
    }
    /// EC2 may need the capacity back.
    RebalanceRecommendation {
        /// Since when.
        notice_time: Timestamp,
    }
    /// An element of `Events` in `aws ec2 describe-instance-status`.
    MaintenanceEvent {
        /// What will be done.
        code: MaintenanceCode,
        /// For people. AWS begins it with `[Completed]` or `[Canceled]` when the event is over.
        description: Option<String>,
        /// `instance-event-0d59937288b749b32`.
        instance_event_id: Option<String>,
        /// The earliest begin.
        not_before: Timestamp,
        /// The latest end.
        not_after: Option<Timestamp>,
        /// *Ours*: what the event has come to, if its description does not begin with it.
        state: Option<MaintenanceState>,
    }
    /// A state that an Auto Scaling group wants its instance in.
    AutoScalingState {
        /// The state.
        target_lifecycle_state: TargetLifecycleState,
    }
}

impl MaintenanceEvent {
    /// What it has come to.
    pub fn state(&self) -> MaintenanceState {
        let description = self.description.as_deref().unwrap_or_default();
        let told = || {
            let mut over = [MaintenanceState::Completed, MaintenanceState::Canceled].into_iter();
            over.find(|state| state.mark().is_some_and(|mark| description.starts_with(mark)))
        };
        self.state.or_else(told).unwrap_or(MaintenanceState::Active)
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal,)+ })+) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
        #[expect(missing_docs, reason = "the names and meanings are AWS's")]
        pub enum $name { $(#[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// The word for it in records and in the metadata tree.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+ };
}

words! {
    /// What an interruption does.
    SpotAction {
        Terminate = "terminate",
        Stop = "stop",
        Hibernate = "hibernate",
    }
    /// What maintenance does.
    MaintenanceCode {
        InstanceReboot = "instance-reboot",
        SystemReboot = "system-reboot",
        SystemMaintenance = "system-maintenance",
        InstanceRetirement = "instance-retirement",
        InstanceStop = "instance-stop",
    }
    /// What a maintenance event has come to.
    MaintenanceState {
        Active = "active",
        Completed = "completed",
        Canceled = "canceled",
    }
    /// The target states of an Auto Scaling lifecycle.
    TargetLifecycleState {
        Detached = "Detached",
        InService = "InService",
        Standby = "Standby",
        Terminated = "Terminated",
        WarmedHibernated = "Warmed:Hibernated",
        WarmedRunning = "Warmed:Running",
        WarmedStopped = "Warmed:Stopped",
        WarmedTerminated = "Warmed:Terminated",
    }
}

impl MaintenanceState {
    /// What AWS begins the description of an event with that is over.
    pub fn mark(self) -> Option<&'static str> {
        match self {
            Self::Active => None,
            Self::Completed => Some("[Completed]"),
            Self::Canceled => Some("[Canceled]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visibility_begins_and_ends_on_the_moment() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let visibility = Visibility {
            after: Some(at(10)),
            until: Some(at(20)),
        };
        let nearly = |second| Duration::from_secs(second) - Duration::from_nanos(1);
        for (unix, visible, changed) in [
            (nearly(10), false, None),
            (Duration::from_secs(10), true, Some(at(10))),
            (nearly(20), true, Some(at(10))),
            (Duration::from_secs(20), false, Some(at(20))),
            (Duration::MAX, false, Some(at(20))),
        ] {
            assert_eq!(visibility.includes(unix), visible, "{unix:?}");
            assert_eq!(visibility.last_change(unix), changed, "{unix:?}");
        }
        assert!(Visibility::default().includes(Duration::ZERO));
        assert_eq!(Visibility::default().last_change(Duration::MAX), None);
    }

    #[test]
    fn state_is_said_or_told_by_the_description() {
        let state = |description: &str, said: serde_json::Value| {
            let event: MaintenanceEvent = serde_json::from_value(serde_json::json!({
                "Code": "system-reboot", "Description": description, "NotBefore": "2019-01-21T09:00:43Z", "State": said,
            }))
            .unwrap();
            event.state().as_str()
        };
        let nothing = || serde_json::Value::Null;
        assert_eq!(state("scheduled reboot", nothing()), "active");
        assert_eq!(state("[Completed] scheduled reboot", nothing()), "completed");
        assert_eq!(state("[Canceled] scheduled reboot", nothing()), "canceled");
        assert_eq!(state("scheduled reboot", "canceled".into()), "canceled");
    }
}
