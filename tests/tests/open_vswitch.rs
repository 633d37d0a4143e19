//! A tap that is a port of an Open vSwitch. Debian's kernels have it, and so this runs where they are booted.

use std::sync::Arc;

use anyhow::Result;
use imds_ebpf::abi::IMDS_MAC;
use imds_tests::{
    client::{text, token, wait_for},
    frames::{Arp, BROADCAST, GUEST_MAC},
    host::{ADDRESS, Host, INSTANCE_ID},
    kernel_guest::KernelGuest,
    open_vswitch::OpenVswitch,
};

#[test]
fn a_port_of_an_open_vswitch_is_served_before_the_switch_sees_anything() -> Result<()> {
    let host = Host::new("", |record| {
        record["NetworkInterfaces"][0]["MacAddress"] = GUEST_MAC.to_string().into();
    })?;
    let Some(switch) = host.namespace.enter(|| OpenVswitch::new("ovs0"))? else {
        println!("skipped: this kernel has no Open vSwitch");
        return Ok(());
    };
    switch.add("tap0")?;

    // By hand first, so that there is no frame that nobody knows of.
    let ask = |target_ip: [u8; 4]| Arp {
        target_ip,
        ..Arp::default()
    };
    host.tap.send(&ask(Arp::default().target_ip).frame(BROADCAST))?;
    let mut frame = [0; 2048];
    let answered =
        || Ok(matches!(host.tap.read(&mut frame), Ok(length) if length >= 12) && frame[6..12] == IMDS_MAC.0);
    wait_for("the answer to ARP", answered, |is_answered| *is_answered)?;
    assert_eq!(switch.frames()?, 0);
    host.tap.send(&ask([10, 0, 0, 1]).frame(BROADCAST))?;
    wait_for(
        "the guest's other frame in the switch",
        || switch.frames(),
        |frames| *frames == 1,
    )?;

    let guest = KernelGuest::new(Arc::clone(&host.tap), GUEST_MAC, &format!("{ADDRESS}/24"))?;
    let id = guest
        .namespace
        .enter(|| text(&token()?, "meta-data/instance-id"))?;
    assert_eq!(id, INSTANCE_ID);
    Ok(())
}
