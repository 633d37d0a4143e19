//! Where the way from a change of a record to the guest waits by the clock: nowhere. Each step is woken by the event of the one
//! before it, so that a change is in force after the work that it makes, and no interval has to be shorter than a bound.

use super::{Path, room};

/// The rooms on that way.
const ROOMS: &[&str] = &["agent", "bindings", "datapath", "registry", "worker"];

/// The timers in there: in which file, how many times one is named, and what for. None of them is ahead of a change.
const TIMERS: &[(&str, usize, &str)] = &[
    ("agent.rs", 1, "what the kernel refused is tried again"),
    (
        "registry/directory.rs",
        1,
        "a directory that is not there is looked for",
    ),
    (
        "agent/work.rs",
        1,
        "the first role credentials after a start are waited for no longer",
    ),
    (
        "datapath/attach.rs",
        1,
        "another process that holds the pins is waited for",
    ),
    (
        "datapath/link_watch.rs",
        1,
        "links are listed again where some came or went in each listing, and told of meanwhile",
    ),
    (
        "datapath/pins.rs",
        1,
        "another process that holds the pins is waited for",
    ),
    (
        "worker.rs",
        2,
        "a crowd of frames is let gather, and a worker that panicked pauses",
    ),
    (
        "worker/usage.rs",
        1,
        "a task that asks workers what taps have left gives up on one that is stuck",
    ),
];

/// What a timer is called, at the end of a path: the words alone may be anything.
const FUNCTIONS: &[&str] = &[
    "interval",
    "interval_at",
    "park_timeout",
    "sleep",
    "sleep_until",
    "timeout",
    "timeout_at",
];

/// What it is called as a method.
const METHODS: &[&str] = &["recv_timeout", "wait_timeout", "wait_timeout_while"];

/// Tells the timers of one source, named from `imds-agent/src`, that the table does not know.
pub(super) fn check(inside: &str, named: &[Path], find: &mut impl FnMut(usize, String)) {
    if !ROOMS.contains(&room(inside)) || inside.ends_with("tests.rs") {
        return;
    }
    let known = TIMERS.iter().find(|(file, ..)| *file == inside);
    let known = known.map_or(0, |(_, count, _)| *count);
    let timers = named.iter().filter(|path| {
        let is_path = path.segments.len() > 1;
        let last = path.segments.last().map_or("", String::as_str);
        METHODS.contains(&last) || is_path && FUNCTIONS.contains(&last)
    });
    for timer in timers.skip(known) {
        let name = timer.segments.join("::");
        find(
            timer.line,
            format!(
                "`{name}` waits by the clock on the way of a change to the guest (`TIMERS` in {})",
                file!()
            ),
        );
    }
}
