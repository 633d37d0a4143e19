//! A guest's TCP that does what a script of bytes says, however wrong: half-open connections, zero windows, segments
//! beside the window and over each other, storms of SYNs and resets. It keeps count of both sides' sequence numbers, so that
//! a script which makes no sense at all still gets handshakes done and requests answered.
//!
//! Every script is a good one, and the same script does the same: seeds of the simulation and inputs of the fuzzer.

use std::time::Duration;

use crate::segment::{ACK, FIN, PSH, RST, SYN, Segment};

/// Connections that a script can tell apart. Storms make more of them.
const FLOWS: usize = 8;

/// Ports begin here and come round again.
const PORT_MIN: u16 = 1024;

/// What a script says next.
#[derive(Default, Debug)]
pub struct Act {
    /// IP packets that the guest sends.
    pub packets: Vec<Vec<u8>>,
    /// How long it is silent then.
    pub silence: Duration,
}

/// The guest.
#[derive(Debug)]
pub struct RawGuest {
    is_ipv6: bool,
    requests: Vec<Vec<u8>>,
    flows: [Flow; FLOWS],
    next_port: u16,
}

#[derive(Clone, Copy, Default, Debug)]
struct Flow {
    port: u16,
    /// What we send next.
    next: u32,
    /// What we expect next.
    expects: u32,
    window: u16,
}

/// The rest of a script. Behind its end there are only zeros.
struct Script<'a, 's>(&'a mut &'s [u8]);

impl Script<'_, '_> {
    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = self.take(N);
        bytes[..taken.len()].copy_from_slice(taken);
        bytes
    }

    fn number(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes())
    }

    fn take(&mut self, count: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        *self.0 = rest;
        taken
    }
}

impl RawGuest {
    /// A guest that knows `requests`, which are whole.
    pub fn new(is_ipv6: bool, requests: Vec<Vec<u8>>) -> Self {
        Self {
            is_ipv6,
            requests,
            flows: [Flow::default(); FLOWS],
            next_port: PORT_MIN,
        }
    }

    /// Takes the next step off `script`, or nothing at its end.
    pub fn act(&mut self, script: &mut &[u8]) -> Option<Act> {
        if script.is_empty() {
            return None;
        }
        let mut script = Script(script);
        let [kind, flow] = script.bytes();
        let flow = usize::from(flow) % FLOWS;
        let mut act = Act::default();
        match kind % 16 {
            0 | 1 => act.packets.push(self.open(flow, &mut script)),
            2..=4 => act.packets.push(self.request(flow, script.byte())),
            5 => act.packets.push(self.send(flow, ACK, &[])),
            6 => {
                let count = script.byte().into();
                let bytes = script.take(count).to_vec();
                act.packets.push(self.send(flow, ACK | PSH, &bytes));
            }
            7 => act.packets.push(self.send(flow, ACK | FIN, &[])),
            8 => act.packets.push(self.send(flow, RST | ACK, &[])),
            9 => {
                self.flows[flow].window = [0, 1, 100, script.number()][usize::from(script.byte() % 4)];
                act.packets.push(self.send(flow, ACK, &[]));
            }
            10 | 11 => act.packets.push(self.beside(flow, &mut script)),
            12 => {
                let count = script.byte().into();
                act.packets.push(script.take(count).to_vec());
            }
            13 => act.packets = self.storm(&mut script),
            14 => act.silence = Duration::from_millis(script.byte().into()),
            _ => act.silence = Duration::from_millis(100) * u32::from(script.byte()),
        }
        Some(act)
    }

    /// Takes an IP packet from the service.
    pub fn hear(&mut self, packet: &[u8]) {
        let _ = self.learn(packet);
    }

    fn learn(&mut self, packet: &[u8]) -> Option<()> {
        let tcp = packet.get(if self.is_ipv6 { 40 } else { 20 }..)?;
        let port = u16::from_be_bytes(*tcp.get(2..)?.first_chunk()?);
        let sequence = u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?);
        let (offset, flags) = (tcp.get(12)? >> 4, *tcp.get(13)?);
        let payload = tcp.get(usize::from(offset) * 4..)?;
        let flow = self.flows.iter_mut().find(|flow| flow.port == port)?;
        if flags & SYN != 0 {
            flow.expects = sequence.wrapping_add(1);
        } else if sequence == flow.expects && usize::from(flow.window) >= payload.len() {
            let length = payload.len() as u32 + u32::from(flags & FIN);
            flow.expects = flow.expects.wrapping_add(length);
        }
        Some(())
    }

    fn open(&mut self, flow: usize, script: &mut Script<'_, '_>) -> Vec<u8> {
        let [how, which] = script.bytes();
        // An even number takes a new port; an odd one the same again, whatever became of its last connection.
        if how % 2 == 0 || self.flows[flow].port == 0 {
            self.flows[flow].port = self.take_port();
        }
        let options: &[u8] = match which % 8 {
            1 => &[2, 4, 0x05, 0xb4],
            2 => &[2, 4, 0, 1],
            3 => &[2, 4, 0, 64, 1, 3, 3, 14],
            4 => &[2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
            5 => &[2, 4, 0, 0],
            6 => &[3, 3, 255, 0],
            7 => &[2, 0, 0, 0],
            _ => &[],
        };
        let state = &mut self.flows[flow];
        state.window = 64_000;
        let sequence = u32::from_be_bytes(script.bytes());
        state.next = sequence.wrapping_add(1);
        let payload = vec![b'x'; if how & 0x80 == 0 { 0 } else { usize::from(how) * 8 }];
        let segment = Segment {
            port: state.port,
            sequence,
            options,
            payload: &payload,
            ..Segment::default()
        };
        packet(self.is_ipv6, &segment)
    }

    fn request(&mut self, flow: usize, number: u8) -> Vec<u8> {
        let count = self.requests.len().max(1);
        let request = self
            .requests
            .get(usize::from(number) % count)
            .cloned()
            .unwrap_or_default();
        self.send(flow, ACK | PSH, &request)
    }

    /// A segment where it belongs.
    fn send(&mut self, flow: usize, flags: u8, payload: &[u8]) -> Vec<u8> {
        let state = &mut self.flows[flow];
        let segment = Segment {
            port: state.port,
            sequence: state.next,
            acknowledges: state.expects,
            flags,
            window: state.window,
            options: &[],
            payload,
        };
        let length = payload.len() as u32 + u32::from(flags & FIN);
        state.next = state.next.wrapping_add(length);
        packet(self.is_ipv6, &segment)
    }

    /// A segment anywhere, with any flags.
    fn beside(&mut self, flow: usize, script: &mut Script<'_, '_>) -> Vec<u8> {
        let state = self.flows[flow];
        let flags = script.byte();
        let offset = |number: u16| i32::from(number.cast_signed());
        let sequence = state.next.wrapping_add_signed(offset(script.number()));
        let acknowledges = state.expects.wrapping_add_signed(offset(script.number()));
        let payload = vec![b'G'; usize::from(script.byte()) * 8];
        let segment = Segment {
            port: state.port,
            sequence,
            acknowledges,
            flags,
            window: state.window,
            options: &[],
            payload: &payload,
        };
        packet(self.is_ipv6, &segment)
    }

    /// The same segment from many ports.
    fn storm(&mut self, script: &mut Script<'_, '_>) -> Vec<Vec<u8>> {
        let [kind, count] = script.bytes();
        let flags = [SYN, RST, ACK | FIN, SYN | ACK][usize::from(kind % 4)];
        (0..u16::from(count))
            .map(|number| {
                let segment = Segment {
                    port: self.take_port(),
                    sequence: number.into(),
                    flags,
                    ..Segment::default()
                };
                packet(self.is_ipv6, &segment)
            })
            .collect()
    }

    fn take_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = port.checked_add(1).unwrap_or(PORT_MIN);
        port
    }
}

fn packet(is_ipv6: bool, segment: &Segment<'_>) -> Vec<u8> {
    let mut packet = Vec::new();
    match is_ipv6 {
        false => segment.write_ipv4(&mut packet),
        true => segment.write_ipv6(&mut packet),
    }
    packet
}
