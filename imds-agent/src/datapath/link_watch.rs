//! Tells when links come and go.
//!
//! Read first: rtnetlink(7). The subscription starts before the first listing, so that nothing is missed between the two.
//! When the kernel says that notifications were lost (`ENOBUFS`), it queues none until all that waits was read, and what waits is older
//! than a listing would be. So that is read and thrown away first, and then everything is listed and told again.

mod known;
mod message;

use std::{fmt, future::pending, io, time::Duration};

use imds_ebpf::abi::{MacAddr, TapIndex};
use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
    },
    sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use self::{
    known::{Known, Listing, readable},
    message::Message,
};
use super::netlink;

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
    /// The same as far as the kernel says, whose listings were all cut up by links that came or went: of older ones such a listing leaves
    /// out some that live on. More listings follow; until one is whole, no link is gone because it was not told.
    ListedInPart,
}

/// Links cannot be watched.
#[derive(Debug, Error)]
pub enum LinkWatchError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel does not tell of its links.
    #[error("cannot list network links")]
    List(#[source] io::Error),
    /// The netlink socket broke.
    #[error("cannot read what the kernel tells of network links")]
    Read(#[source] io::Error),
}

/// The multicast group of rtnetlink that hears of links (`RTNLGRP_LINK`).
const LINK_GROUP: u32 = 1;

/// Bytes of notifications that may wait in the kernel, which grants twice as many: of some seven thousand taps that come at once, each with
/// two or three of 2.3 kilobytes by its count. More are lost, and all links listed again.
const NOTIFICATIONS_BYTES: usize = 1 << 24;

/// Notifications that are thrown away in a row: more than can wait, as the kernel counts one at half a kilobyte at least.
const DISCARDED_MAX: usize = 2 * NOTIFICATIONS_BYTES / 512;

/// Listings in a row that links may come or go in, which is told of for each piece. What one left out the others have.
const CUT_UP_MAX: u32 = 8;

/// How long links are told of as far as they are known, before they are listed again.
const LIST_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The links of one network namespace. What the kernel tells is read one message after the other, when it is the next one's turn: of ten
/// thousand links it says kilobytes each.
#[derive(Debug)]
pub struct LinkWatch {
    notifications: Socket,
    listings: Socket,
    known: Known,
    /// To be listed (again) before anything else.
    unlisted: bool,
    /// Notifications were lost, and some of those from before that may wait still.
    is_behind: bool,
    /// What was listed so far, while a listing is under way. It outlives a call that is cancelled.
    listing: Option<Listing>,
    /// Listings in a row that were cut up.
    cut_up: u32,
    /// When to list again after too many of those.
    list_again_at: Option<Instant>,
}

impl LinkWatch {
    /// Watches the network namespace of the calling thread. To be called within a tokio runtime.
    pub fn new() -> Result<Self, LinkWatchError> {
        Ok(Self {
            notifications: Socket::of_notifications().map_err(LinkWatchError::Socket)?,
            listings: Socket::new().map_err(LinkWatchError::Socket)?,
            known: Known::default(),
            unlisted: true,
            is_behind: false,
            listing: None,
            cut_up: 0,
            list_again_at: None,
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
            if self.is_behind {
                self.is_behind = !self.notifications.discard().map_err(LinkWatchError::Read)?;
                self.unlisted = true;
            }
            if self.listing.is_none() && std::mem::take(&mut self.unlisted) {
                self.listings.ask_for_all().map_err(LinkWatchError::List)?;
                self.listing = Some(Listing::default());
                self.list_again_at = None;
            }
            if let Some(listing) = &mut self.listing {
                let datagram = self.listings.read().await.map_err(LinkWatchError::List)?;
                if listing.absorb(&datagram).map_err(LinkWatchError::List)? {
                    let listing = self.listing.take().unwrap_or_default();
                    self.handle_listing(listing);
                }
                continue;
            }
            let notifications = tokio::select! {
                biased;
                () = until(self.list_again_at) => {
                    self.unlisted = true;
                    continue;
                }
                notifications = self.notifications.read() => notifications,
            };
            match notifications {
                Ok(datagram) => {
                    readable(&datagram).for_each(|message| self.known.changed(message.payload));
                }
                Err(error) if has_lost(&error) => self.is_behind = true,
                Err(error) => return Err(LinkWatchError::Read(error)),
            }
        }
    }

    fn handle_listing(&mut self, listing: Listing) {
        if !listing.is_cut_up {
            self.cut_up = 0;
            return self.known.relist(listing.links);
        }
        self.known.tell(listing.links);
        self.cut_up += 1;
        if self.cut_up < CUT_UP_MAX {
            self.unlisted = true;
        } else {
            self.cut_up = 0;
            self.list_again_at = Some(Instant::now() + LIST_AGAIN_AFTER);
            self.known.events.push_back(LinkEvent::ListedInPart);
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => pending().await,
    }
}

/// One of rtnetlink's.
struct Socket(TokioSocket);

impl Socket {
    fn new() -> io::Result<Self> {
        TokioSocket::new(NETLINK_ROUTE).map(Self)
    }

    fn of_notifications() -> io::Result<Self> {
        let mut socket = Self::new()?;
        // The kernel's default is 212 kB. It is no more where that is all that it allows.
        _ = setsockopt(socket.0.socket_ref(), sockopt::RcvBufForce, &NOTIFICATIONS_BYTES);
        socket.0.socket_mut().bind_auto()?;
        socket.0.socket_ref().add_membership(LINK_GROUP)?;
        Ok(socket)
    }

    /// Asks for all links of the network namespace, without their statistics.
    fn ask_for_all(&self) -> io::Result<()> {
        let mut link = LinkMessage::default();
        link.attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let question = netlink::request(RouteNetlinkMessage::GetLink(link), NLM_F_DUMP);
        let kernel = SocketAddr::new(0, 0);
        self.0.socket_ref().send_to(&question, &kernel, 0).map(drop)
    }

    /// What the kernel says next: one message or several. A call that is cancelled has read nothing.
    async fn read(&self) -> io::Result<Vec<u8>> {
        let (datagram, _) = self.0.recv_from_full().await?;
        Ok(datagram)
    }

    /// Throws away what waits, and returns whether that was all. Where more comes all the time it may not be.
    fn discard(&self) -> io::Result<bool> {
        for _ in 0..DISCARDED_MAX {
            // What of a message there is no room for is thrown away.
            match self.0.socket_ref().recv(&mut [0; 1].as_mut_slice(), 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if !has_lost(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(false)
    }
}

/// Whether the kernel says that it could not keep all that there was to be told.
fn has_lost(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(self.0.socket_ref()).finish()
    }
}

/// Whether the device with this index is a tap, in the network namespace of the calling thread. For those who do not watch: it waits.
pub(super) fn is_now_tap(index: TapIndex) -> Result<bool, LinkWatchError> {
    let mut link = LinkMessage::default();
    link.header.index = index.ifindex();
    let told = netlink::ask(RouteNetlinkMessage::GetLink(link), NLM_F_ACK).map_err(LinkWatchError::List)?;
    let is_so = |message: &Message| matches!(message, Message::There(_, told) if told.is_tap);
    Ok(told.iter().any(is_so))
}

#[cfg(test)]
mod tests;
