//! A host with an agent, and machines in network namespaces of their own.

use std::{
    collections::BTreeSet, fs, net::TcpStream, os::unix::fs::MetadataExt as _, sync::Arc, time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Map, MapData, PerCpuHashMap},
    programs::{SchedClassifier, TcAttachType},
    util::KernelVersion,
};
use imds_agent::datapath::Counters;
use imds_ebpf::abi::{ABI_VERSION, NamespaceNumber, TapCounters, TapIndex};
use imds_tests::{
    agent::{Agent, HostFiles},
    client::{get, text, token},
    control::ask,
    host::{ADDRESS, program},
    kernel_guest::KernelGuest,
    netns::{Names, Namespace},
    records::{self, guest_mac},
    tap::Tap,
};
use serde_json::Value;

/// Every tap's index, in whichever namespace.
pub const INDEX: TapIndex = TapIndex(77);

/// A host whose agent serves the namespaces that have names.
pub struct Host {
    pub files: HostFiles,
    pub names: Names,
    pub namespace: Namespace,
}

/// A machine with a network namespace of its own, as the jailer makes them.
pub struct Machine {
    pub guest: KernelGuest,
    pub namespace: Namespace,
}

impl Host {
    pub fn new(extra: &str) -> Result<Self> {
        let names = Names::new()?;
        let files = HostFiles::new(&config(&names, "*", extra))?;
        Ok(Self {
            files,
            names,
            namespace: Namespace::new()?,
        })
    }

    pub fn start(&self) -> Result<Agent> {
        Agent::start(&program()?, &self.namespace, &self.files)
    }

    /// Writes the record of an instance whose interface has every clone's MAC.
    pub fn put(&self, id: &str, tap: &str) -> Result<()> {
        let record = records::instance(id, guest_mac(2), tap, ADDRESS);
        self.files.put("instances", id, &record)
    }

    /// A namespace with this name.
    pub fn named(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::new()?;
        self.names.give(name, &namespace)?;
        Ok(namespace)
    }

    /// A machine in a namespace of this name.
    pub fn machine(&self, name: &str) -> Result<Machine> {
        Machine::in_namespace(self.named(name)?)
    }

    /// Runs a command that must succeed, and returns what it says.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.files.run(self.namespace.command(program()?), words)
    }

    /// Runs a command that must fail, and returns what it says.
    pub fn refused(&self, words: &[&str]) -> Result<String> {
        let (_, said) = self.files.refusal(self.namespace.command(program()?), words)?;
        Ok(said)
    }

    /// What is pinned of links, and of clsact queueing disciplines that are the agent's.
    pub fn pinned(&self) -> Result<BTreeSet<String>> {
        let mut pinned = BTreeSet::new();
        for kind in ["links", "clsact"] {
            for entry in fs::read_dir(self.files.pins().join(kind))? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                pinned.insert(name);
            }
        }
        Ok(pinned)
    }

    /// Every tap that is counted on.
    pub fn counted(&self) -> Result<BTreeSet<TapIndex>> {
        let map = self.counter_map()?;
        let keys = map.keys().map(|key| key.map(TapIndex));
        Ok(keys.collect::<Result<_, _>>()?)
    }

    pub fn counters(&self, tap: TapIndex) -> Result<Counters> {
        Ok(Counters::sum(&self.counter_map()?.get(&tap.0, 0)?))
    }

    fn counter_map(&self) -> Result<PerCpuHashMap<MapData, u64, TapCounters>> {
        let pin = self.files.pins().join(format!("v{ABI_VERSION}/COUNTERS"));
        Ok(Map::PerCpuHashMap(MapData::from_pin(pin)?).try_into()?)
    }
}

/// What the control socket answers.
pub fn told(files: &HostFiles, method: &str, path: &str) -> Result<Value> {
    let response = ask(&files.socket(), method, path, &[], b"")?;
    ensure!(response.status == 200, "{path}: {}", response.head);
    Ok(serde_json::from_slice(&response.body)?)
}

fn config(names: &Names, pattern: &str, extra: &str) -> String {
    let directory = names.directory().display();
    format!("network_namespaces = [\"{directory}/{pattern}\"]\n{extra}")
}

impl Machine {
    pub fn in_namespace(namespace: Namespace) -> Result<Self> {
        let tap = namespace.enter(|| Tap::with_index("tap0", INDEX))?;
        let guest = KernelGuest::new(Arc::new(tap), guest_mac(2), &format!("{ADDRESS}/24"))?;
        Ok(Self { guest, namespace })
    }

    pub fn token(&self) -> Result<String> {
        self.guest.namespace.enter(token)
    }

    pub fn instance_id(&self, token: &str) -> Result<String> {
        self.guest
            .namespace
            .enter(|| text(token, "meta-data/instance-id"))
    }

    pub fn status(&self, token: &str) -> Result<u16> {
        let response = self.guest.namespace.enter(|| get(token, "meta-data/instance-id"));
        Ok(response?.status)
    }

    /// Whether it is answered at all: with a SYN that nobody takes it waits.
    pub fn is_answered(&self) -> bool {
        let address = "169.254.169.254:80".parse().expect("an address");
        let timeout = Duration::from_millis(300);
        let guest = &self.guest.namespace;
        guest.enter(|| TcpStream::connect_timeout(&address, timeout).is_ok())
    }

    /// The programs on its tap, where the kernel says that.
    pub fn programs(&self) -> Result<Option<[u32; 2]>> {
        if !has_tcx()? {
            return Ok(None);
        }
        self.namespace.enter(|| {
            let id = |hook| -> Result<u32> {
                let (_, programs) = SchedClassifier::query_tcx("tap0", hook)?;
                Ok(programs.first().context("a program")?.id())
            };
            Ok(Some([id(TcAttachType::Ingress)?, id(TcAttachType::Egress)?]))
        })
    }

    /// As the classifier keys it.
    pub fn tap(&self) -> Result<TapIndex> {
        tap_in(&self.namespace, INDEX)
    }
}

pub fn has_tcx() -> Result<bool> {
    Ok(KernelVersion::current()? >= KernelVersion::new(6, 6, 0))
}

/// A device of a namespace as the classifier keys it.
pub fn tap_in(namespace: &Namespace, index: TapIndex) -> Result<TapIndex> {
    let number = fs::metadata(namespace.path())?.ino().try_into()?;
    Ok(TapIndex::within(NamespaceNumber(number), index.ifindex()))
}
