//! Which container of a network has which addresses. Pure.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use crate::addressing::{Addressing, Subnet};
use crate::network::AttachError;

/// A container as the others of its network know it.
///
/// # Examples
/// ```no_run
/// use std::process::Command;
/// use nsnet_host::{Member, Network};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::builder().build()?;
/// let mut command = Command::new("./sandbox-init");
/// let attachment = network.attach_member(&mut command, Member::named("db").ipv4("10.0.2.5".parse()?))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    pub(crate) name: Option<String>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl Member {
    /// Nobody in particular, with the next addresses that are free.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A container with a name: a single label or several, as in DNS.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// Its IPv4 address, within the network's prefix. Default: that of the network's [`Subnet`], or the next one
    /// that is free.
    #[must_use]
    pub fn ipv4(mut self, address: Ipv4Addr) -> Self {
        self.ipv4 = Some(address);
        self
    }

    /// Its IPv6 address, within the network's prefix. Default: that of the network's [`Subnet`], or the next one
    /// that is free.
    #[must_use]
    pub fn ipv6(mut self, address: Ipv6Addr) -> Self {
        self.ipv6 = Some(address);
        self
    }
}

/// The addresses of a network.
#[derive(Debug)]
pub(crate) struct Pool {
    addressing: Addressing,
    taken: Taken,
}

type Taken = Arc<Mutex<HashSet<IpAddr>>>;

impl Pool {
    /// Of a network whose first container is given these addresses.
    pub(crate) fn new(addressing: Addressing) -> Self {
        Self { addressing, taken: Taken::default() }
    }

    /// Addresses for a container.
    ///
    /// # Errors
    /// If the address that is asked for is not to be had, or none is left.
    pub(crate) fn lease(&self, member: &Member) -> Result<Lease, AttachError> {
        let mut lease = Lease { addressing: self.addressing.clone(), taken: Arc::clone(&self.taken) };
        // Freed again if the second is not to be had.
        lease.addressing.v4 = None;
        lease.addressing.v6 = None;
        lease.addressing.v4 = self.take(self.addressing.v4, member.ipv4.map(IpAddr::V4))?;
        lease.addressing.v6 = self.take(self.addressing.v6, member.ipv6.map(IpAddr::V6))?;
        Ok(lease)
    }

    fn take(&self, subnet: Option<Subnet>, wanted: Option<IpAddr>) -> Result<Option<Subnet>, AttachError> {
        let Some(subnet) = subnet else {
            return wanted.map_or(Ok(None), |address| Err(AttachError::Address(address)));
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let container = match wanted {
            Some(address) => Some(address)
                .filter(|address| subnet.with_container(*address).is_consistent() && !taken.contains(address))
                .ok_or(AttachError::Address(address))?,
            // Each that is taken, the gateway, the resolver and the ends of the prefix may have to be stepped over.
            None => subnet
                .addresses()
                .take(taken.len() + 6)
                .find(|address| subnet.with_container(*address).is_consistent() && !taken.contains(address))
                .ok_or(AttachError::NoAddress)?,
        };
        taken.insert(container);
        Ok(Some(subnet.with_container(container)))
    }
}

/// Addresses that belong to one container until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    addressing: Addressing,
    taken: Taken,
}

impl Lease {
    /// The network as this container sees it.
    pub(crate) fn addressing(&self) -> Addressing {
        self.addressing.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for subnet in self.addressing.subnets() {
            taken.remove(&subnet.container);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_ports::OpenHost;

    fn pool(v4: Subnet) -> Pool {
        Pool::new(Addressing { v4: Some(v4), v6: Some(Subnet::IPV6), host: OpenHost::default() })
    }

    fn v4(lease: &Lease) -> String {
        lease.addressing().v4.unwrap().container.to_string()
    }

    #[test]
    fn each_container_gets_the_next_address_and_gives_it_back() {
        let pool = pool(Subnet::IPV4);
        let first = pool.lease(&Member::new()).unwrap();
        let second = pool.lease(&Member::new()).unwrap();
        assert_eq!((v4(&first), v4(&second)), ("10.0.2.100".into(), "10.0.2.101".into()));
        assert_eq!(second.addressing().v6.unwrap().container.to_string(), "fd00::101");
        drop(first);
        assert_eq!(v4(&pool.lease(&Member::new()).unwrap()), "10.0.2.100");
    }

    #[test]
    fn a_small_prefix_is_used_up_and_wraps() {
        // Hosts .1 to .6, of which .2 and .3 are the gateway and the resolver.
        let subnet = Subnet { container: "10.0.2.5".parse().unwrap(), prefix_len: 29, ..Subnet::IPV4 };
        let pool = pool(subnet);
        let leases: Vec<_> = (0..4).map(|_| pool.lease(&Member::new()).unwrap()).collect();
        let addresses: Vec<_> = leases.iter().map(v4).collect();
        assert_eq!(addresses, ["10.0.2.5", "10.0.2.6", "10.0.2.1", "10.0.2.4"]);
        assert!(matches!(pool.lease(&Member::new()), Err(AttachError::NoAddress)));
    }

    #[test]
    fn an_address_that_is_not_to_be_had_is_named() {
        let pool = pool(Subnet::IPV4);
        let at = |address: &str| pool.lease(&Member::new().ipv4(address.parse().unwrap()));
        let _five = at("10.0.2.5").unwrap();
        for refused in ["10.0.2.5", "10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "10.0.3.1"] {
            assert!(matches!(at(refused), Err(AttachError::Address(_))), "{refused}");
        }
        // What failed has kept no address of the other family either.
        assert_eq!(at("10.0.2.6").unwrap().addressing().v6.unwrap().container.to_string(), "fd00::101");
    }
}
