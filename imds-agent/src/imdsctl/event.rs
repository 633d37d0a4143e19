//! `imdsctl event`: what an instance is given notice of.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{
    Verdict,
    client::{Client, Method, path},
    print,
};

/// The warning that EC2 gives of an interruption.
const WARNING: Duration = Duration::from_secs(120);

/// `imdsctl event`
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print the notices of an instance.
    Show {
        /// The instance's id.
        instance: String,
    },
    /// Give notice from now on.
    Set {
        /// The instance's id.
        instance: String,
        /// The guest no longer sees it from then on.
        #[arg(long, value_name = "TIME", value_parser = time)]
        until: Option<Timestamp>,
        /// What of.
        #[command(subcommand)]
        notice: Notice,
    },
    /// Give notice later: nothing has to run at that time.
    Schedule {
        /// The instance's id.
        instance: String,
        /// From when on the guest sees it: RFC 3339, or from now: +90s, +5m, +2h, +1d.
        #[arg(long, value_name = "TIME", value_parser = time)]
        at: Timestamp,
        /// The guest no longer sees it from then on.
        #[arg(long, value_name = "TIME", value_parser = time)]
        until: Option<Timestamp>,
        /// What of.
        #[command(subcommand)]
        notice: Notice,
    },
    /// Take notices back.
    Clear {
        /// The instance's id.
        instance: String,
        /// Only this kind.
        kind: Option<Kind>,
        /// Only the maintenance event of this id.
        #[arg(long, value_name = "ID", requires = "kind")]
        instance_event_id: Option<String>,
    },
}

/// A notice.
#[derive(Subcommand, Debug)]
pub enum Notice {
    /// The instance will be interrupted: spot/instance-action.
    SpotInterruption {
        /// What happens to the instance: terminate, stop or hibernate.
        #[arg(long, default_value = "terminate")]
        action: String,
        /// When, about [default: two minutes after it is seen].
        #[arg(long, value_parser = time)]
        time: Option<Timestamp>,
    },
    /// The risk of that has grown: events/recommendations/rebalance.
    RebalanceRecommendation {
        /// Since when [default: from when on it is seen].
        #[arg(long, value_parser = time)]
        notice_time: Option<Timestamp>,
    },
    /// The host or the instance will be worked on: events/maintenance.
    Maintenance(Maintenance),
    /// The Auto Scaling group wants the instance in a state: autoscaling/target-lifecycle-state.
    AutoScaling {
        /// InService, Terminated, Warmed:Stopped and so on.
        #[arg(value_name = "STATE")]
        target_lifecycle_state: String,
    },
}

/// An element of `Events` in `aws ec2 describe-instance-status`.
#[derive(Args, Debug)]
pub struct Maintenance {
    /// What will be done: system-reboot, instance-stop and so on.
    #[arg(long)]
    code: String,
    /// The earliest begin.
    #[arg(long, value_parser = time)]
    not_before: Timestamp,
    /// The latest end.
    #[arg(long, value_parser = time)]
    not_after: Option<Timestamp>,
    /// For people.
    #[arg(long)]
    description: Option<String>,
    /// What it has come to: active, completed or canceled.
    #[arg(long)]
    state: Option<String>,
    /// Which event; one of the same id is replaced.
    #[arg(long, value_name = "ID")]
    instance_event_id: Option<String>,
}

/// The kinds of notices.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum Kind {
    /// Interruption of a spot instance.
    SpotInterruption,
    /// Recommendation to rebalance.
    RebalanceRecommendation,
    /// Maintenance events.
    Maintenance,
    /// Target lifecycle states.
    AutoScaling,
}

/// Runs one of the commands.
pub fn run(command: Command, client: &Client, is_json: bool) -> Result<Verdict> {
    let path_of = |instance: &str| path(&["instances", instance, "events"]);
    match command {
        Command::Show { instance } => {
            print::json(&client.get_json(&path_of(&instance))?);
            Ok(Verdict::Yes)
        }
        Command::Set {
            instance,
            until,
            notice,
        } => {
            let seen = Seen { after: None, until };
            change(client, &path_of(&instance), is_json, |events| {
                set(events, &notice, seen)
            })
        }
        Command::Schedule {
            instance,
            at,
            until,
            notice,
        } => {
            let seen = Seen {
                after: Some(at),
                until,
            };
            change(client, &path_of(&instance), is_json, |events| {
                set(events, &notice, seen)
            })
        }
        Command::Clear {
            instance,
            kind,
            instance_event_id,
        } => change(client, &path_of(&instance), is_json, |events| {
            clear(events, kind, instance_event_id.as_deref())
        }),
    }
}

/// From when to when a notice is seen.
#[derive(Clone, Copy)]
struct Seen {
    after: Option<Timestamp>,
    until: Option<Timestamp>,
}

type Events = Map<String, Value>;

/// Reads, changes and writes, for the version that was read.
fn change(
    client: &Client,
    path: &str,
    is_json: bool,
    change: impl FnOnce(&mut Events) -> Result<()>,
) -> Result<Verdict> {
    let reply = client.get(path)?;
    let Value::Object(mut events) = reply.json()? else {
        bail!("the agent's answer has no notices")
    };
    change(&mut events)?;
    let written = client.send_json(Method::PUT, path, &reply.expect(), &events.into())?;
    print::written(&written, is_json)
}

fn set(events: &mut Events, notice: &Notice, seen: Seen) -> Result<()> {
    let begin = seen.after.unwrap_or_else(Timestamp::now);
    let mut value = match notice {
        Notice::SpotInterruption { action, time } => {
            let warned = || begin.checked_add(SignedDuration::try_from(WARNING)?);
            let time = time.map_or_else(warned, Ok).context("the time is out of range")?;
            json!({ "Action": action, "Time": seconds(time) })
        }
        Notice::RebalanceRecommendation { notice_time } => {
            json!({ "NoticeTime": seconds(notice_time.unwrap_or(begin)) })
        }
        Notice::Maintenance(event) => event.to_json(),
        Notice::AutoScaling {
            target_lifecycle_state,
        } => {
            json!({ "TargetLifecycleState": target_lifecycle_state })
        }
    };
    for (field, time) in [("VisibleAfter", seen.after), ("VisibleUntil", seen.until)] {
        if let Some(time) = time {
            value[field] = time.to_string().into();
        }
    }
    let kind = notice.kind().field().to_owned();
    match notice {
        Notice::SpotInterruption { .. } | Notice::RebalanceRecommendation { .. } => {
            events.insert(kind, value);
        }
        // A state that is wanted now is wanted instead of all others, one that comes later comes after them.
        Notice::AutoScaling { .. } if seen.after.is_none() => {
            events.insert(kind, json!([value]));
        }
        Notice::AutoScaling { .. } => list(events, kind)?.push(value),
        Notice::Maintenance(Maintenance {
            instance_event_id, ..
        }) => {
            let events = list(events, kind)?;
            // The scheduled end of an event is one more version of it, and not another in place of it.
            if seen.after.is_none()
                && let Some(id) = instance_event_id
            {
                events.retain(|event| event["InstanceEventId"] != id.as_str());
            }
            events.push(value);
        }
    }
    Ok(())
}

fn clear(events: &mut Events, kind: Option<Kind>, id: Option<&str>) -> Result<()> {
    match (kind, id) {
        (None, _) => events.clear(),
        (Some(kind), None) => drop(events.shift_remove(kind.field())),
        (Some(kind), Some(id)) => {
            let events = list(events, kind.field().to_owned())?;
            let before = events.len();
            events.retain(|event| event["InstanceEventId"] != id);
            if events.len() == before {
                bail!("there is no event {id}");
            }
        }
    }
    Ok(())
}

fn list(events: &mut Events, kind: String) -> Result<&mut Vec<Value>> {
    let list = events.entry(kind).or_insert_with(|| json!([]));
    list.as_array_mut().context("the record's notices are no list")
}

impl Maintenance {
    fn to_json(&self) -> Value {
        let mut value = json!({ "Code": self.code, "NotBefore": seconds(self.not_before) });
        let said = [
            ("NotAfter", self.not_after.map(seconds)),
            ("Description", self.description.clone()),
            ("State", self.state.clone()),
            ("InstanceEventId", self.instance_event_id.clone()),
        ];
        for (field, said) in said {
            if let Some(said) = said {
                value[field] = said.into();
            }
        }
        value
    }
}

impl Notice {
    fn kind(&self) -> Kind {
        match self {
            Self::SpotInterruption { .. } => Kind::SpotInterruption,
            Self::RebalanceRecommendation { .. } => Kind::RebalanceRecommendation,
            Self::Maintenance(_) => Kind::Maintenance,
            Self::AutoScaling { .. } => Kind::AutoScaling,
        }
    }
}

impl Kind {
    /// The record's name for it.
    fn field(self) -> &'static str {
        match self {
            Self::SpotInterruption => "SpotInterruption",
            Self::RebalanceRecommendation => "RebalanceRecommendation",
            Self::Maintenance => "Maintenance",
            Self::AutoScaling => "AutoScaling",
        }
    }
}

/// As AWS writes times.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second())
        .unwrap_or(time)
        .to_string()
}

/// A time as RFC 3339 has it, or from now: `+90s`, `+5m`, `+2h`, `+1d`.
fn time(text: &str) -> Result<Timestamp> {
    let Some(after) = text.strip_prefix('+') else {
        return text
            .parse()
            .context("not a time such as 2026-11-21T08:22:00Z or +5m");
    };
    let unit = after.chars().last().context("not a time such as +5m")?;
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => bail!("{unit} is none of the units s, m, h and d"),
    };
    let count: i64 = after
        .trim_end_matches(unit)
        .parse()
        .context("not a time such as +5m")?;
    let seconds = count.checked_mul(scale).context("the time is out of range")?;
    Timestamp::now()
        .checked_add(SignedDuration::from_secs(seconds))
        .context("the time is out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Seen = Seen {
        after: None,
        until: None,
    };

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn reboot(id: &str, state: Option<&str>) -> Notice {
        Notice::Maintenance(Maintenance {
            code: "system-reboot".to_owned(),
            not_before: at("2026-12-01T09:00:43Z"),
            not_after: None,
            description: None,
            state: state.map(str::to_owned),
            instance_event_id: Some(id.to_owned()),
        })
    }

    #[test]
    fn times_are_absolute_or_from_now() {
        assert_eq!(time("2026-11-21T08:22:00Z").unwrap(), at("2026-11-21T08:22:00Z"));
        let (before, then) = (Timestamp::now(), time("+2h").unwrap());
        assert!(then.duration_since(before) >= SignedDuration::from_hours(2));
        for wrong in [
            "",
            "+",
            "+m",
            "+5",
            "+5x",
            "tomorrow",
            "+99999999999999999d",
            "+1.5h",
        ] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_interruption_comes_two_minutes_after_it_is_seen() {
        let mut events = Events::new();
        let notice = Notice::SpotInterruption {
            action: "stop".to_owned(),
            time: None,
        };
        let seen = Seen {
            after: Some(at("2026-11-21T08:20:00Z")),
            until: None,
        };
        set(&mut events, &notice, seen).unwrap();
        let expected = json!({ "SpotInterruption": {
            "Action": "stop", "Time": "2026-11-21T08:22:00Z", "VisibleAfter": "2026-11-21T08:20:00Z",
        }});
        assert_eq!(Value::Object(events), expected);
    }

    #[test]
    fn maintenance_is_replaced_by_its_id_and_cleared_by_it() {
        let mut events = Events::new();
        set(&mut events, &reboot("e-1", None), NOW).unwrap();
        set(&mut events, &reboot("e-2", None), NOW).unwrap();
        set(&mut events, &reboot("e-1", Some("completed")), NOW).unwrap();
        let list = events["Maintenance"].as_array().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1]["State"], "completed");
        clear(&mut events, Some(Kind::Maintenance), Some("e-2")).unwrap();
        assert!(clear(&mut events, Some(Kind::Maintenance), Some("e-2")).is_err());
        assert_eq!(events["Maintenance"].as_array().unwrap().len(), 1);
        // What it will have come to is written beside what it is.
        let seen = Seen {
            after: Some(at("2026-12-01T10:00:00Z")),
            until: None,
        };
        set(&mut events, &reboot("e-1", Some("completed")), seen).unwrap();
        assert_eq!(events["Maintenance"].as_array().unwrap().len(), 2);
        clear(&mut events, None, None).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn a_state_that_is_wanted_now_takes_the_place_of_others_and_one_for_later_does_not() {
        let mut events = Events::new();
        let state = |name: &str| Notice::AutoScaling {
            target_lifecycle_state: name.to_owned(),
        };
        set(&mut events, &state("InService"), NOW).unwrap();
        let seen = Seen {
            after: Some(at("2026-12-01T10:00:00Z")),
            until: None,
        };
        set(&mut events, &state("Terminated"), seen).unwrap();
        assert_eq!(events["AutoScaling"].as_array().unwrap().len(), 2);
        set(&mut events, &state("Standby"), NOW).unwrap();
        assert_eq!(
            events["AutoScaling"],
            json!([{ "TargetLifecycleState": "Standby" }])
        );
    }
}
