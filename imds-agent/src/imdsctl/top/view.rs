//! How a frame of `imdsctl top` looks.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Style, Stylize as _},
    text::Line,
    widgets::{Row as Cells, Table},
};

use super::model::{Row, Sort, Summary};
use crate::imdsctl::print::printable;

/// The columns of [`cells`].
pub const HEADING: [&str; 11] = [
    "INSTANCE",
    "TAP",
    "REQ/S",
    "REFUSED/S",
    "DROPS/S",
    "CONNS",
    "MEAN",
    "MAX",
    "LEAST LEFT",
    "EXPIRES",
    "WHY NOT BOUND",
];

/// Draws all of a frame.
pub fn draw(frame: &mut Frame<'_>, summary: &Summary, rows: &[Row], sort: Sort) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Line::from(sentence(summary)).bold(), head);
    let widths = [21, 15, 9, 9, 8, 6, 9, 9, 15, 8].map(Constraint::Length);
    let table = Table::new(
        rows.iter().map(|row| {
            let is_at_limit = row.limits.iter().any(|limit| limit.is_reached);
            let style = if row.refused_per_second > 0.0 || row.reason.is_some() || is_at_limit {
                Style::new().yellow()
            } else {
                Style::new()
            };
            Cells::new(cells(row)).style(style)
        }),
        widths.into_iter().chain([Constraint::Min(0)]),
    );
    frame.render_widget(table.header(Cells::new(HEADING).reversed()), body);
    frame.render_widget(
        Line::from(format!("by {}   s: by another   q: quit", word(sort))),
        foot,
    );
}

/// The agent as a whole, in a sentence.
pub fn sentence(summary: &Summary) -> String {
    let ready = if summary.ready { "ready" } else { "NOT ready" };
    format!(
        "imds-agent {ready}, {} instances; credentials: {} ready, {} pending, {} refused; {} requests missed",
        summary.instances,
        summary.credentials_ready,
        summary.credentials_pending,
        summary.credentials_refused,
        summary.lost_requests
    )
}

/// A row, as people read it.
pub fn cells(row: &Row) -> [String; 11] {
    let text = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
    let latency = |seconds: Option<f64>| {
        seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.0} us", seconds * 1e6))
    };
    let scarcest = row.scarcest().map(|limit| {
        let percent = (limit.share() * 100.0).floor();
        format!("{percent}% {}", printable(&limit.limit))
    });
    let expires = match row.credentials_remaining_seconds {
        Some(seconds) => Some(duration(seconds)),
        None => row.credentials.as_deref().map(printable),
    };
    [
        text(&row.instance_id),
        text(&row.tap),
        format!("{:.1}", row.requests_per_second),
        format!("{:.1}", row.refused_per_second),
        format!("{:.1}", row.dropped_per_second),
        row.connections.to_string(),
        latency(row.latency_mean_seconds),
        latency(row.latency_max_seconds),
        scarcest.unwrap_or_else(|| "-".to_owned()),
        expires.unwrap_or_else(|| "-".to_owned()),
        row.reason.as_deref().map(printable).unwrap_or_default(),
    ]
}

/// Hours and minutes, or what is less.
fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (hours, minutes) => format!("{hours}h{minutes:02}m"),
    }
}

fn word(sort: Sort) -> &'static str {
    match sort {
        Sort::Requests => "requests",
        Sort::Latency => "longest latency",
        Sort::Refused => "refused requests",
        Sort::Drops => "dropped frames",
        Sort::Left => "scarcest limit",
        Sort::Connections => "connections",
        Sort::Expiry => "expiry of credentials",
        Sort::Instance => "instance",
    }
}
