//! Hurries the kernel while programs are put on taps, and taken off them.
//!
//! Read first: the kernel's Documentation/admin-guide/kernel-parameters.txt, `rcupdate.rcu_expedited`, and `tcx_entry_sync` in
//! include/net/tcx.h. For every program that joins a hook or leaves it the kernel waits until no processor can still be using the hook's
//! old list: some 14 ms on an idle machine, two hooks a tap, all taps one after the other, so half a minute for a thousand
//! taps. Expedited, the same wait takes some 0.1 ms and costs every processor an interrupt. Hosts that cannot bear that
//! (real-time ones) say so with `rcu_normal`, which wins.
//!
//! The switch is the whole kernel's and says nothing of who turned it. So a note among the pins says that it was us, from before it is
//! turned until after it is turned back, and whoever is alive holds that note. Where one is killed in between, the next of us
//! that expedites finds a note that nobody holds, and turns the switch back with its own turn.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::pins::{EXPEDITED, shown};

/// Whether the whole kernel expedites.
const SWITCH: &str = "/sys/kernel/rcu_expedited";

/// The kernel's switch, held open because it is root's.
#[derive(Debug)]
pub struct RcuSwitch(io::Result<File>);

impl RcuSwitch {
    /// Takes hold of it. Where it is not to be had, attaching and detaching are slow and all else is as ever.
    pub fn open() -> Self {
        Self::open_at(Path::new(SWITCH))
    }

    fn open_at(path: &Path) -> Self {
        Self(OpenOptions::new().read(true).write(true).open(path))
    }
}

/// The switch, and where it is noted who turned it.
#[derive(Debug)]
pub struct GracePeriods {
    switch: RcuSwitch,
    note: PathBuf,
}

/// As long as this lives, the kernel expedites.
#[derive(Debug)]
pub struct Expedited<'a> {
    _turned: Option<Turned<'a>>,
}

#[derive(Debug)]
struct Turned<'a> {
    switch: &'a File,
    note: &'a Path,
    _held: Flock<File>,
}

impl GracePeriods {
    /// Those of whoever has its pins at `root`.
    pub fn new(switch: RcuSwitch, root: &Path) -> Self {
        let note = root.join(EXPEDITED);
        Self { switch, note }
    }

    /// Tells the log if the switch is not to be had.
    pub fn tell(&self) {
        if let Err(error) = &self.switch.0 {
            log::info!("many taps that come or go at once will take their time: {SWITCH}: {error}");
        }
    }

    /// Has the kernel expedite, unless somebody else does already, or nothing can be noted because nothing is pinned yet.
    pub fn expedite(&self) -> Expedited<'_> {
        let turned = self.turn().unwrap_or_else(|error| {
            log::debug!("the kernel is not hurried: {error}");
            None
        });
        Expedited { _turned: turned }
    }

    fn turn(&self) -> io::Result<Option<Turned<'_>>> {
        let Ok(switch) = &self.switch.0 else {
            return Ok(None);
        };
        let is_on = || -> io::Result<bool> {
            let mut value = [0; 1];
            switch.read_exact_at(&mut value, 0)?;
            Ok(value != *b"0")
        };
        if is_on()? && !self.note.exists() {
            return Ok(None);
        }
        let was_noted = match fs::create_dir(&self.note) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            made => made.map(|()| false)?,
        };
        // Fails where one of us who is alive has it: then the kernel expedites.
        let held = Flock::lock(File::open(&self.note)?, FlockArg::LockExclusiveNonblock);
        let held = held.map_err(|(_, errno)| errno)?;
        if fs::metadata(&self.note)?.ino() != held.metadata()?.ino() {
            return Err(io::Error::other("whoever had turned the switch removed the note"));
        }
        if !is_on()? {
            switch.write_all_at(b"1", 0)?;
        } else if !was_noted {
            fs::remove_dir(&self.note)?;
            return Ok(None);
        }
        Ok(Some(Turned {
            switch,
            note: &self.note,
            _held: held,
        }))
    }
}

impl Drop for Turned<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.switch.write_all_at(b"0", 0) {
            log::warn!("{SWITCH} cannot be set back to 0: {error}");
            return;
        }
        match fs::remove_dir(self.note) {
            // `detach --all` has removed all that was pinned.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {error}", shown(self.note).display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A switch that is a file, at `value`, and the grace periods of somebody with pins beside it.
    struct Kernel {
        directory: tempfile::TempDir,
    }

    impl Kernel {
        fn at(value: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("switch"), value).unwrap();
            Self { directory }
        }

        fn grace_periods(&self) -> GracePeriods {
            let switch = RcuSwitch::open_at(&self.directory.path().join("switch"));
            GracePeriods::new(switch, self.directory.path())
        }

        /// The switch, and whether there is a note.
        fn state(&self) -> (String, bool) {
            let value = fs::read_to_string(self.directory.path().join("switch")).unwrap();
            let is_noted = self.directory.path().join(EXPEDITED).exists();
            (value.trim_end().to_owned(), is_noted)
        }
    }

    #[test]
    fn the_switch_is_turned_and_noted_for_as_long_as_it_takes() {
        let kernel = Kernel::at("0\n");
        let (one, other) = (kernel.grace_periods(), kernel.grace_periods());
        let expedited = one.expedite();
        assert_eq!(kernel.state(), ("1".to_owned(), true));
        drop(other.expedite());
        assert_eq!(
            kernel.state(),
            ("1".to_owned(), true),
            "another's turn ends this one"
        );
        drop(expedited);
        assert_eq!(kernel.state(), ("0".to_owned(), false));
    }

    #[test]
    fn what_somebody_else_has_turned_stays() {
        let kernel = Kernel::at("1\n");
        let grace_periods = kernel.grace_periods();
        let expedited = grace_periods.expedite();
        assert_eq!(kernel.state(), ("1".to_owned(), false));
        drop(expedited);
        assert_eq!(kernel.state(), ("1".to_owned(), false));
    }

    #[test]
    fn what_a_killed_agent_has_turned_is_turned_back() {
        for left in ["1\n", "0\n"] {
            let kernel = Kernel::at(left);
            fs::create_dir(kernel.directory.path().join(EXPEDITED)).unwrap();
            let grace_periods = kernel.grace_periods();
            let expedited = grace_periods.expedite();
            assert_eq!(kernel.state(), ("1".to_owned(), true));
            drop(expedited);
            assert_eq!(kernel.state(), ("0".to_owned(), false));
        }
    }

    #[test]
    fn nothing_is_turned_that_cannot_be_noted() {
        let kernel = Kernel::at("0\n");
        let switch = RcuSwitch::open_at(&kernel.directory.path().join("switch"));
        let nowhere = GracePeriods::new(switch, &kernel.directory.path().join("nowhere"));
        let expedited = nowhere.expedite();
        assert_eq!(kernel.state(), ("0".to_owned(), false));
        drop(expedited);
        assert_eq!(kernel.state(), ("0".to_owned(), false));
    }
}
