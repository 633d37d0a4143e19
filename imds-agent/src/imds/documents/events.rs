//! The notices of `events/`, `spot/` and `autoscaling/`, in the formats of the EC2 user guide.
//!
//! Read first: section 3 and B.5 of the wire contract. A notice that is made visible by the passing of time has changed
//! the tree at that moment, so that is its `Last-Modified`, not the record's.

use std::io::Write as _;

use jiff::Timestamp;

use super::{super::tree::View, Document};
use crate::registry::events::{
    MaintenanceEvent, MaintenanceState, RebalanceRecommendation, SpotAction, SpotInterruption, Visibility,
};

/// `events/maintenance/scheduled`: what is still to come. `[]` when there is nothing, as on EC2.
pub fn maintenance_scheduled(view: &View<'_>, out: &mut Vec<u8>) -> Timestamp {
    maintenance(view, |state| state == MaintenanceState::Active, out)
}

/// `events/maintenance/history`: what is completed or canceled.
pub fn maintenance_history(view: &View<'_>, out: &mut Vec<u8>) -> Timestamp {
    maintenance(view, |state| state != MaintenanceState::Active, out)
}

/// `events/recommendations/rebalance`.
pub fn rebalance(view: &View<'_>, out: &mut Vec<u8>) -> Option<Timestamp> {
    let recommendation = view.instance.events().rebalance_recommendation.as_ref();
    let changed = visible(view, recommendation.map(RebalanceRecommendation::visibility)?)?;
    let notice_time = recommendation?.notice_time.strftime(UTC);
    _ = write!(out, "{{\"noticeTime\":\"{notice_time}\"}}");
    Some(changed)
}

/// `spot/instance-action`.
pub fn spot_instance_action(view: &View<'_>, out: &mut Vec<u8>) -> Option<Timestamp> {
    let (interruption, changed) = spot_interruption(view)?;
    let (action, time) = (interruption.action, interruption.time.strftime(UTC));
    _ = write!(out, "{{\"action\":\"{action}\",\"time\":\"{time}\"}}");
    Some(changed)
}

/// `spot/termination-time`: of an instance that is to be terminated, not stopped or hibernated.
pub fn spot_termination_time(view: &View<'_>, out: &mut Vec<u8>) -> Option<Timestamp> {
    let (interruption, changed) = spot_interruption(view)?;
    if interruption.action != SpotAction::Terminate {
        return None;
    }
    _ = write!(out, "{}", interruption.time.strftime(UTC));
    Some(changed)
}

/// `autoscaling/target-lifecycle-state`.
pub fn target_lifecycle_state(view: &View<'_>, out: &mut Vec<u8>) -> Option<Timestamp> {
    let state = view.auto_scaling_state()?;
    out.extend_from_slice(state.target_lifecycle_state.as_str().as_bytes());
    let states = &view.instance.events().auto_scaling;
    Some(last_change(view, states.iter().map(|state| state.visibility())))
}

const UTC: &str = "%Y-%m-%dT%H:%M:%SZ";

/// `21 Jan 2019 09:00:43 GMT`; the day without a leading zero, as the AWS Node Termination Handler parses it.
const MAINTENANCE_TIME: &str = "%-d %b %Y %H:%M:%S GMT";

fn maintenance(view: &View<'_>, wanted: impl Fn(MaintenanceState) -> bool, out: &mut Vec<u8>) -> Timestamp {
    let events = &view.instance.events().maintenance;
    let mut before: &[u8] = b"[ ";
    for event in events {
        if wanted(event.state()) && event.visibility().includes(view.now) {
            out.extend_from_slice(before);
            maintenance_event(event, out);
            before = b", ";
        }
    }
    out.extend_from_slice(if before == b"[ " { b"[]" } else { b" ]" });
    last_change(view, events.iter().map(MaintenanceEvent::visibility))
}

fn maintenance_event(event: &MaintenanceEvent, out: &mut Vec<u8>) {
    let state = event.state();
    let mut document = Document::begin(out);
    document.text("NotBefore", event.not_before.strftime(MAINTENANCE_TIME));
    document.text("Code", event.code);
    if let Some(description) = event.description.as_deref() {
        match state.mark() {
            Some(mark) if !description.starts_with(mark) => {
                document.text("Description", format_args!("{mark} {description}"));
            }
            _ => document.text("Description", description),
        }
    }
    if let Some(id) = event.instance_event_id.as_deref() {
        document.text("EventId", id);
    }
    if let Some(not_after) = event.not_after {
        document.text("NotAfter", not_after.strftime(MAINTENANCE_TIME));
    }
    document.text("State", state);
    document.end();
}

fn spot_interruption<'v>(view: &View<'v>) -> Option<(&'v SpotInterruption, Timestamp)> {
    let interruption = view.instance.events().spot_interruption.as_ref()?;
    Some((interruption, visible(view, interruption.visibility())?))
}

/// Since when a notice with this visibility can be seen, if it can.
fn visible(view: &View<'_>, visibility: Visibility) -> Option<Timestamp> {
    let is_visible = visibility.includes(view.now);
    is_visible.then(|| last_change(view, [visibility].into_iter()))
}

/// When the record was last written, or one of its notices last appeared or went, whichever is later.
fn last_change(view: &View<'_>, notices: impl Iterator<Item = Visibility>) -> Timestamp {
    let changes = notices.filter_map(|notice| notice.last_change(view.now));
    changes.fold(view.member.last_modified, Timestamp::max)
}
