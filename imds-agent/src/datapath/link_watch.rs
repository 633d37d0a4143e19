//! Tells when links come and go.
//!
//! Read first: rtnetlink(7). The subscription starts before the first listing, so that nothing is missed between the two.
//! When the kernel says that notifications were lost (`ENOBUFS`), everything is listed and told again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt, io,
};

use futures_util::{FutureExt as _, StreamExt, TryStreamExt, future::BoxFuture, stream::BoxStream};
use imds_ebpf::abi::{MacAddr, TapIndex};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    },
};
use thiserror::Error;

/// A link came or went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// It is there: told once for each link at the start, for each new one, again when its name or a tap's MAC changes, and
    /// once more for every link after notifications were lost (it may be another device by now, with the same index).
    Appeared {
        /// Its index.
        index: TapIndex,
        /// Its name at this time.
        name: String,
        /// A tap's own MAC at this time: the host's side of the cable, which no guest can change.
        mac: Option<MacAddr>,
        /// Whether it is a tap: a TUN/TAP device that carries Ethernet frames.
        is_tap: bool,
    },
    /// It is no more.
    Gone {
        /// The index that it had.
        index: TapIndex,
    },
    /// Every link that was there when the watch began (or began again) has been told.
    Listed,
}

/// Links cannot be watched.
#[derive(Debug, Error)]
pub enum LinkWatchError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel does not list its links.
    #[error("cannot list network links")]
    List(#[source] rtnetlink::Error),
    /// The netlink socket broke.
    #[error("the netlink socket was closed")]
    Closed,
}

/// The links of one network namespace.
pub struct LinkWatch {
    handle: Handle,
    messages: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    known: Known,
    /// To be listed (again) before anything else.
    unlisted: bool,
    /// The listing under way. The kernel makes one at a time (`EBUSY`), so that it outlives a call that is cancelled.
    listing: Option<Listing>,
}

type Listing = BoxFuture<'static, Result<Vec<(TapIndex, Told)>, rtnetlink::Error>>;

/// What matters of a link. The kernel says kilobytes of each, and of ten thousand at once.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Told {
    name: String,
    /// A tap's own.
    mac: Option<MacAddr>,
    is_tap: bool,
}

impl LinkWatch {
    /// Watches the network namespace of the calling thread. To be called within a tokio runtime.
    pub fn new() -> Result<Self, LinkWatchError> {
        let (connection, handle, messages) =
            new_multicast_connection(&[MulticastGroup::Link]).map_err(LinkWatchError::Socket)?;
        // It ends when the handle and the messages are dropped.
        tokio::spawn(connection);
        let messages = messages.map(|(message, _)| message).boxed();
        Ok(Self {
            handle,
            messages,
            known: Known::default(),
            unlisted: true,
            listing: None,
        })
    }

    /// From now on every link is told once more, as after lost notifications.
    pub fn tell_again(&mut self) {
        self.unlisted = true;
    }

    /// The next event. A call that is cancelled loses nothing.
    pub async fn next(&mut self) -> Result<LinkEvent, LinkWatchError> {
        loop {
            if let Some(event) = self.known.events.pop_front() {
                return Ok(event);
            }
            if self.listing.is_none() && std::mem::take(&mut self.unlisted) {
                let links = self.handle.link().get().execute();
                let told = links.try_filter_map(async |link| Ok(told(&link)));
                self.listing = Some(told.try_collect().boxed());
            }
            if let Some(listing) = &mut self.listing {
                let links = listing.await;
                self.listing = None;
                self.known.relist(links.map_err(LinkWatchError::List)?);
                continue;
            }
            match self.messages.next().await.ok_or(LinkWatchError::Closed)?.payload {
                NetlinkPayload::InnerMessage(message) => self.known.changed(&message),
                NetlinkPayload::Overrun(_) => self.unlisted = true,
                _ => {}
            }
        }
    }
}

impl fmt::Debug for LinkWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkWatch")
            .field("known", &self.known)
            .finish_non_exhaustive()
    }
}

/// The links that were told, and the events that were not yet.
#[derive(Default, Debug)]
struct Known {
    links: BTreeMap<TapIndex, Told>,
    events: VecDeque<LinkEvent>,
}

impl Known {
    fn relist(&mut self, links: Vec<(TapIndex, Told)>) {
        let listed: BTreeSet<_> = links.iter().map(|(index, _)| *index).collect();
        for (index, _) in std::mem::take(&mut self.links) {
            if !listed.contains(&index) {
                self.events.push_back(LinkEvent::Gone { index });
            }
        }
        for (index, told) in links {
            self.appeared(index, told);
        }
        self.events.push_back(LinkEvent::Listed);
    }

    fn changed(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => {
                if let Some((index, told)) = told(link) {
                    self.appeared(index, told);
                }
            }
            // A bridge also says "deleted" of a port that leaves it: that link lives on.
            RouteNetlinkMessage::DelLink(link) if !is_from_bridge(link) => {
                self.gone(TapIndex(link.header.index.into()));
            }
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

/// What a message tells of its link: nothing where a bridge speaks of its port, in its own address family and without saying what
/// kind of link it is.
fn told(link: &LinkMessage) -> Option<(TapIndex, Told)> {
    if is_from_bridge(link) {
        return None;
    }
    let is_tap = is_tap(link);
    let told = Told {
        name: name_of(link)?.clone(),
        mac: mac_of(link).filter(|_| is_tap),
        is_tap,
    };
    Some((TapIndex(link.header.index.into()), told))
}

fn is_from_bridge(link: &LinkMessage) -> bool {
    link.header.interface_family != AddressFamily::Unspec
}

fn name_of(link: &LinkMessage) -> Option<&String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// Whether the device with this index is a tap. For those who do not watch: it waits, outside of any runtime.
pub(super) fn is_now_tap(index: TapIndex) -> Result<bool, LinkWatchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    runtime.map_err(LinkWatchError::Socket)?.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkWatchError::Socket)?;
        tokio::spawn(connection);
        let mut links = handle.link().get().match_index(index.ifindex()).execute();
        let link = links.try_next().await.map_err(LinkWatchError::List)?;
        Ok(link.is_some_and(|link| is_tap(&link)))
    })
}

fn mac_of(link: &LinkMessage) -> Option<MacAddr> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(octets) => Some(MacAddr(octets.as_slice().try_into().ok()?)),
        _ => None,
    })
}

/// Layer 3 "tun" devices are of the same kind, but carry no Ethernet.
fn is_tap(link: &LinkMessage) -> bool {
    let is_tun_kind = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Tun)),
        _ => false,
    });
    is_tun_kind && link.header.link_layer_type == LinkLayerType::Ether
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, family: AddressFamily) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.interface_family = family;
        link.header.link_layer_type = LinkLayerType::Ether;
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)]));
        link
    }

    fn tap(index: u32, name: &str) -> LinkMessage {
        link(index, name, AddressFamily::Unspec)
    }

    fn appear(known: &mut Known, link: LinkMessage) {
        known.changed(&RouteNetlinkMessage::NewLink(link));
    }

    fn go(known: &mut Known, link: LinkMessage) {
        known.changed(&RouteNetlinkMessage::DelLink(link));
    }

    fn relist(known: &mut Known, links: &[LinkMessage]) {
        known.relist(links.iter().filter_map(told).collect());
    }

    fn with_mac(mut link: LinkMessage, mac: [u8; 6]) -> LinkMessage {
        link.attributes.push(LinkAttribute::Address(mac.to_vec()));
        link
    }

    fn appeared(index: u64, name: &str) -> LinkEvent {
        LinkEvent::Appeared {
            index: TapIndex(index),
            name: name.to_owned(),
            mac: None,
            is_tap: true,
        }
    }

    fn appeared_with_mac(index: u64, name: &str, mac: [u8; 6]) -> LinkEvent {
        LinkEvent::Appeared {
            index: TapIndex(index),
            name: name.to_owned(),
            mac: Some(MacAddr(mac)),
            is_tap: true,
        }
    }

    fn gone(index: u64) -> LinkEvent {
        LinkEvent::Gone {
            index: TapIndex(index),
        }
    }

    #[test]
    fn link_is_told_once_and_again_under_a_new_name() {
        let mut known = Known::default();
        appear(&mut known, tap(7, "vnet0"));
        appear(&mut known, tap(7, "vnet0"));
        appear(&mut known, tap(7, "web"));
        go(&mut known, tap(7, "web"));
        go(&mut known, tap(7, "web"));
        assert_eq!(known.events, [appeared(7, "vnet0"), appeared(7, "web"), gone(7)]);
    }

    #[test]
    fn link_is_told_again_with_a_new_mac() {
        let mut known = Known::default();
        let (random, fixed) = ([0x4e, 1, 2, 3, 4, 5], [0xfe, 0x54, 0, 0, 0, 1]);
        appear(&mut known, with_mac(tap(7, "vnet0"), random));
        appear(&mut known, with_mac(tap(7, "vnet0"), fixed));
        appear(&mut known, with_mac(tap(7, "vnet0"), fixed));
        assert_eq!(
            known.events,
            [
                appeared_with_mac(7, "vnet0", random),
                appeared_with_mac(7, "vnet0", fixed)
            ]
        );
    }

    /// In the bridge's own family no message tells the kind of a link: a tap in it would pass for something else.
    #[test]
    fn what_a_bridge_says_of_its_ports_is_passed_over() {
        let mut known = Known::default();
        appear(&mut known, tap(7, "vnet0"));
        let mut port = link(7, "vnet0", AddressFamily::Bridge);
        port.attributes.truncate(1);
        appear(&mut known, with_mac(port.clone(), [0xfe, 0x54, 0, 0, 0, 1]));
        go(&mut known, port);
        assert_eq!(known.events, [appeared(7, "vnet0")]);
    }

    #[test]
    fn relisting_tells_who_went_and_everyone_who_is_there() {
        let mut known = Known::default();
        relist(&mut known, &[tap(7, "vnet0"), tap(8, "vnet1")]);
        known.events.clear();
        relist(&mut known, &[tap(8, "vnet1"), tap(9, "vnet2")]);
        assert_eq!(
            known.events,
            [
                gone(7),
                appeared(8, "vnet1"),
                appeared(9, "vnet2"),
                LinkEvent::Listed
            ]
        );
    }
}
