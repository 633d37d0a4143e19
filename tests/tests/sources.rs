//! `imdsctl libvirt` and `imdsctl proxmox` on a state directory, as hooks and operators call them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use imds_tests::{agent::HostFiles, host::program};
use serde_json::{Value, json};

const DOMAIN: &str = include_str!("../../docs/examples/hypervisors/libvirt.xml");
const CONF: &str = include_str!("../../docs/examples/hypervisors/proxmox-100.conf");

/// Runs `imdsctl` with `input`; the source is the first argument.
fn imdsctl(files: &HostFiles, arguments: &[&str], input: &str) -> Result<Output> {
    let (source, arguments) = arguments.split_first().context("a source")?;
    let mut imdsctl = Command::new(program()?.with_file_name("imdsctl"))
        .args(["--json", source, "--config"])
        .arg(files.config())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Whoever does not care for it does not read it.
    let _ = imdsctl.stdin.take().context("stdin")?.write_all(input.as_bytes());
    Ok(imdsctl.wait_with_output()?)
}

fn hook(files: &HostFiles, operation: &str, xml: &str) -> Result<()> {
    let output = imdsctl(
        files,
        &["libvirt", "hook", "--", "web-1", operation, "begin", "-"],
        xml,
    )?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(
        output.stdout.is_empty(),
        "libvirt would take that for the domain's XML: {output:?}"
    );
    Ok(())
}

fn records(files: &HostFiles) -> Result<Vec<Value>> {
    let entries = fs::read_dir(files.state().join("instances"))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    let files = paths
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files
        .map(|path| Ok(serde_json::from_slice(&fs::read(path)?)?))
        .collect()
}

#[test]
fn each_word_of_libvirts_hook_does_what_it_should() -> Result<()> {
    let files = HostFiles::new("")?;
    for nothing_yet in ["prepare", "migrate", "restore", "started", "word-of-the-future"] {
        hook(&files, nothing_yet, DOMAIN)?;
        assert_eq!(records(&files)?, Vec::<Value>::new(), "{nothing_yet}");
    }
    hook(&files, "start", DOMAIN)?;
    let mut started = records(&files)?.pop().context("a record")?;
    assert_eq!(started["NetworkInterfaces"][0]["Tap"], "vnet3");
    assert!(started["LaunchTime"].is_string(), "{started}");

    // libvirtd comes back, and what an operator has changed meanwhile stays.
    started["ImageId"] = "ami-changed".into();
    let id = started["InstanceId"].as_str().context("an id")?.to_owned();
    files.put("instances", &id, &started)?;
    hook(&files, "reconnect", DOMAIN)?;
    assert_eq!(records(&files)?, [started]);
    // The next run begins anew.
    hook(&files, "start", DOMAIN)?;
    assert_eq!(records(&files)?[0]["ImageId"], "ami-0abcdef1234567890");
    hook(&files, "stopped", DOMAIN)?;
    hook(&files, "release", DOMAIN)?;
    assert_eq!(records(&files)?, Vec::<Value>::new());
    hook(&files, "reconnect", DOMAIN)?;
    assert_eq!(records(&files)?.len(), 1);
    Ok(())
}

/// An agent that is not root has to read the records and to share the lock.
#[test]
fn what_root_writes_belongs_to_whoever_owns_the_state_directory() -> Result<()> {
    const SOMEBODY: u32 = 65534;
    let files = HostFiles::new("")?;
    let directory = files.config().parent().context("a directory")?.to_owned();
    // The owner has to get there.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o711))?;
    let instances = files.state().join("instances");
    for path in [files.state(), instances.clone()] {
        chown(path, Some(SOMEBODY), Some(SOMEBODY))?;
    }
    hook(&files, "start", DOMAIN)?;
    let record = fs::read_dir(&instances)?.next().context("a record")??;
    for metadata in [record.metadata()?, files.state().join(".lock").metadata()?] {
        assert_eq!((metadata.uid(), metadata.gid()), (SOMEBODY, SOMEBODY));
    }
    Ok(())
}

#[test]
fn a_domain_that_makes_no_record_is_told_of_with_its_name() -> Result<()> {
    let files = HostFiles::new("")?;
    let output = imdsctl(
        &files,
        &["libvirt", "hook", "--", "web-1", "start", "begin", "-"],
        "<domain",
    )?;
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8(output.stderr)?;
    assert!(complaint.contains("domain web-1, start"), "{complaint}");
    Ok(())
}

/// The scripts of `docs/continuity.md`, which call `imds-agent attach`: that of QEMU's taps, and libvirt's hook.
fn attaching_scripts() -> Result<[&'static str; 2]> {
    const PAGE: &str = include_str!("../../docs/continuity.md");
    let mut blocks = PAGE
        .split("```sh\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let mut scripts = blocks
        .by_ref()
        .filter(|block| block.starts_with("#!/bin/sh -e\n"));
    let both =
        [scripts.next(), scripts.next()].map(|script| script.context("a script in docs/continuity.md"));
    let [qemu, libvirt] = both;
    Ok([qemu?, libvirt?])
}

#[test]
fn documented_scripts_attach_taps_alone_and_do_nothing_without_the_package() -> Result<()> {
    let [qemu, libvirt] = attaching_scripts()?;
    let programs = tempfile::tempdir()?;
    let put = |name: &str, script: &str| -> Result<()> {
        let path = programs.path().join(name);
        fs::write(&path, script)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    };
    symlink("/bin/sed", programs.path().join("sed"))?;
    put("ip", "#!/bin/sh\necho ip \"$@\"\n")?;
    let run = |script: &str, arguments: &[&str]| -> Result<Option<String>> {
        let mut shell = Command::new("/bin/sh")
            .args(["-ec", script, "script"])
            .args(arguments)
            .env("PATH", programs.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let _ = shell.stdin.take().context("stdin")?.write_all(DOMAIN.as_bytes());
        let output = shell.wait_with_output()?;
        let said = String::from_utf8(output.stdout)?;
        Ok(output.status.success().then_some(said))
    };
    let hook = |operation: &str| run(libvirt, &["web-1", operation, "begin", "-"]);
    let bridged = "ip link set tap0 master br0 up\n";
    assert_eq!(hook("start")?.as_deref(), Some(""));
    assert_eq!(run(qemu, &["tap0"])?.as_deref(), Some(bridged));

    put("imds-agent", "#!/bin/sh\necho \"$@\"\n")?;
    assert_eq!(hook("prepare")?.as_deref(), Some(""));
    assert_eq!(hook("start")?.as_deref(), Some("attach vnet3 web-1-storage\n"));
    assert_eq!(run(qemu, &["tap0"])?, Some(format!("attach tap0\n{bridged}")));

    // No guest runs without.
    put("imds-agent", "#!/bin/sh\nexit 1\n")?;
    assert_eq!(hook("start")?, None);
    assert_eq!(run(qemu, &["tap0"])?, None);
    Ok(())
}

/// An agent that runs goes on with such a file, and so do its guests.
#[test]
fn a_mistake_in_the_configuration_costs_no_guest_its_record() -> Result<()> {
    let files = HostFiles::new("tapps = \"vnet*\"\nuser_data_bytes_max = 70000")?;
    let complaint = |output: Output| -> Result<String> {
        let complaint = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{complaint}");
        Ok(complaint)
    };
    let long = DOMAIN.replace(
        "</imds:user-data>",
        &format!("{}</imds:user-data>", "#".repeat(60_000)),
    );
    ensure!(long != DOMAIN, "the example has no user data");
    let hook = ["libvirt", "hook", "--", "web-1", "start", "begin", "-"];
    let said = complaint(imdsctl(&files, &hook, &long)?)?;
    assert_eq!(said.matches("tapps: unknown field").count(), 1, "{said}");
    assert_eq!(records(&files)?.len(), 1);

    // One sentence for all that an import does.
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("100.conf"), CONF)?;
    let path = directory.path().to_string_lossy();
    let import = ["proxmox", "import", "--directory", &path];
    let said = complaint(imdsctl(&files, &import, "")?)?;
    assert_eq!(said.matches("tapps: unknown field").count(), 1, "{said}");
    assert_eq!(records(&files)?.len(), 2);
    Ok(())
}

#[test]
fn proxmox_machines_come_and_go_with_their_files() -> Result<()> {
    let files = HostFiles::new("")?;
    let directory = tempfile::tempdir()?;
    let conf = |name: &str, text: &str| fs::write(directory.path().join(name), text);
    let import = |more: &[&str]| -> Result<Value> {
        let path = directory.path().to_string_lossy();
        let arguments = [&["proxmox", "import", "--directory", &*path], more].concat();
        let output = imdsctl(&files, &arguments, "")?;
        ensure!(output.status.success(), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    conf("100.conf", CONF)?;
    conf("101.conf", "net0: virtio=BC:24:11:AA:BB:05,bridge=vmbr0\n")?;
    conf("102.conf", "template: 1\n")?;
    conf("qemu.log", "none of ours")?;
    let report = import(&[])?;
    assert_eq!(report["Guests"].as_array().map(Vec::len), Some(2), "{report}");
    let taps = |records: &[Value]| -> Vec<Value> {
        let first = records
            .iter()
            .map(|record| record["NetworkInterfaces"][0]["Tap"].clone());
        let mut taps: Vec<_> = first.collect();
        taps.sort_by_key(Value::to_string);
        taps
    };
    assert_eq!(taps(&records(&files)?), [json!("tap100i0"), json!("tap101i0")]);

    // One that is asked for alone leaves the others alone.
    fs::remove_file(directory.path().join("101.conf"))?;
    import(&["100"])?;
    assert_eq!(records(&files)?.len(), 2);
    let report = import(&[])?;
    assert_eq!(report["Deleted"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(taps(&records(&files)?), [json!("tap100i0")]);

    // A file that is wrong costs nobody the record that was good.
    conf("100.conf", "#imds-agent%3A nonsense\n")?;
    let path = directory.path().to_string_lossy();
    let output = imdsctl(&files, &["proxmox", "import", "--directory", &*path], "")?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert_eq!(taps(&records(&files)?), [json!("tap100i0")]);

    let output = imdsctl(&files, &["proxmox", "remove", "100"], "")?;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(records(&files)?, Vec::<Value>::new());
    Ok(())
}

/// A machine that comes running from another node has its file there until it has arrived.
#[test]
fn a_machine_of_another_node_is_found_by_its_number() -> Result<()> {
    let files = HostFiles::new("")?;
    let pve = tempfile::tempdir()?;
    // As Proxmox has it, where `qemu-server` is a link.
    let node = |name: &str| pve.path().join("nodes").join(name).join("qemu-server");
    for name in ["here", "there"] {
        fs::create_dir_all(node(name))?;
    }
    symlink(node("here"), pve.path().join("qemu-server"))?;
    fs::write(node("there").join("100.conf"), CONF)?;
    let directory = pve.path().join("qemu-server").to_string_lossy().into_owned();
    let import = |more: &[&str]| {
        let arguments = [&["proxmox", "import", "--directory", &*directory], more].concat();
        imdsctl(&files, &arguments, "")
    };
    ensure!(import(&["100"])?.status.success());
    assert_eq!(records(&files)?.len(), 1);
    assert_eq!(import(&["101"])?.status.code(), Some(3));
    // What is imported without a number is this node's alone.
    ensure!(import(&[])?.status.success());
    assert_eq!(records(&files)?, Vec::<Value>::new());
    Ok(())
}

/// The shipped scripts end well whatever happens: a guest starts with or without metadata.
#[test]
fn no_hook_keeps_a_guest_from_starting() -> Result<()> {
    let dist = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dist"));
    for (script, arguments) in [
        ("libvirt/imds-agent", ["web-1", "start"]),
        ("proxmox/imds-agent-hook", ["100", "pre-start"]),
    ] {
        // There is no imdsctl on this path, and no logger.
        let output = Command::new("/bin/sh")
            .arg(dist.join(script))
            .args(arguments)
            .env("PATH", "/nowhere")
            .stdin(Stdio::null())
            .output()?;
        ensure!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
    Ok(())
}
