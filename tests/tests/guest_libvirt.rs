//! Domains of a real libvirtd, which the shipped hook tells the agent about.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::MacAddr;
use imds_tests::{
    agent::{Agent, HostFiles},
    client::wait_for,
    control::imdsctl,
    dhcp::DhcpServer,
    host::{program, program_called},
    libvirt::{Domain, Libvirt},
    machine::Machine,
    netns::Namespace,
    package,
    qemu::Software,
};
use serde_json::{Value, json};

const HOOK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/libvirt/imds-agent");

const ID: &str = "/latest/meta-data/instance-id";
const TAG: &str = "/latest/meta-data/tags/instance/team";
const USER: &str = "/latest/user-data";

const STEPS: &[&str] = &[
    "get=/latest/meta-data/instance-id",
    "get=/latest/meta-data/tags/instance/team",
    "get=/latest/user-data",
];

/// What a stock image is told to do: asks for the role's credentials as an SDK does, three times each, until the instance's tags are
/// to be read, which is when its host has been reconfigured.
const ASKS_ON: &str = r#"#!/bin/sh
service=http://169.254.169.254/latest
ask() { curl --silent --fail --max-time 2 --retry 2 --retry-delay 1 --retry-all-errors "$@"; }
asked=0 failed=0
tell() { printf '\n%s\n' "guest: $1" > /dev/ttyS0; }
tell asks
until name=$(curl --silent --fail --max-time 2 --header "X-aws-ec2-metadata-token: $token" $service/meta-data/tags/instance/Name); do
    asked=$((asked + 1))
    token=$(ask --request PUT --header "X-aws-ec2-metadata-token-ttl-seconds: 300" $service/api/token) &&
        credentials=$(ask --header "X-aws-ec2-metadata-token: $token" $service/meta-data/iam/security-credentials/web) ||
        failed=$((failed + 1))
done
tell "asked, $failed failed, $name, $(echo "$credentials" | grep -c ASIA)"
"#;

const METADATA: &str = r#"
<imds:instance xmlns:imds="urn:imds-agent:instance:1">
  <imds:availability-zone>home-1a</imds:availability-zone>
  <imds:tag key="team">blue</imds:tag>
  <imds:metadata-options instance-metadata-tags="enabled"/>
  <imds:user-data>#!/bin/sh
echo hello</imds:user-data>
</imds:instance>"#;

/// A host with an agent and a libvirtd. Fields are dropped in order.
struct Host {
    libvirt: Libvirt,
    agent: Agent,
    files: HostFiles,
    namespace: Namespace,
}

impl Host {
    fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        namespace.ip("link add br0 type bridge")?;
        namespace.ip("link set br0 up")?;
        let files = HostFiles::new("")?;
        let agent = Agent::start(&program()?, &namespace, &files)?;
        let imdsctl = program_called("imdsctl")?;
        let libvirt = Libvirt::start(&namespace, Path::new(HOOK), &imdsctl, &files.config())?;
        Ok(Self {
            libvirt,
            agent,
            files,
            namespace,
        })
    }

    fn records(&self) -> Result<Vec<(PathBuf, Value)>> {
        let entries = fs::read_dir(self.files.state().join("instances"))?;
        let files = entries
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        let records = files
            .into_iter()
            .filter(|file| file.extension().is_some_and(|extension| extension == "json"));
        records
            .map(|file| Ok((file.clone(), serde_json::from_slice(&fs::read(&file)?)?)))
            .collect()
    }

    fn only_record(&self) -> Result<(PathBuf, Value)> {
        let mut records = self.records()?;
        ensure!(
            records.len() == 1,
            "{} records\n{}",
            records.len(),
            self.libvirt.log()
        );
        records.pop().context("a record")
    }

    /// Waits until the domain is gone, of which libvirt tells its hook, and its record with it.
    fn wait_for_end(&self, domain: &Domain) -> Result<()> {
        let is_gone = || Ok(self.libvirt.virsh(&["dominfo", domain.name]).is_err());
        wait_for("the domain's end", is_gone, |is_gone| *is_gone)?;
        wait_for("no record", || self.records(), Vec::is_empty)?;
        Ok(())
    }

    fn import(&self) -> Result<String> {
        let output = imdsctl(&self.files)?
            .args(["libvirt", "--config"])
            .arg(self.files.config())
            .args(["import", "--connect", &self.libvirt.uri(), "--json"])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{text}{complaint}");
        Ok(text)
    }
}

/// Waits until doctor finds nothing in the way of a domain, and returns whose instance that is. Taps are bound, and credentials
/// fetched, a moment after the record is there.
fn healthy(
    libvirt: &Libvirt,
    domain: &Domain,
    client: &str,
    imdsctl: impl Fn() -> Result<Command>,
) -> Result<Value> {
    let ask = || {
        let mut doctor = imdsctl()?;
        doctor.args(["--json", "doctor", "--client", client, "--domain", domain.name]);
        let output = doctor.args(["--connect", &libvirt.uri()]).output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        let diagnosis = serde_json::from_slice::<Value>(&output.stdout).context(complaint.into_owned())?;
        Ok((output.status.code(), diagnosis))
    };
    let ((_, mut diagnosis), _) = wait_for("nothing in the way", ask, |(code, _)| *code == Some(0))?;
    Ok(diagnosis["instanceId"].take())
}

fn bridged() -> Domain {
    Domain {
        name: "bridged",
        uuid: "ec2f8b1e-6a3c-4b52-9d0e-3f1a7c5b9e21",
        metadata: METADATA,
        interface: "<source bridge='br0'/>",
        interface_type: "bridge",
        mac: MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 1]),
        software: Software::Init {
            address: "10.0.0.2/24".to_owned(),
            steps: STEPS.iter().map(|&step| step.to_owned()).collect(),
        },
    }
}

fn ethernet() -> Domain {
    Domain {
        name: "ethernet",
        uuid: "8c4b6f00-2d5e-4f0a-9c3e-1b2a3c4d5e6f",
        interface: "<target dev='storage-7'/>",
        interface_type: "ethernet",
        mac: MacAddr([0x52, 0x54, 0, 0xaa, 0xbb, 2]),
        ..bridged()
    }
}

fn expect_metadata(host: &Host, domain: &Domain, id: &str) -> Result<()> {
    let console = host.libvirt.wait(domain)?;
    for (path, body) in [(ID, id), (TAG, "blue"), (USER, "#!/bin/sh\necho hello\n")] {
        assert_eq!(
            console.answer(path),
            Some(&*format!("200 {body:?}")),
            "{:#?}",
            console.lines
        );
    }
    Ok(())
}

#[test]
fn a_domain_on_a_bridge_has_its_metadata_from_its_start_to_its_end() -> Result<()> {
    let mut host = Host::new()?;
    let domain = bridged();
    host.libvirt.create(&domain, true)?;
    let (file, record) = host.only_record()?;
    let id = record["InstanceId"].as_str().context("an id")?.to_owned();
    let tap = record["NetworkInterfaces"][0]["Tap"]
        .as_str()
        .context("the tap has its name")?;
    host.agent
        .wait_for_log(&format!("tap {tap}: bound to {}", domain.mac))?;

    // Tokens are required, and SMBIOS says EC2's UUID without its serial number: enough for newer releases of cloud-init.
    let instance = healthy(&host.libvirt, &domain, "cloud-init", || imdsctl(&host.files))?;
    assert_eq!(instance, *id);

    // The record is lost, and made again from what runs.
    fs::remove_file(&file)?;
    host.agent.wait_for_log("bound to nobody")?;
    let report = host.import()?;
    ensure!(report.contains(&id), "{report}");
    // Then without the tap's name: libvirt's convention for MACs says the same.
    let (_, mut record) = host.only_record()?;
    record["NetworkInterfaces"][0]["Tap"].take();
    host.files.put("instances", &id, &record)?;

    host.libvirt.virsh(&["resume", domain.name])?;
    expect_metadata(&host, &domain, &id)?;
    host.wait_for_end(&domain)
}

#[test]
fn a_domain_with_a_tap_of_its_own_has_its_metadata_until_it_is_destroyed() -> Result<()> {
    let host = Host::new()?;
    let domain = ethernet();
    host.libvirt.create(&domain, true)?;
    let (_, record) = host.only_record()?;
    assert_eq!(record["NetworkInterfaces"][0]["Tap"], "storage-7");
    let id = record["InstanceId"].as_str().context("an id")?.to_owned();
    host.namespace.ip("link set storage-7 up")?;
    host.libvirt.virsh(&["resume", domain.name])?;
    expect_metadata(&host, &domain, &id)?;
    host.wait_for_end(&domain)?;

    host.libvirt.create(&domain, true)?;
    assert_eq!(host.only_record()?.1["InstanceId"], *id);
    host.libvirt.virsh(&["destroy", domain.name])?;
    host.wait_for_end(&domain)?;
    // A record that the last word of a domain did not reach goes with the next import.
    host.libvirt.create(&domain, true)?;
    let (file, stale) = host.only_record()?;
    host.libvirt.virsh(&["destroy", domain.name])?;
    host.wait_for_end(&domain)?;
    fs::write(&file, stale.to_string())?;
    let report = host.import()?;
    ensure!(report.contains("Deleted") && report.contains(&id), "{report}");
    assert_eq!(host.records()?, []);
    Ok(())
}

/// Nothing but what an operator wrote decides who that instance is.
#[test]
fn an_operators_record_of_a_domain_outlives_it() -> Result<()> {
    let mut host = Host::new()?;
    let domain = bridged();
    let record = serde_json::json!({
        "InstanceId": "i-0123456789abcdef0",
        "NetworkInterfaces": [{ "MacAddress": domain.mac.to_string() }],
    });
    host.files.put("instances", "web", &record)?;
    host.libvirt.create(&domain, true)?;
    host.agent.wait_for_log(&format!("bound to {}", domain.mac))?;
    host.libvirt.virsh(&["destroy", domain.name])?;
    host.agent.wait_for_log("detached")?;
    assert_eq!(host.only_record()?.1, record);
    Ok(())
}

/// From an empty Debian to credentials in a guest of a stock image, as docs/hypervisors.md has it, while the agent is killed, upgraded
/// and reconfigured.
#[test]
fn a_new_operator_has_credentials_in_a_stock_guest_whatever_happens_to_the_agent() -> Result<()> {
    let shared = tempfile::tempdir()?;
    package::put_into(shared.path())?;
    let machine = Machine::boot(shared.path())?;
    machine.run("dpkg --install /media/host/old.deb")?;
    let network = machine.network()?;
    network.ip("link add br0 type bridge")?;
    network.ip("link set br0 up")?;
    let libvirt = Libvirt::start_in(&machine)?;
    for command in [
        "role create --role-name web --account-id 123456789012",
        "instance-profile create --instance-profile-name web-servers --account-id 123456789012",
        "instance-profile add-role --instance-profile-name web-servers --role-name web",
    ] {
        machine.run(&format!("imdsctl {command}"))?;
    }

    let uuid = "ec2f8b1e-6a3c-4b52-9d0e-3f1a7c5b9e21";
    let domain = Domain {
        name: "web-1",
        uuid,
        metadata: "",
        software: Software::Debian {
            smbios_uuid: Some(uuid.to_owned()),
            operator_config: false,
        },
        ..bridged()
    };
    libvirt.define(&domain)?;
    let instance = format!(
        "<instance><account>123456789012</account><instance-profile>web-servers</instance-profile>\
         <key-pair name='ops'>ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample ops</key-pair>\
         <user-data><![CDATA[{ASKS_ON}]]></user-data></instance>"
    );
    let namespace = "urn:imds-agent:instance:1";
    libvirt.virsh(&[
        "metadata",
        domain.name,
        namespace,
        "--key",
        "imds",
        "--config",
        "--set",
        &instance,
    ])?;
    let _dhcp = DhcpServer::start(&network, "br0", "10.0.0.1", domain.mac, "10.0.0.2")?;
    libvirt.virsh(&["start", domain.name])?;
    let listed = || machine.run("imdsctl --json instance list");
    let id = healthy(&libvirt, &domain, "cloud-init-22", || {
        let mut imdsctl = Command::new(program_called("imdsctl")?);
        imdsctl
            .arg("--socket")
            .arg(machine.file("/run/imds-agent/control.sock"));
        Ok(imdsctl)
    })?;
    ensure!(
        listed()?.contains(id.as_str().context("an id")?),
        "{id} is not listed"
    );

    libvirt.wait_for_line(&domain, "guest: asks")?;
    let serves = || machine.run("systemctl show --property StatusText --value imds-agent");
    let wait = |what: &str| wait_for(what, serves, |status| status.trim() == "1 instances, 1 taps");
    machine.run("systemctl kill --signal KILL imds-agent")?;
    wait("the agent after it was killed")?;
    machine.run("dpkg --install /media/host/new.deb")?;
    wait("the upgraded agent")?;
    machine.run(
        "sed -i 's/^InstanceMetadataTags = .*/InstanceMetadataTags = \"enabled\"/' /etc/imds-agent/config.toml && \
         systemctl reload imds-agent",
    )?;

    let console = libvirt.wait(&domain)?;
    let told = |start: &str| console.lines.iter().find_map(|line| line.strip_prefix(start));
    assert_eq!(
        told("guest: asked, "),
        Some("0 failed, web-1, 1"),
        "{:#?}",
        console.lines
    );
    let report: Value = serde_json::from_str(told("report: ").context("no report")?)?;
    assert_eq!(
        report["result"]["v1"],
        json!({ "datasource": "DataSourceEc2Local", "errors": [] })
    );
    assert_eq!(report["instance_id"].as_str().map(str::trim), id.as_str());
    let keys = report["authorized_keys"].as_str().unwrap_or_default();
    assert!(keys.contains("AAAAC3NzaC1lZDI1NTE5AAAAIExample"), "{keys}");
    // Its end is told by the hook as well, and then all of it can go.
    wait_for("no record", listed, |list| !list.contains("InstanceId"))?;
    machine.run("dpkg --purge imds-agent")?;
    Ok(())
}
