//! Asking the kernel by rtnetlink(7), and taking apart what it says.

use std::{io, iter};

use rtnetlink::{
    packet_core::{
        DecodeError, NLA_HEADER_SIZE, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable, NlasIterator,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// The kernel's answers come in pieces of at most 32 KiB (`NLMSG_GOODSIZE` of a dump).
const ANSWER_BYTES_MAX: usize = 1 << 16;

/// A question as it is sent, with `flags` beside `NLM_F_REQUEST`.
pub fn request<Q: NetlinkSerializable>(question: Q, flags: u16) -> Vec<u8> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(question));
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The messages in what the kernel says at once, each as far as it can be read.
pub fn messages<A: NetlinkDeserializable>(
    mut datagram: &[u8],
) -> impl Iterator<Item = Result<NetlinkMessage<A>, DecodeError>> {
    iter::from_fn(move || {
        let length = u32::from_ne_bytes(*datagram.first_chunk()?);
        let length = usize::try_from(length).ok().filter(|length| *length > 0)?;
        let message = datagram.get(..length)?;
        // Each begins at a multiple of four bytes.
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NetlinkMessage::deserialize(message))
    })
}

/// The value of the attribute of this kind, if it is among them. What the others say is nobody's concern.
pub fn attribute(attributes: &[u8], kind: u16) -> Result<Option<&[u8]>, DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() == kind {
            let end = usize::from(attribute.length());
            return Ok(attribute.into_inner().get(NLA_HEADER_SIZE..end));
        }
    }
    Ok(None)
}

/// Asks in the network namespace of the calling thread, and waits for all of the answer. Unless it is a dump, `flags` ask for an
/// acknowledgement, with which the answer ends.
pub fn ask<Q: NetlinkSerializable, A: NetlinkDeserializable>(question: Q, flags: u16) -> io::Result<Vec<A>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(question, flags), 0)?;
    let mut answers = Vec::new();
    let mut bytes = Vec::with_capacity(ANSWER_BYTES_MAX);
    loop {
        bytes.clear();
        socket.recv(&mut bytes, 0)?;
        for message in messages(&bytes) {
            match message.map_err(io::Error::other)?.payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        packet_core::{DoneMessage, NLM_F_DUMP},
        packet_route::{
            RouteNetlinkMessage,
            link::{LinkAttribute, LinkMessage},
        },
    };

    use super::*;

    fn link(index: u32, name: &str) -> RouteNetlinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        RouteNetlinkMessage::NewLink(link)
    }

    fn read(datagram: &[u8]) -> Vec<Option<NetlinkPayload<RouteNetlinkMessage>>> {
        let payload = |message: Result<NetlinkMessage<_>, _>| Some(message.ok()?.payload);
        messages(datagram).map(payload).collect()
    }

    #[test]
    fn messages_are_taken_apart_where_they_begin() {
        let mut done = NetlinkMessage::<RouteNetlinkMessage>::new(
            NetlinkHeader::default(),
            NetlinkPayload::Done(DoneMessage::default()),
        );
        done.finalize();
        let mut end = vec![0; done.buffer_len()];
        done.serialize(&mut end);
        // Names of all lengths, and so all lengths of padding.
        for name in ["a", "ab", "abc", "abcd"] {
            let one = request(link(7, name), NLM_F_DUMP);
            let datagram = [one.clone(), one, end.clone()].concat();
            let told = NetlinkPayload::InnerMessage(link(7, name));
            assert_eq!(
                read(&datagram),
                [Some(told.clone()), Some(told), Some(done.payload.clone())],
                "{name}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_passed_over_and_ends() {
        let good = request(link(7, "tap0"), 0);
        let mut strange = good.clone();
        // No such kind of message.
        strange[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
        let told = Some(NetlinkPayload::InnerMessage(link(7, "tap0")));
        assert_eq!(read(&[strange, good.clone()].concat()), [None, told]);
        assert_eq!(read(&good[..good.len() - 1]), []);
        for end in 0..4 {
            assert_eq!(read(&good[..end]), []);
        }
        assert_eq!(read(&[0; 64]), []);
    }
}
