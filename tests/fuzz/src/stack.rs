//! Frames of one guest, through the classifier and the stack to the tree: handshakes, requests and whatever else a script says.

use std::time::Duration;

use imds_agent::{
    now::Now,
    stack::{CONNECTIONS_MAX, Spares, Stack},
};
use imds_ebpf::{
    abi::TapBinding,
    classify::{Verdict, classify},
};
use imds_tests::{
    frames::{GATEWAY_MAC, GUEST_MAC, eth},
    raw_guest::RawGuest,
};

use crate::service::{Answer, World, now, token};

/// The first byte of `data` says which IP, the rest is the guest's script.
pub fn run(data: &[u8]) {
    let Some((&how, mut script)) = data.split_first() else {
        return;
    };
    let is_ipv6 = how & 1 == 1;
    let mut guest = RawGuest::new(is_ipv6, requests());
    let mut host = Host {
        now: now(),
        stack: Stack::new(now(), 1, Spares::default()),
        answer: Answer::new(World::full()),
        is_ipv6,
    };
    while let Some(act) = guest.act(&mut script) {
        for packet in &act.packets {
            host.handle_packet(packet)
                .iter()
                .for_each(|packet| guest.hear(packet));
        }
        host.wait(act.silence)
            .iter()
            .for_each(|packet| guest.hear(packet));
    }
    host.wait(Duration::from_secs(120));
    assert!(host.stack.is_idle(), "it is silent, and yet not forgotten");
    assert_eq!(host.stack.poll_timeout(), None);
}

/// What a script can say by one byte.
fn requests() -> Vec<Vec<u8>> {
    let get = |path: &str| {
        let token = token();
        format!("GET {path} HTTP/1.1\r\nConnection: keep-alive\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n")
    };
    let all = [
        "PUT /latest/api/token HTTP/1.1\r\nConnection: keep-alive\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
            .to_owned(),
        get("/latest/meta-data/"),
        get("/latest/meta-data/iam/security-credentials/imds-assume-role-test"),
        get("/latest/dynamic/instance-identity/document"),
        get("/latest/user-data").repeat(40),
        "GET /latest/meta-data/mac HTTP/1.0\r\n\r\n".to_owned(),
        "PUT /latest/api/token HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n".to_owned(),
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n".to_owned(),
    ];
    all.map(String::into_bytes).into()
}

struct Host {
    now: Now,
    stack: Stack,
    answer: Answer<'static>,
    is_ipv6: bool,
}

impl Host {
    /// Takes a packet the way that it would come from a tap, and returns what goes back.
    fn handle_packet(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        let ethertype = if self.is_ipv6 { 0x86dd } else { 0x0800 };
        let frame = eth(GATEWAY_MAC, GUEST_MAC, &[], ethertype, packet);
        let mut sent = Vec::new();
        if classify(&*frame, || Some(TapBinding::to(GUEST_MAC).with_ipv6())) == Verdict::Punt {
            self.stack
                .handle_packet(self.now, packet, &mut self.answer, &mut sent);
            self.stack.flush(self.now, &mut sent);
        }
        self.check(&sent);
        sent
    }

    /// Lets time pass, and the stack's timers with it.
    fn wait(&mut self, silence: Duration) -> Vec<Vec<u8>> {
        let until = self.now.monotonic + silence;
        let mut sent = Vec::new();
        while let Some(due) = self.stack.poll_timeout().filter(|due| *due <= until) {
            // A worker's own step.
            self.pass_to(due.max(self.now.monotonic + Duration::from_millis(1)));
            self.stack.handle_timeout(self.now, &mut self.answer, &mut sent);
        }
        self.pass_to(until);
        self.check(&sent);
        sent
    }

    fn pass_to(&mut self, monotonic: Duration) {
        self.now.unix += monotonic.saturating_sub(self.now.monotonic);
        self.now.monotonic = monotonic.max(self.now.monotonic);
    }

    fn check(&mut self, sent: &[Vec<u8>]) {
        assert!(self.stack.connection_count() <= CONNECTIONS_MAX);
        self.answer.statuses.clear();
        for packet in sent {
            let hop_limit = packet[if packet[0] >> 4 == 6 { 7 } else { 8 }];
            assert!(hop_limit == 64 || hop_limit == 1);
        }
    }
}
