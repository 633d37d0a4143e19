//! The Debian package, under a Debian's own systemd: installed, used, upgraded, removed and purged.

use std::{fs, sync::Arc};

use anyhow::Result;
use aya::{
    programs::{SchedClassifier, TcAttachType},
    util::KernelVersion,
};
use imds_tests::{
    client::{text, token, wait_for},
    kernel_guest::KernelGuest,
    machine::Machine,
    package, records,
    tap::Tap,
};

const ID: &str = "i-0123456789abcdef0";

/// A root without documents has none of the package's either.
const NAMESPACES: &str = include_str!("../../docs/examples/hypervisors/network-namespaces.conf");

/// All files of the machine that a package or its service could leave behind, with owner and mode.
const LIST: &str = "find /etc /usr /var /run/imds-agent /sys/fs/bpf /sys/kernel/rcu_expedited -xdev \\( -path /var/lib/dpkg -o -path /var/log/journal \
                    -o -path /var/lib/systemd/timers -o -path /var/cache -o -path /var/log/dpkg.log \\) -prune -o -printf '%p %u %m\\n' 2>/dev/null | sort; \
                    getent passwd; getent group";

#[test]
fn package_is_installed_upgraded_removed_and_purged() -> Result<()> {
    let shared = tempfile::tempdir()?;
    package::put_into(shared.path())?;
    let machine = Machine::boot(shared.path())?;
    let before = machine.run(LIST)?;

    machine.run("dpkg --install /media/host/old.deb")?;
    let property = |name: &str| machine.run(&format!("systemctl show --property {name} --value imds-agent"));
    // `Type=notify`: it has said that it serves.
    machine.run("systemctl is-active imds-agent")?;
    assert_eq!(property("StatusText")?.trim(), "0 instances, 0 taps");
    assert_eq!(machine.run("systemctl is-enabled imds-agent")?.trim(), "enabled");
    let owners = machine.run(
        "stat --format '%n %U %a' /etc/imds-agent/config.toml /usr/bin/imds-agent /usr/bin/imdsctl /var/lib/imds-agent \
         /var/lib/imds-agent/keys/token /var/log/imds-agent /run/imds-agent /sys/fs/bpf/imds-agent \
         /usr/share/imds-agent/libvirt/imds-agent",
    )?;
    assert_eq!(
        owners,
        "/etc/imds-agent/config.toml root 644\n/usr/bin/imds-agent root 755\n/usr/bin/imdsctl root 755\n\
         /var/lib/imds-agent imds-agent 700\n/var/lib/imds-agent/keys/token imds-agent 600\n\
         /var/log/imds-agent imds-agent 750\n/run/imds-agent imds-agent 755\n/sys/fs/bpf/imds-agent imds-agent 700\n\
         /usr/share/imds-agent/libvirt/imds-agent root 755\n"
    );
    machine.run("systemd-analyze verify --man=no /lib/systemd/system/imds-agent.service")?;
    let score = machine
        .run("systemd-analyze security --offline=true /lib/systemd/system/imds-agent.service | tail -1")?;
    println!("{score}");
    assert!(score.contains("OK"), "{score}");
    machine.run("imds-agent check")?;

    // A guest.
    let network = machine.network()?;
    let tap = Arc::new(network.enter(|| Tap::new("tap0"))?);
    let record = records::instance(ID, records::guest_mac(2), "tap0", "10.0.0.2");
    fs::write(shared.path().join("first.json"), record.to_string())?;
    machine.run("imdsctl instance put /media/host/first.json")?;
    let guest = KernelGuest::new(Arc::clone(&tap), records::guest_mac(2), "10.0.0.2/24")?;
    let ask = || guest.namespace.enter(|| text(&token()?, "meta-data/instance-id"));
    wait_for(
        "the guest is served",
        || Ok(ask().ok()),
        |id| id.as_deref() == Some(ID),
    )?;
    wait_for(
        "the status",
        || property("StatusText"),
        |status| status.trim() == "1 instances, 1 taps",
    )?;
    let journal = machine.run("journalctl --output json --unit imds-agent | grep 'tap tap0: bound'")?;
    assert!(journal.contains(r#""PRIORITY":"6""#), "{journal}");

    // Reloaded: by the same process, with the operator's own words.
    let process = property("MainPID")?;
    machine.run("sed -i 's/^log_level = .*/log_level = \"debug\"/' /etc/imds-agent/config.toml && systemctl reload imds-agent")?;
    machine.run(
        "journalctl --unit imds-agent --grep 'SIGHUP: the configuration is read again; changed: log_level'",
    )?;
    assert_eq!(property("MainPID")?, process);

    // An agent that does not move is started again.
    machine.run(
        "mkdir -p /run/systemd/system/imds-agent.service.d && cd /run/systemd/system/imds-agent.service.d && \
         printf '[Service]\\nWatchdogSec=2\\n' > watchdog.conf && systemctl daemon-reload && systemctl restart imds-agent && \
         systemctl kill --signal STOP imds-agent",
    )?;
    let result = || property("NRestarts");
    wait_for("the watchdog", result, |restarts| restarts.trim() != "0")?;
    wait_for(
        "the guest is served again",
        || Ok(ask().ok()),
        |id| id.as_deref() == Some(ID),
    )?;
    machine.run("rm -r /run/systemd/system/imds-agent.service.d && systemctl daemon-reload")?;

    // Whoever may look by one of its other groups may, though the unit hides others' processes from the agent.
    machine.run(
        "cp /etc/imds-agent/config.toml /tmp/before.toml && \
         sed -i 's/^read_group = .*/read_group = \"5000\"/; s/^admin_group = .*/admin_group = \"5001\"/' /etc/imds-agent/config.toml && \
         systemctl restart imds-agent && \
         setpriv --reuid 4000 --regid 4000 --groups 4001,5000 imdsctl instance list && \
         ! setpriv --reuid 4000 --regid 4000 --groups 4001 imdsctl instance list && \
         mv /tmp/before.toml /etc/imds-agent/config.toml && systemctl restart imds-agent",
    )?;

    // A tap in another network namespace: the unit as it is says what it lacks, and has it by the drop-in. (Where systemd is not
    // in a container it has mounts shared by itself.)
    machine.run("mount --make-rshared / && cp /etc/imds-agent/config.toml /tmp/before.toml")?;
    machine.run(
        "sed -i 's/^network_namespaces = .*/network_namespaces = [\"fc-*\"]/' /etc/imds-agent/config.toml && \
         ! systemctl restart imds-agent && \
         journalctl --unit imds-agent --grep 'CAP_SYS_ADMIN is missing, which `network_namespaces`'",
    )?;
    fs::write(shared.path().join("network-namespaces.conf"), NAMESPACES)?;
    machine.run(
        "install -D -m 644 /media/host/network-namespaces.conf \
             /etc/systemd/system/imds-agent.service.d/network-namespaces.conf && \
         systemctl daemon-reload && systemctl restart imds-agent",
    )?;
    machine.run("mkdir /dev/net && mknod /dev/net/tun c 10 200")?;
    machine.run("ip netns add fc-1 && ip -n fc-1 tuntap add mode tap name tap0")?;
    let told = || {
        Ok(machine
            .run("journalctl --unit imds-agent --grep 'tap fc-1/tap0: bound to nobody'")
            .ok())
    };
    wait_for("the tap in the namespace", told, Option::is_some)?;
    machine.run("imds-agent attach fc-1/tap0 && ip netns delete fc-1")?;
    let told = || {
        Ok(machine
            .run("journalctl --unit imds-agent --grep 'network namespace fc-1: out of sight'")
            .ok())
    };
    wait_for("the end of the namespace", told, Option::is_some)?;
    machine.run(
        "rm -r /etc/systemd/system/imds-agent.service.d && mv /tmp/before.toml /etc/imds-agent/config.toml && \
         systemctl daemon-reload && systemctl restart imds-agent",
    )?;

    let process = property("MainPID")?;
    machine.run("dpkg --install /media/host/new.deb")?;
    assert_ne!(property("MainPID")?, process);
    machine.run("grep 'log_level = \"debug\"' /etc/imds-agent/config.toml")?;
    assert_eq!(ask()?, ID);

    refusals(&machine)?;

    let has_tcx = KernelVersion::current()? >= KernelVersion::new(6, 6, 0);
    if has_tcx {
        assert_eq!(network.enter(programs_on_tap)?, ["imds_inbound", "imds_outbound"]);
    } else {
        println!("skipped: what is on the tap, which a kernel before 6.6 tells otherwise");
    }
    machine.run("dpkg --remove imds-agent")?;
    if has_tcx {
        assert_eq!(network.enter(programs_on_tap)?, [""; 0], "left on the tap");
    }
    machine.run("test ! -e /sys/fs/bpf/imds-agent")?;
    machine.run("test -e /var/lib/imds-agent/keys/token && test -e /etc/imds-agent/config.toml")?;
    machine.run("dpkg --purge imds-agent")?;
    let after = machine.run(LIST)?;
    let left: Vec<_> = after.lines().filter(|line| !before.contains(line)).collect();
    assert_eq!(left, [""; 0], "left behind");
    Ok(())
}

/// The names of the programs that TCX runs on the guest's tap.
fn programs_on_tap() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = SchedClassifier::query_tcx("tap0", direction)?;
        for program in programs {
            names.push(program.name_as_str().unwrap_or_default().to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whatever keeps an agent from running is one sentence and a code of its own; the service is told a configuration's mistake by
/// its state, and runs again when that is mended. A kernel that is too old is nothing that a test can have here.
fn refusals(machine: &Machine) -> Result<()> {
    let run = |prepared: &str, agent: &str| -> Result<(String, String)> {
        let printed = machine.run(&format!(
            "({prepared}; {agent}) >/tmp/said 2>&1; echo $?; cat /tmp/said"
        ))?;
        let (code, said) = printed.split_once('\n').unwrap_or_default();
        Ok((code.to_owned(), said.trim_end().to_owned()))
    };
    let own = "printf 'state_directory = \"/tmp/s\"\\nbpf_directory = \"/sys/fs/bpf/s\"\\naudit_file = \"\"\\nmetrics.socket = \"\"\\ncontrol.socket = \"/tmp/s.sock\"\\n' > /tmp/own.toml";
    let alone = "imds-agent run --config /tmp/own.toml";
    for (prepared, agent, code, part) in [
        ("true", "imds-agent walk", "2", "unrecognized subcommand 'walk'"),
        (
            "echo 'tapps = 1' > /tmp/bad.toml",
            "imds-agent run --config /tmp/bad.toml",
            "3",
            "/tmp/bad.toml:1:1: tapps: unknown field `tapps`",
        ),
        (
            own,
            "setpriv --reuid nobody --clear-groups imds-agent run --config /tmp/own.toml",
            "4",
            "CAP_",
        ),
        ("true", "imds-agent run", "5", "in use by another agent"),
        ("rm -rf /tmp/s; touch /tmp/s", alone, "6", "/tmp/s"),
    ] {
        let (got, said) = run(prepared, agent)?;
        println!("{agent}: {got}: {said}");
        assert_eq!(got, code, "{agent}: {said}");
        assert!(said.contains(part), "{agent}: {said}");
    }
    machine.run("rm -rf /sys/fs/bpf/s /tmp/s /tmp/s.sock")?;
    let state = |name: &str| machine.run(&format!("systemctl show --property {name} --value imds-agent"));
    machine.run(
        "cp /etc/imds-agent/config.toml /tmp/good.toml && echo 'tapps = 1' >> /etc/imds-agent/config.toml",
    )?;
    machine.run("! systemctl restart imds-agent")?;
    assert_eq!(state("ActiveState")?.trim(), "failed");
    assert_eq!(state("ExecMainStatus")?.trim(), "3");
    machine.run("cp /tmp/good.toml /etc/imds-agent/config.toml && systemctl restart imds-agent")?;
    assert_eq!(state("ActiveState")?.trim(), "active");
    Ok(())
}
