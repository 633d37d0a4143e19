//! What `docs/hypervisors.md` tells operators to do, done.

use anyhow::{Result, ensure};
use imds_tests::{
    agent::{Agent, HostFiles},
    host::program,
    netns::Namespace,
    qemu::{Console, image},
};

const SCRIPT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../docs/examples/hypervisors/qemu.sh"
);

const ID: &str = "/latest/meta-data/instance-id";

#[test]
fn the_script_for_plain_qemu_makes_an_instance() -> Result<()> {
    let namespace = Namespace::new()?;
    let files = HostFiles::new("")?;
    let _agent = Agent::start(&program()?, &namespace, &files)?;
    let append = format!("console=ttyS0 quiet panic=-1 imds.address=10.0.0.2/24 imds.steps=get={ID}");
    let output = namespace
        .command("env")
        .arg(format!("IMDS_STATE={}", files.state().display()))
        .args(["timeout", "--kill-after=1", "60", SCRIPT])
        .args([
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args(["-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "128M"])
        .arg("-kernel")
        .arg(image().join("vmlinuz"))
        .arg("-initrd")
        .arg(image().join("initramfs.cpio"))
        .args(["-append", &append])
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {complaint}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    let console = Console { lines };
    assert_eq!(
        console.answer(ID),
        Some("200 \"i-0123456789abcdef0\""),
        "{:#?}",
        console.lines
    );
    Ok(())
}
