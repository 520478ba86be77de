//! The routing of addresses, by the container's own network and the host's routes.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::Context;
use crate::addressing::Destination;
use crate::addressing::local::Reach;
use crate::dialer::{DialError, Protocol, Service};

impl Context {
    /// The meaning of a destination. The host's own addresses are left out.
    pub(crate) fn destination(&self, protocol: Protocol, destination: SocketAddr) -> Destination {
        let resolved = self.addressing.resolve(protocol, destination);
        let Destination::Forward { target, service: Service::World } = resolved else { return resolved };
        match self.reach(target.ip()) {
            Ok(Reach::Remote) => resolved,
            Ok(Reach::Unreachable) => Destination::Refuse(DialError::NetworkUnreachable),
            Ok(Reach::HostOwn) if self.addressing.host.opens_own(protocol, destination) => {
                Destination::Forward { target, service: Service::HostAddress }
            }
            Ok(Reach::HostOwn) => Destination::Refuse(DialError::Prohibited),
            Ok(Reach::Broadcast | Reach::Multicast) => Destination::Ignore,
            Err(error) => {
                self.warn_of(&DialError::other(error), destination);
                Destination::Refuse(DialError::Prohibited)
            }
        }
    }

    /// The kind of destination that an address is for the host's kernel.
    pub(crate) fn reach(&self, address: IpAddr) -> io::Result<Reach> {
        self.commons.routes().lookup(address)
    }

    /// Whether an address belongs to another machine and means the same in the container.
    ///
    /// Addresses of the container's own network do not: nobody upstream has them. Addresses of the host do not either,
    /// because they are hidden from the container.
    pub(super) fn is_remote(&self, address: IpAddr) -> bool {
        let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        !is_link_local
            && !self.addressing.is_on_link(address)
            && matches!(self.reach(address), Ok(Reach::Remote | Reach::Unreachable))
    }
}
