//! Interfaces, addresses and routes, by netlink.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it, so a container's thread configures
//! its own namespace with the same functions.

use std::{fs::File, net::Ipv4Addr, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result};
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{machine::Address, metadata::SERVICE};

/// The guest's only network interface.
const INTERFACE: &str = "eth0";

/// Gives the guest its address, and the route that every EC2 image has or gets by its default gateway: the service is on
/// the link.
pub fn bring_up(address: Address) -> Result<()> {
    with_netlink(async |netlink| {
        up(&netlink, "lo").await?;
        up(&netlink, INTERFACE).await?;
        add_address(&netlink, INTERFACE, address).await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(SERVICE, 32);
        add_route(&netlink, route.output_interface(index(INTERFACE)?)).await
    })
}

/// Makes `bridge` with `address`, and a cable from it to an interface named `inside` in the container's `namespace`.
pub fn add_bridge_to(namespace: &File, bridge: &str, address: Address, inside: &str) -> Result<()> {
    let outside = format!("{bridge}-port");
    let (bridge, outside, inside) = (bridge.to_owned(), outside, inside.to_owned());
    with_netlink(async |netlink| {
        netlink
            .link()
            .add(LinkBridge::new(&bridge).build())
            .execute()
            .await
            .context("cannot add the bridge")?;
        add_address(&netlink, &bridge, address).await?;
        up(&netlink, &bridge).await?;
        netlink
            .link()
            .add(LinkVeth::new(&outside, &inside).build())
            .execute()
            .await
            .context("cannot add the cable")?;
        let plug = LinkUnspec::new_with_index(index(&outside)?)
            .controller(index(&bridge)?)
            .up()
            .build();
        netlink
            .link()
            .set(plug)
            .execute()
            .await
            .context("cannot plug the cable into the bridge")?;
        let give = LinkUnspec::new_with_index(index(&inside)?)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        netlink
            .link()
            .set(give)
            .execute()
            .await
            .context("cannot give the cable's end to the container")
    })
}

/// Gives `interface` its address and makes `gateway` the way to everything.
pub fn bring_up_behind(gateway: Ipv4Addr, interface: &str, address: Address) -> Result<()> {
    with_netlink(async |netlink| {
        add_address(&netlink, interface, address).await?;
        up(&netlink, interface).await?;
        add_route(&netlink, RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway)).await
    })
}

fn with_netlink<T>(work: impl AsyncFnOnce(Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection().context("cannot open netlink")?;
        tokio::spawn(connection);
        work(netlink).await
    })
}

async fn up(netlink: &Handle, interface: &str) -> Result<()> {
    let link = LinkUnspec::new_with_index(index(interface)?).up().build();
    netlink
        .link()
        .set(link)
        .execute()
        .await
        .with_context(|| format!("cannot bring {interface} up"))
}

async fn add_address(netlink: &Handle, interface: &str, address: Address) -> Result<()> {
    let request = netlink
        .address()
        .add(index(interface)?, address.ip.into(), address.prefix_length);
    request
        .execute()
        .await
        .with_context(|| format!("cannot give {interface} its address"))
}

async fn add_route(netlink: &Handle, route: RouteMessageBuilder<Ipv4Addr>) -> Result<()> {
    netlink
        .route()
        .add(route.build())
        .execute()
        .await
        .context("cannot add the route")
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).with_context(|| format!("there is no {interface}"))
}
