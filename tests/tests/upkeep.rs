//! What the instances and roles of a large host cost the agent in memory. What their upkeep costs in processor time is in
//! the agent's own tests, under a simulated clock.

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::MacAddr;
use imds_tests::{
    accounting,
    agent::{Agent, HostFiles},
    host,
    netns::Namespace,
    records::{self, ACCOUNT},
};

const INSTANCES: u16 = 10_000;
const ROLES: u16 = 50;

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
    accounting::wait_for_rest(pid)?;
    let kilobytes = accounting::anonymous_bytes(pid)? / 1024;
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
