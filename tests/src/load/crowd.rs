//! Many such guests in one thread.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{BUFFER_BYTES, Guest, LATENCIES, LOST_AFTER, Load, Outcome};
use crate::tap::Tap;

/// Runs many guests at once, each on its tap, until all are done.
pub fn run_all(guests: &[(&Tap, Load)]) -> Result<Vec<Outcome>> {
    let mut crowd = Crowd::of(guests, None);
    for index in 0..guests.len() {
        crowd.with(index, Guest::begin)?;
    }
    crowd.run()
}

/// The same with `in_flight` exchanges at once among all of them: where one has ended, the next guest whose turn it is begins
/// one. So the same load comes from however many guests.
pub fn run_in_turn(guests: &[(&Tap, Load)], in_flight: usize) -> Result<Vec<Outcome>> {
    let mut crowd = Crowd::of(guests, Some(0));
    crowd.begin_in_turn(in_flight)?;
    crowd.run()
}

/// Many guests in one loop.
struct Crowd<'a> {
    guests: Vec<Guest<'a>>,
    /// How many of them are not done.
    under_way: usize,
    /// Whose turn it is, where they take turns.
    turn: Option<usize>,
}

impl<'a> Crowd<'a> {
    fn of(guests: &'a [(&'a Tap, Load)], turn: Option<usize>) -> Self {
        let guest = |(tap, load): &'a (&'a Tap, Load)| Guest {
            takes_turns: turn.is_some(),
            ..Guest::new(tap, load, LATENCIES / guests.len())
        };
        Self {
            guests: guests.iter().map(guest).collect(),
            under_way: 0,
            turn,
        }
    }

    fn run(mut self) -> Result<Vec<Outcome>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (index, guest) in self.guests.iter().enumerate() {
            epoll.add(
                guest.tap.as_fd(),
                EpollEvent::new(EpollFlags::EPOLLIN, index as u64),
            )?;
        }
        // A look at every guest, which must not be what a crowd that waits for nothing is busy with.
        let look_after = if self.turn.is_some() {
            LOST_AFTER
        } else {
            Duration::from_millis(1)
        };
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut events = vec![EpollEvent::empty(); 64];
        let mut looked = Instant::now();
        while self.under_way > 0 {
            let count = epoll.wait(&mut events, EpollTimeout::from(1_u8))?;
            for event in events.iter().take(count) {
                self.with(usize::try_from(event.data())?, |guest| {
                    while let Ok(count) = guest.tap.read(&mut buffer) {
                        guest.handle_frame(buffer.get(..count).unwrap_or_default())?;
                    }
                    Ok(())
                })?;
            }
            if looked.elapsed() > look_after {
                looked = Instant::now();
                for index in 0..self.guests.len() {
                    self.with(index, Guest::handle_time)?;
                }
            }
        }
        Ok(self.guests.into_iter().map(Guest::end).collect())
    }

    /// Does `work` for one guest, and passes on the turns that it ended.
    fn with(&mut self, index: usize, work: impl FnOnce(&mut Guest<'a>) -> Result<()>) -> Result<()> {
        let guest = self.guests.get_mut(index).context("no such guest")?;
        let (was_done, ended) = (guest.is_done(), guest.ended());
        work(guest)?;
        let ended = guest.ended() - ended;
        match (was_done, guest.is_done()) {
            (true, false) => self.under_way += 1,
            (false, true) => self.under_way -= 1,
            _ => {}
        }
        self.begin_in_turn(ended)
    }

    fn begin_in_turn(&mut self, exchanges: usize) -> Result<()> {
        for _ in 0..exchanges {
            let Some(turn) = self.turn else { break };
            self.turn = Some((turn + 1) % self.guests.len());
            self.with(turn, Guest::begin_one)?;
        }
        Ok(())
    }
}
