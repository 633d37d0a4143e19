//! Hurries the kernel while programs are put on taps, and taken off them.
//!
//! Read first: the kernel's Documentation/admin-guide/kernel-parameters.txt, `rcupdate.rcu_expedited`, and `tcx_entry_sync` in
//! include/net/tcx.h. For every program that joins a hook or leaves it the kernel waits until no processor can still be using the hook's
//! old list: some 14 ms on an idle machine, two hooks a tap, all taps one after the other, so half a minute for a thousand
//! taps. Expedited, the same wait takes some 0.1 ms and costs every processor an interrupt. Hosts that cannot bear that
//! (real-time ones) say so with `rcu_normal`, which wins. An agent that is killed in between leaves the kernel expediting, which
//! changes nothing else.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

/// Whether the whole kernel expedites.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The kernel's switch, held open because it is root's.
#[derive(Debug)]
pub struct GracePeriods(io::Result<File>);

/// As long as this lives, the kernel expedites.
#[derive(Debug)]
pub struct Expedited<'a>(Option<&'a File>);

impl GracePeriods {
    /// Takes hold of the switch. Where it is not to be had, attaching and detaching are slow and all else is as ever.
    pub fn open() -> Self {
        Self(OpenOptions::new().read(true).write(true).open(SWITCH))
    }

    /// Tells the log if the switch is not to be had.
    pub fn tell(&self) {
        if let Err(error) = &self.0 {
            log::info!("many taps that come or go at once will take their time: {SWITCH}: {error}");
        }
    }

    /// Has the kernel expedite, unless somebody else does already.
    pub fn expedite(&self) -> Expedited<'_> {
        let is_normal = |file: &&File| -> io::Result<bool> {
            let mut value = [0; 1];
            file.read_exact_at(&mut value, 0)?;
            Ok(value == *b"0")
        };
        let file = self
            .0
            .as_ref()
            .ok()
            .filter(|file| is_normal(file).unwrap_or(false));
        Expedited(file.filter(|file| file.write_all_at(b"1", 0).is_ok()))
    }
}

impl Drop for Expedited<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.0
            && let Err(error) = file.write_all_at(b"0", 0)
        {
            log::warn!("{SWITCH} cannot be set back to 0: {error}");
        }
    }
}
