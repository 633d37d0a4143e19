//! The Debian package, under a Debian's own systemd: installed, used, upgraded, removed and purged.

use std::{fs, path::Path, process::Command, sync::Arc};

use anyhow::{Result, ensure};
use imds_tests::{
    client::{text, token, wait_for},
    kernel_guest::KernelGuest,
    machine::Machine,
    qemu, records,
    tap::Tap,
};

const ID: &str = "i-0123456789abcdef0";

/// All files of the machine that a package or its service could leave behind, with owner and mode.
const LIST: &str = "find /etc /usr /var /run/imds-agent /sys/fs/bpf -xdev \\( -path /var/lib/dpkg -o -path /var/log/journal \
                    -o -path /var/lib/systemd -o -path /var/cache -o -path /var/log/dpkg.log \\) -prune -o -printf '%p %u %m\\n' 2>/dev/null | sort; getent passwd";

/// The same package with a higher version and other words in its configuration.
fn upgraded(package: &Path, directory: &Path) -> Result<()> {
    let tree = directory.join("tree");
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output()?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    run(Command::new("dpkg-deb")
        .arg("--raw-extract")
        .arg(package)
        .arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    let version = text
        .lines()
        .find(|line| line.starts_with("Version: "))
        .unwrap_or_default();
    fs::write(&control, text.replace(version, "Version: 99.0-1"))?;
    run(Command::new("dpkg-deb")
        .args(["-Znone", "--build"])
        .arg(&tree)
        .arg(directory.join("new.deb")))?;
    Ok(fs::remove_dir_all(&tree)?)
}

#[test]
fn package_is_installed_upgraded_removed_and_purged() -> Result<()> {
    let package = qemu::target().join("dist/imds-agent.deb");
    ensure!(
        package.exists(),
        "there is no package: `cargo xtask dist --debug` makes it"
    );
    let shared = tempfile::tempdir()?;
    fs::copy(&package, shared.path().join("old.deb"))?;
    upgraded(&package, shared.path())?;
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

    let process = property("MainPID")?;
    machine.run("dpkg --install /media/host/new.deb")?;
    assert_ne!(property("MainPID")?, process);
    machine.run("grep 'log_level = \"debug\"' /etc/imds-agent/config.toml")?;
    assert_eq!(ask()?, ID);

    machine.run("dpkg --remove imds-agent")?;
    machine.run("test ! -e /sys/fs/bpf/imds-agent")?;
    machine.run("test -e /var/lib/imds-agent/keys/token && test -e /etc/imds-agent/config.toml")?;
    machine.run("dpkg --purge imds-agent")?;
    let after = machine.run(LIST)?;
    let left: Vec<_> = after.lines().filter(|line| !before.contains(line)).collect();
    assert_eq!(left, [""; 0], "left behind");
    Ok(())
}
