//! What an operator does to taps in other namespaces.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{text, token, wait_for},
    frames::GUEST_MAC,
    host::{ADDRESS, program},
    kernel_guest::KernelGuest,
    leaks::Leaks,
    netns::{Names, Namespace},
    records,
    tap::Tap,
};
use nix::mount::{MsFlags, mount};

use crate::host::{Host, has_tcx};

#[test]
fn attach_and_detach_name_taps_in_namespaces() -> Result<()> {
    let host = Host::new("")?;
    let namespace = host.named("fc-1")?;
    let leaks = namespace.enter(Leaks::new)?;
    let record = records::instance("i-1", GUEST_MAC, "fc-1/guest", ADDRESS);
    host.files.put("instances", "i-1", &record)?;
    let said = host.refused(&["attach", "fc-2/guest"])?;
    ensure!(said.contains("no network namespace \"fc-2\""), "{said}");
    let said = host.refused(&["attach", "fc-1/nothing"])?;
    ensure!(said.contains("no network device \"nothing\""), "{said}");
    let said = host.refused(&["attach", "fc-1/bridge"])?;
    ensure!(said.contains("\"fc-1/bridge\" is no tap"), "{said}");

    host.run(&["attach", "fc-1/guest"])?;
    ensure!(!leaks.falls_through()?, "it is not attached");
    host.run(&["attach", "fc-1/guest"])?;
    host.run(&["detach", "fc-1/guest"])?;
    ensure!(leaks.falls_through()?, "it is still attached");

    // What was attached beforehand the agent takes over, and a running one attaches by itself.
    host.run(&["attach", "fc-1/guest"])?;
    let pinned = host.pinned()?;
    let agent = host.start()?;
    let is_there = |pins: &BTreeSet<String>| pinned.is_subset(pins);
    ensure!(is_there(&host.pinned()?), "{pinned:?}");
    host.run(&["attach", "fc-1/neighbour", "fc-1/guest"])?;
    agent.stop()?;
    ensure!(!leaks.falls_through()?);
    host.run(&["detach", "--all"])?;
    ensure!(leaks.falls_through()?, "it is still attached");
    Ok(())
}

#[test]
fn what_it_takes_is_said_in_one_sentence() -> Result<()> {
    let host = Host::new("")?;
    let without = || -> Result<Command> {
        let mut command = host.namespace.command("setpriv");
        command
            .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"])
            .arg(program()?);
        Ok(command)
    };
    let (code, said) = host.files.refusal(without()?, &["run"])?;
    ensure!(
        said.starts_with("imds-agent: CAP_SYS_ADMIN is missing, which `network_namespaces`")
            && said.lines().count() == 1,
        "{said}"
    );
    ensure!(code == Some(4), "{code:?}");

    // An operator's commands as well, but for what is not elsewhere; and what is pinned comes off in any case.
    let namespace = host.named("fc-1")?;
    let leaks = namespace.enter(Leaks::new)?;
    let (code, said) = host.files.refusal(without()?, &["attach", "fc-1/guest"])?;
    ensure!(code == Some(4) && said.contains("takes CAP_SYS_ADMIN"), "{said}");
    host.run(&["attach", "fc-1/guest"])?;
    ensure!(!leaks.falls_through()?);
    if has_tcx()? {
        host.files.run(without()?, &["detach", "--all"])?;
        ensure!(leaks.falls_through()?, "the classifier is still there");
    }
    Ok(())
}

/// `docs/hypervisors.md` has it, with the jailer as the command.
#[test]
fn the_script_for_namespaces_makes_an_instance() -> Result<()> {
    const SCRIPT: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/examples/hypervisors/netns.sh"
    );
    let _names = Names::new()?;
    // `ip netns` has its directory in here, and the machine keeps its own.
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )?;
    let files = HostFiles::new("network_namespaces = [\"fc-*\"]")?;
    let namespace = Namespace::new()?;
    let mut agent = Agent::start(&program()?, &namespace, &files)?;
    let programs = program()?;
    let programs = programs.parent().context("a directory")?.display().to_string();
    let mut script = namespace
        .command("sh")
        .args([SCRIPT, "fc-1", "cat"])
        .env("PATH", format!("{programs}:{}", std::env::var("PATH")?))
        .env("IMDS_STATE", files.state())
        .env("IMDS_CONFIG", files.config())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    agent.wait_for_log("tap fc-1/tap0: bound to")?;
    let there = Namespace::named(Path::new("/run/netns/fc-1"))?;
    let tap = Arc::new(there.enter(|| Tap::new("tap0"))?);
    let guest = KernelGuest::new(tap, "06:00:ac:10:00:02".parse()?, "10.0.0.2/24")?;
    let id = guest
        .namespace
        .enter(|| text(&token()?, "meta-data/instance-id"))?;
    ensure!(id == "i-fc-1", "{id}");
    drop((guest, there));
    // The machine ends, and nothing of it is left.
    drop(script.stdin.take());
    ensure!(script.wait()?.success());
    agent.wait_for_log("network namespace fc-1: out of sight")?;
    let links = || Ok(fs::read_dir(files.pins().join("links"))?.count());
    wait_for("pins", links, |links| *links == 0)?;
    ensure!(fs::read_dir(files.state().join("instances"))?.count() == 0);
    ensure!(fs::read_dir("/run/netns")?.count() == 0);
    Ok(())
}
