//! Everything a developer runs: `cargo xtask <command>`.
//!
//! Read in this order: [`setup`], [`apt`], [`debian_roots`] and [`kernels`] (what the machine needs), [`build_ebpf`](mod@build_ebpf),
//! [`guest_image`] and [`prepare`] (what is built of it), [`demo`] and [`vm`] (the product at work), [`test`](mod@test),
//! [`fuzz`], [`tidy`] and [`ci`] (what keeps it right), [`bench`](mod@bench) (how fast it is), [`dist`] (what is installed of it).

mod apt;
mod bench;
mod build_ebpf;
mod ci;
mod debian_roots;
mod demo;
mod dist;
mod fuzz;
mod guest_image;
mod host_command;
mod kernels;
mod prepare;
mod setup;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find what the machine lacks and install it (Debian, as root)
    Setup {
        /// Only report what is missing; exit code 1 if something is
        #[arg(long)]
        check: bool,
    },
    /// Build the classifier that the agent embeds
    BuildEbpf,
    /// Boot a guest behind a tap and show it getting its role credentials
    Demo,
    /// Boot the demo's guest with a shell on its console
    Vm,
    /// Run the tests
    Test(test::Options),
    /// Look for inputs that break a promise: ten minutes of each target, and 100,000 seeds of the simulation
    Fuzz(fuzz::Options),
    /// Measure the agent beside nginx
    Bench(bench::Options),
    /// Make the Debian package, at target/dist/imds-agent.deb
    Dist {
        /// Of the programs as they are tested, without building a release
        #[arg(long)]
        debug: bool,
    },
    /// Check the rules of the code that no compiler checks
    Tidy,
    /// Check format, tidiness, lints and the code's documentation: all that CI runs besides `test`
    Ci,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Setup { check } => setup::run(setup::Extent::Tests, check),
        Command::BuildEbpf => build_ebpf(),
        Command::Demo => demo::run(),
        Command::Vm => vm::run(),
        Command::Test(options) => test::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench(options) => bench::run(
            &options,
            &prepare::release("cargo xtask bench")?,
            &host_command::target(),
        ),
        Command::Dist { debug } => dist::run(debug),
        Command::Tidy => tidy::run(),
        Command::Ci => ci::run(),
    }
}

fn build_ebpf() -> anyhow::Result<()> {
    setup::run(setup::Extent::Product, false)?;
    println!("built {}", build_ebpf::run(&host_command::workspace())?.display());
    Ok(())
}
