//! P9: calm guests beside one that floods.

use std::{
    ops::RangeInclusive,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use imds_ebpf::abi::{IMDS_IPV4, IMDS_MAC, MacAddr};
use imds_tests::{
    load::{self, Load, Outcome},
    tap::Tap,
};

use super::{
    Pace, cores,
    crowd::{Crowd, guest, mac, request},
    table::{Goal, Row, Spread},
};

/// Guests beside the one that floods.
const CALM: usize = 16;

/// Where the same flood goes that is none of the agent's business.
const ELSEWHERE: [u8; 4] = [10, 0, 0, 1];

/// Where a port stands in a frame of TCP over IPv4.
const SOURCE_PORT: usize = 34;

/// The ports that the flood comes from, in turn: each of its SYNs is of a connection that the agent does not know yet.
const PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// P9: what calm guests feel of a flood for the metadata address, beside the same flood for another one.
pub fn run(pace: Pace, program: &Path) -> Result<Row> {
    let crowd = Crowd::of_agent(program, CALM + 1)?;
    let calm = (1..=CALM).map(|number| {
        let request = request("/latest/meta-data/instance-id", &crowd.token(number)?);
        anyhow::Ok(Load {
            requests: vec![request],
            exchanges_max: usize::MAX,
            duration: pace.duration,
            pause: Duration::from_millis(10),
            ..guest(number)?
        })
    });
    let calm: Vec<_> = calm.collect::<Result<_>>()?;
    let (flooder, guests) = crowd.taps.split_first().context("no taps")?;
    let guests: Vec<_> = guests.iter().zip(calm).collect();
    let p99 = |destination: [u8; 4]| -> Result<f64> {
        let outcome = beside_flood(flooder, syn(mac(0)?, destination), || load::run_all(&guests))?;
        Ok(Outcome::of_all(outcome).quantile(0.99).as_secs_f64() * 1e6)
    };
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..=pace.rounds {
        let figures = [p99(IMDS_IPV4)?, p99(ELSEWHERE)?];
        if round > 0 {
            sides
                .iter_mut()
                .zip(figures)
                .for_each(|(side, figure)| side.push(figure));
        }
    }
    let [flooded, elsewhere] = sides;
    Ok(Row {
        id: "P9",
        figure: format!(
            "p99 of {CALM} calm guests beside a flood for the address (peer: beside the same for another address)"
        ),
        unit: "µs",
        ours: Spread::of(flooded),
        peer: Some(Spread::of(elsewhere)),
        goal: Goal::RatioAtMost(1.1),
    })
}

/// Floods from `tap` while `work` lasts, with all that `work` leaves of the core: a guest's processors are its own, so that the calm ones
/// may not wait until it is the flooder's turn to stop.
fn beside_flood<T>(tap: &Tap, mut frame: [u8; 54], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let flooder = scope.spawn(|| -> Result<()> {
            cores::give_way()?;
            for port in PORTS.cycle() {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&port.to_be_bytes());
                // What the tap does not take is lost like anything of a flood.
                let _ = tap.send(&frame);
            }
            Ok(())
        });
        let result = work();
        is_over.store(true, Ordering::Relaxed);
        let flooded = flooder.join().map_err(|_| anyhow!("the flooder panicked"))?;
        flooded.and(result)
    })
}

/// A SYN from no port yet, without checksums, which the datapath leaves to whoever crosses a wire.
fn syn(MacAddr(source): MacAddr, destination: [u8; 4]) -> [u8; 54] {
    let ipv4 = [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 2];
    let tcp = [
        0, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0,
    ];
    let parts = [&IMDS_MAC.0[..], &source, &[0x08, 0x00], &ipv4, &destination, &tcp];
    let mut frame = [0; 54];
    for (to, from) in frame.iter_mut().zip(parts.into_iter().flatten()) {
        *to = *from;
    }
    frame
}
