//! What no server can be faster than: the frames of P4's exchange through a tap, with nobody who thinks about them.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use imds_tests::{netns::Namespace, tap::Tap};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket},
    unistd::Pid,
};

use super::{
    Pace,
    cores::{CLIENT_CORE, pin},
    table::{Goal, Row, Spread},
};

/// The guest's SYN, its ACK and its request with a session token; the SYN-ACK and the reply. Ethernet to TCP take 54 bytes.
const OUTBOUND: [&[usize]; 2] = [&[54], &[54, 54 + 190]];
const INBOUND: [usize; 2] = [58, 54 + 160];

/// The guest writes, a packet socket answers, the guest reads, all on one core and without a wait: the system calls that are in
/// P4's latency whoever answers, and one that hands over a frame for each answer.
pub fn run(pace: Pace) -> Result<Row> {
    let namespace = Namespace::new()?;
    let (tap, socket) = namespace.enter(|| -> Result<_> {
        let tap = Tap::new("tap0")?;
        Ok((tap, packet_socket("tap0")?))
    })?;
    pin(Pid::from_raw(0), CLIENT_CORE)?;
    // To a MAC that is not the tap's, so that the host drops it first of all.
    let mut frame = vec![0_u8; 2048];
    frame[..6].copy_from_slice(&[0x02, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[0x06, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let mut medians = Vec::new();
    for round in 0..=pace.rounds {
        let median = one_round(&tap, &socket, &mut frame, pace.duration)?;
        if round > 0 {
            medians.push(median.as_secs_f64() * 1e6);
        }
    }
    Ok(Row {
        id: "P4",
        figure: "the floor: the same frames through a tap, answered by nobody".to_owned(),
        unit: "µs",
        ours: Spread::of(medians),
        peer: None,
        goal: Goal::Reported,
    })
}

fn one_round(tap: &Tap, socket: &OwnedFd, frame: &mut [u8], duration: Duration) -> Result<Duration> {
    let mut buffer = vec![0; 2048];
    let mut latencies = Vec::with_capacity(1 << 20);
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let start = Instant::now();
        for (outbound, inbound) in OUTBOUND.into_iter().zip(INBOUND) {
            for length in outbound {
                tap.send(frame.get(..*length).context("a short frame")?)?;
            }
            send(
                socket.as_raw_fd(),
                frame.get(..inbound).context("a short frame")?,
                MsgFlags::empty(),
            )?;
            while let Err(error) = tap.read(&mut buffer) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error.into());
                }
            }
        }
        latencies.push(start.elapsed());
    }
    latencies.sort_unstable();
    latencies
        .get(latencies.len() / 2)
        .copied()
        .context("nothing was measured")
}

/// A socket that sends whole frames to the guest of `tap`, and gets none.
fn packet_socket(tap: &str) -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == tap)
        .find_map(|interface| Some(*interface.address?.as_link_addr()?))
        .context("the tap has no link-layer address")?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}
