//! A working day of AWS's clients in a guest: sets are rotated ten times, the source is away for half an hour, and the role
//! is replaced, and neither the clients nor their logs notice.
//!
//! The agent, the service that it asks, boto3 and the AWS CLI go by a clock that the test puts forward; AWS's SDK for
//! Rust, which lives in the test itself, is given the same clock as its source of time. Every use of a set is a signed call
//! that the service verifies. That the agent's timers keep the same times is shown in its own tests of the schedule.

mod sdk_clients;

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::wait_for,
    clock::Clock,
    host::{self, ADDRESS, INSTANCE_ID},
    kernel_guest::KernelGuest,
    moto::{self, Moto},
    netns::Namespace,
    records::{self, ACCOUNT},
    tap::Tap,
};
use jiff::Timestamp;
use sdk_clients::{Boto3, Call, Client, HEARD, RustSdk};
use serde_json::{Value, json};

/// How often the clients call. Sets that live an hour are refreshed fifteen to twenty minutes after they were made, so none
/// is under way when the clock is put forward but every third time, when one has to come.
const STEP: Duration = Duration::from_secs(7 * 60);

/// A set that is older than this is refreshed as soon as the agent wakes up.
const REFRESH_AFTER: Duration = Duration::from_secs(20 * 60);

/// The address at which the agent reaches the service. The guest has another.
const SOURCE: &str = "10.99.0.1";

/// The host, its guest, the service that both know, and the time, which is left last.
struct Cloud {
    agent: Agent,
    files: HostFiles,
    guest: KernelGuest,
    _moto: Moto,
    namespace: Namespace,
    steps: u32,
    clock: Clock,
}

/// A set as the audit trail has it.
#[derive(Clone, Debug)]
struct Set {
    access_key_id: String,
    made: Timestamp,
    expiration: Timestamp,
}

impl Cloud {
    fn new() -> Result<Self> {
        let clock = Clock::new()?;
        let namespace = Namespace::new()?;
        namespace.ip(&format!("address add {SOURCE}/32 dev lo"))?;
        let moto = Moto::start_by(&clock, &namespace)?;
        let tap = Arc::new(namespace.enter(|| Tap::new("tap0"))?);
        namespace.ip("address add 10.0.0.1/24 dev tap0")?;
        let config = moto.agent_config_at(&format!("http://{SOURCE}:5000"));
        let files = HostFiles::new(&config)?;
        files.put_guest(INSTANCE_ID, "tap0", ADDRESS, |_| ())?;
        let agent = Agent::start_at(&clock, &host::program()?, &namespace, &files)?;
        let guest = KernelGuest::new(tap, records::guest_mac(2), &format!("{ADDRESS}/24"))?;
        Ok(Self {
            agent,
            files,
            guest,
            _moto: moto,
            namespace,
            steps: 0,
            clock,
        })
    }

    /// The sets that the agent was given for the guest's role, oldest first.
    fn sets(&self) -> Result<Vec<Set>> {
        let trail = fs::read_to_string(self.files.audit()).unwrap_or_default();
        let mut sets = Vec::new();
        for line in trail.lines() {
            let event: Value = serde_json::from_str(line)?;
            let role = event["requestParameters"]["roleArn"].as_str().unwrap_or_default();
            let set = &event["responseElements"]["credentials"];
            if event["eventName"] == "AssumeRole" && role.contains(":role/") && set.is_object() {
                let text = |value: &Value| value.as_str().context("no text").map(str::to_owned);
                sets.push(Set {
                    access_key_id: text(&set["accessKeyId"])?,
                    made: text(&event["eventTime"])?.parse()?,
                    expiration: text(&set["expiration"])?.parse()?,
                });
            }
        }
        Ok(sets)
    }

    fn now(&self) -> Result<Timestamp> {
        Ok(self.clock.now().try_into()?)
    }

    /// The age of the newest set.
    fn age(&self) -> Result<Duration> {
        let sets = self.sets()?;
        let newest = sets.last().context("there is no set")?;
        Ok(self
            .now()?
            .duration_since(newest.made)
            .try_into()
            .unwrap_or_default())
    }

    /// Puts the clock forward and wakes the agent up with a record: by itself it looks at the clock twice a minute.
    fn advance(&mut self, by: Duration) -> Result<()> {
        self.clock.advance(by)?;
        self.steps += 1;
        let (id, mac) = ("i-0fedcba9876543210", records::guest_mac(99));
        let mut bystander = records::instance(id, mac, "tap99", "10.0.0.99");
        bystander["IamInstanceProfile"].take();
        bystander["Tags"] = json!([{"Key": "step", "Value": self.steps.to_string()}]);
        self.files.put("instances", id, &bystander)
    }

    /// The same, and waits for the set that has to come if one has to.
    fn advance_supplied(&mut self, by: Duration) -> Result<()> {
        self.advance(by)?;
        wait_for(
            "the newest set is too old",
            || self.age(),
            |age| *age <= REFRESH_AFTER,
        )?;
        Ok(())
    }

    /// Checks that a call was made by `role`, with a set that had not expired, and that its log is silent.
    fn check(&self, client: &str, role: &str, call: &Call) -> Result<()> {
        let when = format!("{client} at {}", self.now()?);
        let is_quiet = matches!(&call.complaints[..], [heard] if heard.contains(HEARD));
        ensure!(is_quiet, "{when}: {:?}", call.complaints);
        let arn = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{INSTANCE_ID}");
        ensure!(call.arn == arn, "{when}: it is {}", call.arn);
        let find = || {
            let mut sets = self.sets()?.into_iter();
            Ok(sets.find(|set| set.access_key_id == call.access_key_id))
        };
        // The trail is written a moment after a set is there.
        let (set, _) = wait_for("the set is not in the trail", find, Option::is_some)?;
        let set = set.context("it was found")?;
        ensure!(set.expiration > self.now()?, "{when}: it signs with {set:?}");
        Ok(())
    }
}

#[test]
fn clients_work_through_ten_rotations_an_outage_and_a_role_replacement_without_a_word() -> Result<()> {
    let mut cloud = Cloud::new()?;
    wait_for("no first set", || cloud.sets(), |sets| !sets.is_empty())?;
    let mut clients: [(&str, Box<dyn Client>, BTreeSet<String>); 2] = [
        (
            "boto3",
            Box::new(Boto3::start(&cloud.guest, &cloud.clock)?),
            BTreeSet::new(),
        ),
        (
            "the SDK for Rust",
            Box::new(RustSdk::start(&cloud.guest, &cloud.clock)?),
            BTreeSet::new(),
        ),
    ];
    let mut call = |cloud: &Cloud, role: &str| -> Result<usize> {
        for (name, client, keys) in &mut clients {
            let call = client
                .call()
                .with_context(|| format!("{name} at {:?}", cloud.now()))?;
            cloud.check(name, role, &call)?;
            keys.insert(call.access_key_id);
        }
        let fewest = clients.iter().map(|(.., keys)| keys.len()).min();
        Ok(fewest.unwrap_or_default())
    };

    // Ten other sets than the first, in each client.
    let begin = cloud.now()?;
    let mut sets = 0;
    while sets < 11 {
        let sets_now = call(&cloud, records::ROLE)?;
        if sets_now > sets {
            cloud.check(
                "the AWS CLI",
                records::ROLE,
                &sdk_clients::aws_cli(&cloud.guest, &cloud.clock)?,
            )?;
        }
        sets = sets_now;
        let hours = cloud.now()?.duration_since(begin).as_hours();
        ensure!(hours < 12, "{sets} sets in {hours} hours");
        cloud.advance_supplied(STEP)?;
    }

    // The source goes away when the set is as old as it gets.
    while cloud.age()? < STEP * 2 {
        cloud.advance_supplied(STEP)?;
    }
    let before = cloud.sets()?.len();
    cloud.namespace.ip(&format!("address del {SOURCE}/32 dev lo"))?;
    for _ in 0..5 {
        cloud.advance(STEP)?;
        call(&cloud, records::ROLE)?;
    }
    cloud.agent.wait_for_log("the source fails")?;
    cloud.check(
        "the AWS CLI",
        records::ROLE,
        &sdk_clients::aws_cli(&cloud.guest, &cloud.clock)?,
    )?;
    assert_eq!(cloud.sets()?.len(), before, "the source was not away");
    cloud.namespace.ip(&format!("address add {SOURCE}/32 dev lo"))?;
    cloud.advance_supplied(Duration::from_secs(120))?;
    cloud.agent.wait_for_log("every session is supplied again")?;
    call(&cloud, records::ROLE)?;

    // Another role. A client learns of it when it asks again.
    let before = cloud.sets()?.len();
    let mut role = records::role();
    role["RoleName"] = moto::SECOND_ROLE.into();
    role["Arn"] = format!("arn:aws:iam::{ACCOUNT}:role/{}", moto::SECOND_ROLE).into();
    cloud.files.put("roles", moto::SECOND_ROLE, &role)?;
    let mut profile = records::instance_profile();
    profile["Roles"][0]["RoleName"] = moto::SECOND_ROLE.into();
    cloud
        .files
        .put("instance-profiles", records::INSTANCE_PROFILE, &profile)?;
    wait_for(
        "no set of the other role",
        || cloud.sets(),
        |sets| sets.len() > before,
    )?;
    cloud.check(
        "the AWS CLI",
        moto::SECOND_ROLE,
        &sdk_clients::aws_cli(&cloud.guest, &cloud.clock)?,
    )?;
    // The longest that a client keeps a set is its life; until then it may be the old role.
    let end = cloud.now()? + Duration::from_secs(3600);
    while cloud.now()? < end {
        cloud.advance_supplied(STEP)?;
        for (name, client, _) in &mut clients {
            let call = client.call()?;
            let is_new = call.arn.contains(moto::SECOND_ROLE);
            let role = if is_new { moto::SECOND_ROLE } else { records::ROLE };
            cloud.check(name, role, &call)?;
        }
    }
    for (name, client, _) in &mut clients {
        cloud.check(name, moto::SECOND_ROLE, &client.call()?)?;
    }
    Ok(())
}
