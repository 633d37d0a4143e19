//! The test guest's only program.
//!
//! The contract with the host: the kernel's command line says what to do, in `imds.address=<address>/<prefix>` and
//! `imds.steps=<step>[,<step>]...`. Every step prints one line, `step <step>: ok` or `step <step>: failed: <why>`, and
//! a failed step does not keep the next from running. The last line is `init: success` or `init: failure: <why>`,
//! exactly once, and then the guest powers off.
//!
//! Called as `imds <path>` it is the shell's metadata client.

mod container;
mod demo;
mod machine;
mod metadata;
mod network;
mod step;
mod test_programs;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};

use crate::{machine::CommandLine, metadata::Session, step::Step};

fn main() -> ExitCode {
    let mut arguments = env::args();
    let name = arguments.next().unwrap_or_default();
    if name.ends_with("imds") {
        return show(&arguments.next().unwrap_or_else(|| "/".to_owned()));
    }
    match live() {
        Ok(()) => println!("init: success"),
        Err(error) => println!("init: failure: {error:#}"),
    }
    machine::power_off()
}

fn live() -> Result<()> {
    machine::mount_file_systems()?;
    machine::load_modules()?;
    let command_line = CommandLine::read()?;
    let steps = command_line.steps()?;
    if let Some(address) = command_line.address()? {
        network::bring_up(address)?;
    }
    let failed: Vec<_> = steps
        .iter()
        .filter(|step| !succeeds(step))
        .map(ToString::to_string)
        .collect();
    match failed.as_slice() {
        [] => Ok(()),
        failed => bail!(
            "{} of {} steps failed: {}",
            failed.len(),
            steps.len(),
            failed.join(", ")
        ),
    }
}

fn succeeds(step: &Step) -> bool {
    match step.run() {
        Ok(()) => println!("step {step}: ok"),
        Err(error) => {
            println!("step {step}: failed: {error:#}");
            return false;
        }
    }
    true
}

fn show(path: &str) -> ExitCode {
    match Session::open().and_then(|session| session.get(path)) {
        Ok(reply) => {
            println!("{}", reply.text());
            if reply.status == 200 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
