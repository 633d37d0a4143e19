//! What the instances and roles of a large host cost the agent in memory. What their upkeep costs in processor time is in
//! the agent's own tests, under a simulated clock.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::MacAddr;
use imds_tests::{
    agent::{Agent, HostFiles},
    host,
    netns::Namespace,
    records::{self, ACCOUNT},
};
use nix::unistd::Pid;

const INSTANCES: u16 = 10_000;
const ROLES: u16 = 50;

/// How long ten thousand records may take to read, and twice as many sets to be minted.
const PATIENCE: Duration = Duration::from_secs(120);

/// Without processor time for this long, the agent has nothing left to do.
const IDLE: Duration = Duration::from_millis(500);

/// The agent's own memory with so many instances, in kilobytes, once it is idle.
fn memory(instances: u16, with_roles: bool) -> Result<u64> {
    let namespace = Namespace::new()?;
    let files = HostFiles::new("")?;
    for number in 0..ROLES {
        let (mut role, mut profile) = (records::role(), records::instance_profile());
        let name = format!("role-{number}");
        role["RoleName"] = name.as_str().into();
        role["Arn"] = format!("arn:aws:iam::{ACCOUNT}:role/{name}").into();
        profile["InstanceProfileName"] = name.as_str().into();
        profile["Arn"] = format!("arn:aws:iam::{ACCOUNT}:instance-profile/{name}").into();
        profile["Roles"][0]["RoleName"] = name.as_str().into();
        files.put("roles", &name, &role)?;
        files.put("instance-profiles", &name, &profile)?;
    }
    for number in 0..instances {
        let [high, low] = number.to_be_bytes();
        let id = format!("i-{number:017x}");
        let mac = MacAddr([0x06, 0, 0, 1, high, low]);
        let address = format!("10.1.{high}.{low}");
        let mut instance = records::instance(&id, mac, &format!("tap{number}"), &address);
        instance["IamInstanceProfile"]["Arn"] =
            format!("arn:aws:iam::{ACCOUNT}:instance-profile/role-{}", number % ROLES).into();
        if !with_roles {
            instance["IamInstanceProfile"].take();
        }
        files.put("instances", &id, &instance)?;
    }
    let agent = Agent::start(&host::program()?, &namespace, &files)?;
    let pid = agent.pid()?;
    wait_until_idle(pid)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line
        .and_then(|line| line.split_whitespace().next())
        .context("no RssAnon")?
        .parse()?;
    let (_, log) = agent.stop()?;
    let counted = log
        .iter()
        .find(|line| line.contains("sets of credentials"))
        .context("nothing is counted")?;
    let sets = if with_roles { instances } else { 0 };
    for (of, sets) in [("of credentials", sets), ("of instance identities", instances)] {
        let told = if sets == 0 {
            "nothing".to_owned()
        } else {
            format!("issuer supplied {sets}")
        };
        ensure!(counted.contains(&format!("{of}: {told}")), "{counted}");
    }
    Ok(kilobytes)
}

fn wait_until_idle(pid: Pid) -> Result<()> {
    let spent = || -> Result<u64> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let schedstat = fs::read_to_string(thread?.path().join("schedstat"))?;
            nanoseconds += schedstat
                .split(' ')
                .next()
                .context("an empty schedstat")?
                .parse::<u64>()?;
        }
        Ok(nanoseconds)
    };
    let begin = Instant::now();
    let mut before = spent()?;
    loop {
        thread::sleep(IDLE);
        let now = spent()?;
        // Its timers alone take some microseconds.
        if now - before < 2_000_000 {
            return Ok(());
        }
        ensure!(begin.elapsed() < PATIENCE, "the agent is still busy");
        before = now;
    }
}

/// With the record are its session and the set of its identity role. What of it is the allocator's own is not counted in
/// `imds-agent/tests/memory.rs`.
const INSTANCE_KIB_MAX: f64 = 6.0;

/// A set, with what is known of its session.
const SET_KIB_MAX: f64 = 3.0;

#[test]
#[ignore = "a measurement: cargo test -p imds-tests --test upkeep -- --ignored --nocapture"]
fn ten_thousand_instances_with_fifty_roles_fit_into_memory() -> Result<()> {
    let empty = memory(0, false)?;
    let without_roles = memory(INSTANCES, false)?;
    let with_roles = memory(INSTANCES, true)?;
    let each = |more: u64, less: u64| more.saturating_sub(less) as f64 / f64::from(INSTANCES);
    let (instance, set) = (each(without_roles, empty), each(with_roles, without_roles));
    println!(
        "no instances: {empty} KiB\n{INSTANCES} instances, with the sets of their identity roles: {without_roles} KiB, \
         {instance:.1} KiB each\nwith {ROLES} roles: {with_roles} KiB, {set:.1} KiB for each set"
    );
    ensure!(instance < INSTANCE_KIB_MAX && set < SET_KIB_MAX);
    Ok(())
}
