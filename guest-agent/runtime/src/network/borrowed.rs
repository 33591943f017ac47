//! Addresses and routes of the machine that this one is a copy of.

use super::message::Message;
use super::{Network, NetworkError, failed};
use libc::{
    RT_TABLE_LOCAL, RTM_DELADDR, RTM_DELROUTE, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE,
    RTPROT_KERNEL,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::AddressHeader;
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use netlink_packet_route::route::RouteHeader;
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;

/// The links of this thread's network namespace, proc_pid_net(5): two lines of
/// titles, then a line each.
const LINKS: &str = "/proc/thread-self/net/dev";

/// Whether there is any link beside the loopback one; where that cannot be told,
/// there may be. Cheaper than asking by netlink, for the many guests that have
/// none.
#[must_use]
pub fn has_links() -> bool {
    let is_other = |line: &str| {
        line.split_once(':')
            .is_some_and(|(name, _)| name.trim() != "lo")
    };
    std::fs::read_to_string(LINKS).map_or(true, |text| text.lines().skip(2).any(is_other))
}

impl Network {
    /// Removes all routes of all tables but the kernel's own, and all addresses
    /// of all links but the loopback one. What the kernel has made for an address
    /// goes with it.
    pub(super) async fn clear(&self) -> Result<(), NetworkError> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let header = RouteHeader {
                address_family: family,
                ..RouteHeader::default()
            };
            let routes = self.kernel.list(Message::new(RTM_GETROUTE, &header)).await;
            for route in routes.map_err(failed("list", "routes"))? {
                if is_set_by_somebody(&route) {
                    self.remove(route, RTM_DELROUTE, "remove route").await?;
                }
            }
        }
        let question = Message::new(RTM_GETLINK, &LinkHeader::default());
        let links = self.kernel.list(question).await;
        let links = links.map_err(failed("list", "links"))?;
        let loopback: HashSet<u32> = links.iter().filter_map(loopback_index).collect();
        let question = Message::new(RTM_GETADDR, &AddressHeader::default());
        let addresses = self.kernel.list(question).await;
        for address in addresses.map_err(failed("list", "addresses"))? {
            let index = address
                .parts(AddressHeader::parse)
                .map(|(header, _)| header.index);
            if index.is_some_and(|index| !loopback.contains(&index)) {
                self.remove(address, RTM_DELADDR, "remove address").await?;
            }
        }
        Ok(())
    }

    /// Has the kernel remove what it has listed. Something that went with what
    /// was removed before is gone as well.
    async fn remove(
        &self,
        listed: Message,
        kind: u16,
        call: &'static str,
    ) -> Result<(), NetworkError> {
        match self.kernel.change(listed.with_kind(kind)).await {
            Err(error) if !is_gone(&error) => Err(failed(call, "of the template")(error)),
            _ => Ok(()),
        }
    }
}

fn loopback_index(link: &Message) -> Option<u32> {
    let (header, _) = link.parts(LinkHeader::parse)?;
    header
        .flags
        .contains(LinkFlags::Loopback)
        .then_some(header.index)
}

/// Whether a route is neither of the local table nor one that comes and goes
/// with an address.
fn is_set_by_somebody(route: &Message) -> bool {
    let Some((header, _)) = route.parts(RouteHeader::parse) else {
        return false;
    };
    header.table != RT_TABLE_LOCAL && u8::from(header.protocol) != RTPROT_KERNEL
}

fn is_gone(error: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL, Errno::NODEV];
    gone.iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
