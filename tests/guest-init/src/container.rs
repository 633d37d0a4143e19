//! A container, as far as the service can tell: a network namespace behind a bridge in the guest. What the guest forwards
//! to it has one hop less to live.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    sync::{Mutex, mpsc},
    thread,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{machine::Address, network};

const BRIDGE: &str = "docker0";
const BRIDGE_ADDRESS: Address = Address {
    ip: Ipv4Addr::new(172, 17, 0, 1),
    prefix_length: 16,
};
const CABLE: &str = "cable0";
const CONTAINER_ADDRESS: Address = Address {
    ip: Ipv4Addr::new(172, 17, 0, 2),
    prefix_length: 16,
};

/// The guest's one container, made when it is first needed.
static CONTAINER: Mutex<Option<File>> = Mutex::new(None);

/// Runs `work` in the container.
pub fn inside<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let namespace = namespace()?;
    join(thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the container")?;
        work()
    }))
}

fn namespace() -> Result<File> {
    let mut container = CONTAINER
        .lock()
        .map_err(|_| anyhow!("making the container failed before"))?;
    let namespace = match container.take() {
        Some(namespace) => namespace,
        None => make()?,
    };
    let handle = namespace.try_clone()?;
    *container = Some(namespace);
    Ok(handle)
}

/// A thread leaves the guest's namespace for one of its own, gets a cable to the bridge there, and plugs it in.
fn make() -> Result<File> {
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn the guest into a router")?;
    let (made, namespaces) = mpsc::channel();
    let (connected, cables) = mpsc::channel();
    let container = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        made.send(File::open("/proc/thread-self/ns/net")?)?;
        cables.recv().context("the container got no cable")?;
        network::bring_up_behind(BRIDGE_ADDRESS.ip, CABLE, CONTAINER_ADDRESS)
    });
    if let Ok(namespace) = namespaces.recv() {
        network::add_bridge_to(&namespace, BRIDGE, BRIDGE_ADDRESS, CABLE)?;
        connected.send(()).map_err(|_| anyhow!("the container is gone"))?;
        join(container)?;
        return Ok(namespace);
    }
    join(container)?;
    Err(anyhow!("the container ended before it began"))
}

fn join<T>(thread: thread::JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("the container's thread panicked")))
}
