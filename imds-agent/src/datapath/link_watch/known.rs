//! The links that the kernel told of, and what is new in that. Performs no IO.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
};

use imds_ebpf::abi::TapIndex;
use rtnetlink::packet_core::{NLM_F_DUMP_INTR, NetlinkMessage, NetlinkPayload};

use super::{
    super::netlink,
    LinkEvent,
    message::{Message, Told},
};

/// The messages in what the kernel says at once. One that cannot be read is passed over, as what is new in a kernel would be.
pub fn readable(datagram: &[u8]) -> impl Iterator<Item = NetlinkMessage<Message>> {
    netlink::messages(datagram).filter_map(|message| {
        message
            .inspect_err(|error| log::warn!("a message of rtnetlink is passed over: {error}"))
            .ok()
    })
}

/// What the kernel lists.
#[derive(Default, Debug)]
pub struct Listing {
    pub links: Vec<(TapIndex, Told)>,
    /// Links came or went between two pieces of it. Kernels before 6.9 go on by position then, and leave out one that is there for each
    /// that went.
    pub is_cut_up: bool,
}

impl Listing {
    /// Adds what the kernel says next, and returns whether that is all.
    pub fn absorb(&mut self, datagram: &[u8]) -> io::Result<bool> {
        for message in readable(datagram) {
            self.is_cut_up |= message.header.flags & NLM_F_DUMP_INTR != 0;
            match message.payload {
                NetlinkPayload::InnerMessage(Message::There(index, told)) => self.links.push((index, told)),
                NetlinkPayload::Done(_) => return Ok(true),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// The links that were told, and the events that were not yet.
#[derive(Default, Debug)]
pub struct Known {
    links: BTreeMap<TapIndex, Told>,
    pub events: VecDeque<LinkEvent>,
}

impl Known {
    /// These are there, and no others.
    pub fn relist(&mut self, links: Vec<(TapIndex, Told)>) {
        let listed: BTreeSet<_> = links.iter().map(|(index, _)| *index).collect();
        let unlisted: Vec<_> = self
            .links
            .keys()
            .filter(|index| !listed.contains(index))
            .copied()
            .collect();
        unlisted.into_iter().for_each(|index| self.gone(index));
        self.tell(links);
        self.events.push_back(LinkEvent::Listed);
    }

    /// These are there.
    pub fn tell(&mut self, links: Vec<(TapIndex, Told)>) {
        for (index, told) in links {
            self.links.remove(&index);
            self.appeared(index, told);
        }
    }

    pub fn changed(&mut self, message: NetlinkPayload<Message>) {
        match message {
            NetlinkPayload::InnerMessage(Message::There(index, told)) => self.appeared(index, told),
            NetlinkPayload::InnerMessage(Message::Gone(index)) => self.gone(index),
            _ => {}
        }
    }

    /// The kernel notifies of every change of a link; a new name, or a tap's new MAC, is all that matters here.
    fn appeared(&mut self, index: TapIndex, told: Told) {
        if self.links.get(&index) != Some(&told) {
            let Told { name, mac, is_tap } = told.clone();
            self.links.insert(index, told);
            self.events.push_back(LinkEvent::Appeared {
                index,
                name,
                mac,
                is_tap,
            });
        }
    }

    fn gone(&mut self, index: TapIndex) {
        if self.links.remove(&index).is_some() {
            self.events.push_back(LinkEvent::Gone { index });
        }
    }
}
