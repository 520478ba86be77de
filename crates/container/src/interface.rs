//! An interface of the calling thread's network namespace: finds it, queries its state, brings it up.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

use crate::netlink::Netlink;
use crate::{Error, sys};

#[derive(Debug)]
pub(crate) struct Interface<'a> {
    name: &'a str,
    pub(crate) index: u32,
}

impl<'a> Interface<'a> {
    pub(crate) fn find(name: &'a str) -> Result<Self, Error> {
        let index = sys::interface_index(name).map_err(|error| {
            Error::new(format!("find the interface {name}"), error)
                .with_remedy("do this in the network namespace that the interface is in")
        })?;
        Ok(Self { name, index })
    }

    /// Whether it is up (`IFF_UP`, netdevice(7)).
    pub(crate) fn is_up(&self, netlink: &mut Netlink) -> Result<bool, Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        let reply = netlink
            .request(RouteNetlinkMessage::GetLink(message), 0)
            .map_err(|refusal| refusal.into_error(format!("ask whether {} is up", self.name)))?;
        let Some(RouteNetlinkMessage::NewLink(link)) = reply else { return Ok(false) };
        Ok(link.header.flags.contains(LinkFlags::Up))
    }

    /// Brings it up. Does nothing if it is up already.
    pub(crate) fn bring_up(&self, netlink: &mut Netlink) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let step = format!("bring {} up", self.name);
        netlink.carry_out(step, RouteNetlinkMessage::SetLink(message), 0)
    }
}
