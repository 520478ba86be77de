//! Where addresses lead, as far as the container's own network and the host's routes decide it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::Context;
use crate::addressing::Destination;
use crate::addressing::local::Reach;
use crate::dialer::{DialError, Protocol, Service};

impl Context {
    /// What stands behind a destination once the host's own addresses are taken out.
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

    /// Where the host's kernel sends packets for an address.
    pub(crate) fn reach(&self, address: IpAddr) -> io::Result<Reach> {
        self.commons.routes().lookup(address)
    }

    /// Whether an address is that of another machine and means the same in the container.
    ///
    /// Addresses of the container's own network are not: nobody upstream has them. Neither are the host's, which are
    /// none of the container's business.
    pub(super) fn is_remote(&self, address: IpAddr) -> bool {
        let is_link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        !is_link_local
            && !self.addressing.is_on_link(address)
            && matches!(self.reach(address), Ok(Reach::Remote | Reach::Unreachable))
    }
}
