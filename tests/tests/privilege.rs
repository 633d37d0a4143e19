//! What the agent's threads may do, seen from the outside, and that it serves all the same.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{
    agent::{Agent, HostFiles, USER},
    client::{get, text, token, wait_for},
    host::{ADDRESS, INSTANCE_ID, program},
    kernel::landlock_abi,
    kernel_guest::KernelGuest,
    netns::{Names, Namespace},
    records::{self, ROLE},
    tap::Tap,
};
use nix::unistd::User;

/// What the main thread keeps: taps come and go.
const CAP_BPF_AND_NET_ADMIN: u64 = 1 << 39 | 1 << 12;

/// Root that stays root.
const ROOT: &str = "";

/// A host on which nothing runs yet.
struct Stage {
    files: HostFiles,
    tap: Arc<Tap>,
    namespace: Namespace,
}

impl Stage {
    fn new(user: &str, extra: &str) -> Result<Self> {
        let namespace = Namespace::new()?;
        let tap = Arc::new(namespace.enter(|| Tap::new("tap0"))?);
        let files = HostFiles::of_user(user, extra)?;
        files.put_guest(INSTANCE_ID, "tap0", ADDRESS, |_| ())?;
        Ok(Self {
            files,
            tap,
            namespace,
        })
    }

    fn start(&self) -> Result<Agent> {
        Agent::start(&program()?, &self.namespace, &self.files)
    }

    fn guest(&self) -> Result<KernelGuest> {
        KernelGuest::new(
            Arc::clone(&self.tap),
            records::guest_mac(2),
            &format!("{ADDRESS}/24"),
        )
    }

    /// The same, started by `command`.
    fn refusal_by(&self, command: Command) -> Result<String> {
        let (_, said) = self.files.refusal(command, &["run"])?;
        Ok(said)
    }

    /// Starts the agent where it has to fail, and returns what it says.
    fn refusal(&self) -> Result<String> {
        self.refusal_by(self.namespace.command(program()?))
    }
}

/// What the agent takes to start, as setpriv(1) has the names of capabilities.
const NEEDED: [&str; 4] = ["bpf", "perfmon", "net_admin", "net_raw"];

/// Starts `imds-agent` as [`USER`] with these ambient capabilities, as a systemd unit does.
fn as_user(stage: &Stage, capabilities: &[&str]) -> Result<Command> {
    let granted: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let ambient = granted.trim_start_matches(',');
    let group = user()?.gid.to_string();
    let mut command = stage.namespace.command("setpriv");
    command
        .args(["--reuid", USER, "--regid", &group, "--clear-groups"])
        .args(["--bounding-set", &format!("-all{granted}")]);
    if !ambient.is_empty() {
        command.args(["--inh-caps", ambient, "--ambient-caps", ambient]);
    }
    command.arg(program()?);
    Ok(command)
}

/// The guest gets what is its own, and so does one whose tap is new.
fn serves(stage: &Stage) -> Result<()> {
    let guest = stage.guest()?;
    guest.namespace.enter(gets_role_credentials)?;
    let tap = Arc::new(stage.namespace.enter(|| Tap::new("tap1"))?);
    let other = records::instance("i-0fedcba9876543210", records::guest_mac(3), "tap1", "10.0.0.3");
    stage.files.put("instances", "other", &other)?;
    let guest = KernelGuest::new(tap, records::guest_mac(3), "10.0.0.3/24")?;
    guest.namespace.enter(|| {
        assert_eq!(text(&token()?, "meta-data/instance-id")?, "i-0fedcba9876543210");
        Ok(())
    })
}

fn gets_role_credentials() -> Result<()> {
    let token = token()?;
    assert_eq!(text(&token, "meta-data/instance-id")?, INSTANCE_ID);
    let ask = || get(&token, &format!("meta-data/iam/security-credentials/{ROLE}"));
    wait_for("role credentials", ask, |response| response.status == 200)?;
    Ok(())
}

/// One thread, as proc(5) shows it.
#[derive(PartialEq, Eq, Debug)]
struct Thread {
    name: String,
    user: u32,
    capabilities: BTreeMap<String, u64>,
    has_no_new_privileges: bool,
    /// 2 is a filter.
    seccomp: u32,
}

fn threads(agent: &Agent) -> Result<Vec<Thread>> {
    fs::read_dir(format!("/proc/{}/task", agent.pid()?))?
        .map(|task| status(&fs::read_to_string(task?.path().join("status"))?))
        .collect()
}

fn status(text: &str) -> Result<Thread> {
    let fields: BTreeMap<_, _> = text.lines().filter_map(|line| line.split_once(":\t")).collect();
    let field = |name| fields.get(name).copied().context("a field is missing");
    let ids: Vec<_> = field("Uid")?.split('\t').collect();
    ensure!(
        ids.iter().all(|id| *id == ids[0]),
        "several users in one: {ids:?}"
    );
    let capabilities = fields.iter().filter_map(|(name, value)| {
        let set = name.strip_prefix("Cap")?;
        Some((set.to_owned(), u64::from_str_radix(value, 16).ok()?))
    });
    Ok(Thread {
        name: field("Name")?.to_owned(),
        user: ids[0].parse()?,
        capabilities: capabilities.collect(),
        has_no_new_privileges: field("NoNewPrivs")? == "1",
        seccomp: field("Seccomp")?.parse()?,
    })
}

/// What the names of workers begin with; their number follows.
const WORKER: &str = "imds-worker-";

/// Every thread of an agent that serves has what it needs and no more.
fn is_reduced(agent: &Agent, user: u32, bounding: u64) -> Result<()> {
    is_reduced_but_for(agent, user, bounding, None)
}

/// The same with one kind of thread more, which has so much more.
fn is_reduced_but_for(agent: &Agent, user: u32, bounding: u64, one: Option<(&str, u64)>) -> Result<()> {
    let threads = threads(agent)?;
    let kinds = threads
        .iter()
        .map(|thread| thread.name.trim_end_matches(char::is_numeric));
    let mut names: Vec<_> = kinds.collect();
    names.retain(|name| one.is_none_or(|(one, _)| *name != one));
    assert_eq!(names.len() + one.iter().len(), threads.len());
    names.sort_unstable();
    names.dedup();
    assert_eq!(
        names,
        [
            "imds-agent",
            "imds-audit",
            "imds-control",
            "imds-guests",
            "imds-identity",
            WORKER
        ],
        "a new kind of thread: what may it do?"
    );
    for thread in &threads {
        let effective = match one {
            Some((name, capabilities)) if thread.name == name => capabilities,
            _ if thread.name == "imds-agent" => CAP_BPF_AND_NET_ADMIN,
            _ => 0,
        };
        let sets = [
            ("Amb", 0),
            ("Bnd", bounding),
            ("Eff", effective),
            ("Inh", 0),
            ("Prm", effective),
        ];
        let expected = Thread {
            name: thread.name.clone(),
            user,
            capabilities: sets.map(|(set, bits)| (set.to_owned(), bits)).into(),
            has_no_new_privileges: true,
            seccomp: if thread.name.starts_with(WORKER) { 2 } else { 0 },
        };
        assert_eq!(*thread, expected);
    }
    Ok(())
}

fn user() -> Result<User> {
    User::from_name(USER)?.context("everybody has a nobody")
}

fn give(path: &Path, user: &User) -> Result<()> {
    let (id, group) = (user.uid.as_raw(), user.gid.as_raw());
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    Ok(chown(path, Some(id), Some(group))?)
}

/// Each worker is confined by all that this kernel has, landlock among it. That cannot be seen from the outside, but for the
/// agent's word, which the kernel gave it.
fn is_confined(agent: &mut Agent, workers: usize) -> Result<()> {
    /// The newest that the agent asks for.
    const LANDLOCK: u32 = 9;
    let landlock = if let Some(abi) = landlock_abi() {
        format!("landlock ABI {}", abi.min(LANDLOCK))
    } else {
        println!("skipped: landlock, which this kernel does not have");
        "no landlock".to_owned()
    };
    for number in 0..workers {
        let told = agent.logged(&format!("worker {number}: "))?;
        ensure!(
            told.ends_with(&format!("no capabilities, {landlock}, seccomp")),
            "{told}"
        );
    }
    Ok(())
}

#[test]
fn root_hands_over_to_the_agents_own_user() -> Result<()> {
    let stage = Stage::new(USER, "workers = 2")?;
    let mut agent = stage.start()?;
    is_confined(&mut agent, 2)?;
    // One guest each.
    serves(&stage)?;
    let user = user()?.uid.as_raw();
    is_reduced(&agent, user, 0)?;
    let workers = threads(&agent)?
        .into_iter()
        .filter(|thread| thread.name.starts_with(WORKER));
    assert_eq!(workers.count(), 2);
    let keys = stage.files.state().join("keys");
    for path in [
        stage.files.pins(),
        &keys,
        &keys.join("token"),
        &stage.files.audit(),
    ] {
        assert_eq!(fs::metadata(path)?.uid(), user, "{}", path.display());
    }
    agent.stop()?;
    Ok(())
}

#[test]
fn root_that_stays_root_keeps_as_little() -> Result<()> {
    let stage = Stage::new(ROOT, "")?;
    let mut agent = stage.start()?;
    is_confined(&mut agent, 1)?;
    assert!(
        agent.log.iter().any(|line| line.contains("runs as root")),
        "{:?}",
        agent.log
    );
    serves(&stage)?;
    is_reduced(&agent, 0, 0)
}

#[test]
fn a_user_with_ambient_capabilities_needs_no_root() -> Result<()> {
    let stage = Stage::new(USER, "")?;
    let user = user()?;
    fs::create_dir(stage.files.pins())?;
    fs::create_dir(stage.files.audit().parent().context("a directory")?)?;
    for path in [
        stage.files.pins(),
        &stage.files.state(),
        stage.files.audit().parent().context("a directory")?,
    ] {
        give(path, &user)?;
    }
    let agent = Agent::start_by(as_user(&stage, &NEEDED)?, &stage.files)?;
    serves(&stage)?;
    is_reduced(
        &agent,
        user.uid.as_raw(),
        CAP_BPF_AND_NET_ADMIN | 1 << 38 | 1 << 13,
    )
}

#[test]
fn every_capability_that_is_asked_for_is_needed_and_named_when_it_is_missing() -> Result<()> {
    let stage = Stage::new(USER, "")?;
    for missing in NEEDED {
        let others: Vec<_> = NEEDED.into_iter().filter(|name| *name != missing).collect();
        let said = stage.refusal_by(as_user(&stage, &others)?)?;
        let expected = format!("imds-agent: CAP_{} is missing: ", missing.to_uppercase());
        assert!(said.starts_with(&expected) && said.lines().count() == 1, "{said}");
    }
    Ok(())
}

/// One thread goes to other network namespaces, and no other has the capability for it.
#[test]
fn only_who_goes_to_other_namespaces_may() -> Result<()> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    const PERFMON_AND_NET_RAW: u64 = 1 << 38 | 1 << 13;
    let names = Names::new()?;
    let configured = format!("network_namespaces = [\"{}/*\"]", names.directory().display());
    let stage = Stage::new(USER, &configured)?;
    let there = Namespace::new()?;
    names.give("fc-1", &there)?;
    let tap = Arc::new(there.enter(|| Tap::new("tap0"))?);
    let record = records::instance("i-there", records::guest_mac(2), "fc-1/tap0", ADDRESS);
    stage.files.put("instances", "there", &record)?;
    let guest = KernelGuest::new(tap, records::guest_mac(2), &format!("{ADDRESS}/24"))?;
    let user = user()?;
    let capabilities = CAP_SYS_ADMIN | CAP_BPF_AND_NET_ADMIN | PERFMON_AND_NET_RAW;
    let one = Some(("imds-namespaces", capabilities));

    let agent = stage.start()?;
    serves(&stage)?;
    let is_there = || {
        let id = text(&token()?, "meta-data/instance-id")?;
        ensure!(id == "i-there", "{id}");
        Ok(())
    };
    guest.namespace.enter(is_there)?;
    is_reduced_but_for(&agent, user.uid.as_raw(), 0, one)?;
    agent.kill()?;

    // As a unit starts it. What is the user's already stays so.
    let agent = Agent::start_by(
        as_user(&stage, &[&NEEDED[..], &["sys_admin"]].concat())?,
        &stage.files,
    )?;
    guest.namespace.enter(is_there)?;
    is_reduced_but_for(&agent, user.uid.as_raw(), capabilities, one)
}

#[test]
fn agents_of_other_users_follow_each_other_on_the_same_taps() -> Result<()> {
    let stage = Stage::new(ROOT, "")?;
    let guest = stage.guest()?;
    let agent = stage.start()?;
    let token = guest.namespace.enter(token)?;
    agent.kill()?;
    let log = stage.files.audit().parent().context("a directory")?.to_owned();
    for name in [USER, ROOT, USER] {
        stage.files.set_user(name)?;
        // A directory that need not be the agent's alone is for the operator to give.
        let refusal = stage.refusal()?;
        assert!(refusal.contains("cannot be written to by user"), "{refusal}");
        let name = if name == ROOT { "root" } else { name };
        give(&log, &User::from_name(name)?.context("both are everywhere")?)?;
        let agent = stage.start()?;
        guest.namespace.enter(|| {
            assert_eq!(text(&token, "meta-data/instance-id")?, INSTANCE_ID);
            gets_role_credentials()
        })?;
        agent.kill()?;
    }
    Ok(())
}

#[test]
fn an_agent_of_another_user_takes_nothing_from_one_that_runs() -> Result<()> {
    let stage = Stage::new(USER, "")?;
    let agent = stage.start()?;
    stage.files.set_user(ROOT)?;
    let refusal = stage.refusal()?;
    assert!(refusal.contains("is in use by another agent"), "{refusal}");
    // A new tap's pins are made, so they are still its own.
    serves(&stage)?;
    is_reduced(&agent, user()?.uid.as_raw(), 0)
}

#[test]
fn a_port_of_roots_is_bound_before_the_power_to_is_gone() -> Result<()> {
    let stage = Stage::new(USER, "[sts_endpoint]\nhttp = [\"127.0.0.1:80\"]\n")?;
    let agent = stage.start()?;
    let connected = stage.namespace.enter(|| TcpStream::connect("127.0.0.1:80"));
    assert!(connected.is_ok(), "{connected:?}");
    is_reduced(&agent, user()?.uid.as_raw(), 0)
}

#[test]
fn pins_are_reached_where_only_root_gets_through() -> Result<()> {
    let mut stage = Stage::new(USER, "")?;
    // systemd mounts bpffs like that.
    let closed = stage.files.hide_pins()?;
    assert_eq!(
        (
            fs::metadata(&closed)?.mode() & 0o777,
            fs::metadata(&closed)?.uid()
        ),
        (0o700, 0)
    );
    for _ in 0..2 {
        let agent = stage.start()?;
        serves(&stage)?;
        agent.kill()?;
    }
    Ok(())
}

#[test]
fn a_program_that_brings_credentials_has_no_capability() -> Result<()> {
    for user in [USER, ROOT] {
        let place = tempfile::tempdir()?;
        give(place.path(), &self::user()?)?;
        let seen = place.path().join("status");
        fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let set = r#"{"Version":1,"AccessKeyId":"ASIAX","SecretAccessKey":"s","SessionToken":"t","Expiration":"2126-11-21T10:00:00Z"}"#;
        let script = format!("cat /proc/self/status > {}; echo '{set}'", seen.display());
        let config = format!(
            "[credentials]\nsource = \"process\"\n[credentials.process]\ncommand = {:?}\n",
            ["/bin/sh", "-c", &script]
        );
        let stage = Stage::new(user, &config)?;
        let _agent = stage.start()?;
        stage.guest()?.namespace.enter(gets_role_credentials)?;
        let child = status(&fs::read_to_string(&seen)?)?;
        assert!(child.capabilities.values().all(|set| *set == 0), "{child:?}");
        assert!(child.has_no_new_privileges, "{child:?}");
        assert_eq!(child.user == 0, user == ROOT, "{child:?}");
    }
    Ok(())
}

#[test]
fn a_user_that_is_not_there_is_said_in_one_sentence() -> Result<()> {
    let stage = Stage::new("imds-nobody-at-all", "")?;
    let sentence = "imds-agent: there is no user \"imds-nobody-at-all\" (`user` in the configuration): `useradd --system imds-nobody-at-all`\n";
    assert_eq!(stage.refusal()?, sentence);
    let (_, said) = stage.files.refusal(Command::new(program()?), &["check"])?;
    assert_eq!(said, sentence);
    Ok(())
}

#[test]
fn nobody_but_root_changes_its_user() -> Result<()> {
    let stage = Stage::new("root", "")?;
    let said = stage.refusal_by(as_user(&stage, &[])?)?;
    assert!(said.contains("cannot become \"root\""), "{said}");
    Ok(())
}
