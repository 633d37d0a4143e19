//! The classifier's two programs as they are loaded for the taps of one network namespace, and hung on them.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::{
    Ebpf,
    programs::{ProgramError, SchedClassifier},
};
use imds_ebpf::abi::TapIndex;

use super::{
    Direction, Hook, LoadError,
    hook::{DIRECTIONS, HookError},
    object::refused,
    pins::Pins,
};

/// Both programs. What is done to a tap is done in the tap's network namespace.
pub(super) struct Programs {
    hook: Hook,
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the programs of an object whose maps are made.
    pub fn load(mut ebpf: Ebpf, hook: Hook) -> Result<Self, LoadError> {
        for name in DIRECTIONS.map(program_name) {
            let program = ebpf.program_mut(name).ok_or(LoadError::Incomplete(name))?;
            let program: &mut SchedClassifier =
                program.try_into().map_err(|_| LoadError::Incomplete(name))?;
            program.load().map_err(|error| refused(error.into()))?;
        }
        // The programs hold their maps. Whoever reads them has taken them, and each of the others would cost a descriptor.
        let names: Vec<_> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            drop(ebpf.take_map(&name));
        }
        Ok(Self { hook, ebpf })
    }

    /// The kind of hook that they hang on.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Takes over what hangs on a hook already. False when nothing does.
    pub fn adopt(&mut self, tap: TapIndex, direction: Direction, pins: &Pins) -> Result<bool, HookError> {
        let hook = self.hook;
        hook.adopt(self.loaded(direction)?, tap, direction, pins)
    }

    /// Takes over what hangs on a hook already, or attaches to it.
    pub fn ensure(&mut self, tap: TapIndex, direction: Direction, pins: &Pins) -> Result<(), HookError> {
        if self.adopt(tap, direction, pins)? {
            return Ok(());
        }
        let hook = self.hook;
        hook.attach(self.loaded(direction)?, tap, direction, pins)
    }

    /// One of them, for `BPF_PROG_TEST_RUN`.
    pub fn fd(&self, direction: Direction) -> Result<BorrowedFd<'_>, LoadError> {
        let name = program_name(direction);
        let program = self.ebpf.program(name).ok_or(LoadError::Incomplete(name))?;
        Ok(program.fd().map_err(|error| refused(error.into()))?.as_fd())
    }

    fn loaded(&mut self, direction: Direction) -> Result<&mut SchedClassifier, HookError> {
        let program = self.ebpf.program_mut(program_name(direction));
        let program = program.and_then(|program| program.try_into().ok());
        program.ok_or(HookError::Program(ProgramError::NotLoaded))
    }
}

fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "imds_outbound",
        Direction::Inbound => "imds_inbound",
    }
}
