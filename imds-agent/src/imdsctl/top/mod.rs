//! `imdsctl top`: interfaces by what their guests ask, live. All of it comes from the operators' socket: the live requests, which
//! the agent never waits for anybody to read, and its status once a second.

mod model;
mod view;

use std::{
    io::{self, IsTerminal as _},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, KeyCode, KeyEvent, KeyModifiers},
};
use serde_json::{Value, json};

use self::model::{Model, Sort};
use super::{
    Verdict,
    client::Client,
    print::{self, Table},
};

/// Between two looks at the agent's status.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Between two frames, after each of which keys are looked at.
const FRAME_INTERVAL: Duration = Duration::from_millis(200);

/// What waits to be counted. Where that is not enough the agent counts what was missed.
const EVENTS_MAX: usize = 1024;

/// `imdsctl top`
#[derive(Args, Debug)]
pub struct Arguments {
    /// What comes first.
    #[arg(long, value_enum, default_value_t)]
    sort: Sort,
    /// Print one frame and end; --json does so too.
    #[arg(long)]
    once: bool,
    /// How long that one frame watches.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=5))]
    seconds: u64,
}

/// What the agent said.
enum Event {
    Request(Value),
    Status(Value),
    Gone(anyhow::Error),
}

/// Shows frames until the operator has enough.
pub fn run(arguments: &Arguments, client: &Client, is_json: bool) -> Result<Verdict> {
    let is_once = arguments.once || is_json;
    let has_terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !is_once && !has_terminal {
        bail!("a live view needs a terminal; --once prints one frame");
    }
    // Whatever is wrong with the socket is told before the terminal changes.
    let status = client.get_json("/v1/status")?;
    let mut model = Model::new(Instant::now());
    model.handle_status(Instant::now(), &status);
    let events = listen(client);
    if is_once {
        let until = Instant::now() + Duration::from_secs(arguments.seconds);
        while handle_events(&mut model, &events, until)? {}
        print_frame(&model, arguments.sort, is_json);
        return Ok(Verdict::Yes);
    }
    // It has the terminal restored by a panic, too.
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let watched = watch(&mut terminal, &mut model, &events, arguments.sort);
    ratatui::restore();
    watched.map(|()| Verdict::Yes)
}

/// Threads that end with the process: the live requests, and the status.
fn listen(client: &Client) -> Receiver<Event> {
    let (sender, events) = mpsc::sync_channel(EVENTS_MAX);
    spawn(client, sender.clone(), |client, sender| {
        client.follow("/v1/trace", |line| {
            let told = serde_json::from_slice(line).context("the agent's answer is not JSON")?;
            Ok(sender.send(Event::Request(told))?)
        })?;
        bail!("the agent is gone")
    });
    spawn(client, sender, |client, sender| {
        loop {
            thread::sleep(STATUS_INTERVAL);
            sender.send(Event::Status(client.get_json("/v1/status")?))?;
        }
    });
    events
}

fn spawn(
    client: &Client,
    sender: SyncSender<Event>,
    work: impl FnOnce(&Client, &SyncSender<Event>) -> Result<()> + Send + 'static,
) {
    let client = client.clone();
    thread::spawn(move || {
        if let Err(error) = work(&client, &sender) {
            // Nobody listens any more where that fails.
            let _ = sender.send(Event::Gone(error));
        }
    });
}

/// Counts one event, for which it waits until then. False when the time is over.
fn handle_events(model: &mut Model, events: &Receiver<Event>, until: Instant) -> Result<bool> {
    let now = Instant::now();
    match events.recv_timeout(until.saturating_duration_since(now)) {
        Ok(event) => handle(model, event)?,
        Err(RecvTimeoutError::Timeout) => return Ok(false),
        Err(RecvTimeoutError::Disconnected) => bail!("the agent is gone"),
    }
    Ok(now < until)
}

fn handle(model: &mut Model, event: Event) -> Result<()> {
    let now = Instant::now();
    match event {
        Event::Request(told) => model.handle_request(now, &told),
        Event::Status(status) => model.handle_status(now, &status),
        Event::Gone(error) => return Err(error),
    }
    Ok(())
}

fn watch(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    events: &Receiver<Event>,
    mut sort: Sort,
) -> Result<()> {
    loop {
        let rows = model.rows(Instant::now(), sort);
        terminal.draw(|frame| view::draw(frame, model.summary(), &rows, sort))?;
        let until = Instant::now() + FRAME_INTERVAL;
        while handle_events(model, events, until)? {}
        while event::poll(Duration::ZERO)? {
            match event::read()?.as_key_press_event() {
                Some(key) if is_end(key) => return Ok(()),
                Some(key) if key.code == KeyCode::Char('s') => sort = sort.next(),
                _ => {}
            }
        }
    }
}

/// A terminal that hands out keys makes no signal of Ctrl-C.
fn is_end(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

fn print_frame(model: &Model, sort: Sort, is_json: bool) {
    let rows = model.rows(Instant::now(), sort);
    if is_json {
        print::json(&json!({ "summary": model.summary(), "interfaces": rows }));
        return;
    }
    print::line(format_args!("{}", view::sentence(model.summary())));
    let mut table = Table::new(&view::HEADING);
    for row in &rows {
        table.row(view::cells(row).into());
    }
    table.print();
}

#[cfg(test)]
mod tests;
