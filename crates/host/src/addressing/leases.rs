//! The addresses and names of the containers of a network. Pure.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addressing::{Addressing, Subnet};
use nsnet_stack::dns::HostName;

/// A container as the others of its network know it: its name and its addresses.
///
/// # Examples
/// ```no_run
/// use std::process::Command;
/// use nsnet_host::{Member, Network};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let network = Network::builder().build()?;
/// let mut command = Command::new("./sandbox-init");
/// let attachment = network.attach(&mut command, Member::named("db").ipv4("10.0.2.5".parse()?))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
pub struct Member {
    pub(crate) name: Option<String>,
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl Member {
    /// A container without a name, with the next free addresses.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A container with a name. Where [containers reach each
    /// other](crate::NetworkBuilder::containers_reach_each_other), the others find its addresses under this name.
    ///
    /// The name has one or more labels, as in DNS, of letters, digits, hyphens and underscores. Case does not matter.
    /// Two containers that are attached at the same time cannot have the same name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// Sets its IPv4 address, within the network's prefix. Default: that of the network's
    /// [`Ipv4Subnet`](crate::Ipv4Subnet), or the next free one.
    #[must_use]
    pub fn ipv4(mut self, address: Ipv4Addr) -> Self {
        self.ipv4 = Some(address);
        self
    }

    /// Sets its IPv6 address, within the network's prefix. Default: that of the network's
    /// [`Ipv6Subnet`](crate::Ipv6Subnet), or the next free one.
    #[must_use]
    pub fn ipv6(mut self, address: Ipv6Addr) -> Self {
        self.ipv6 = Some(address);
        self
    }
}

/// Why a container cannot have the name or the address that its [`Member`] asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// The address belongs to another container, or is not one for containers of this network.
    #[error(
        "the address {0} is taken, or not one for containers of this network: choose a free one of its prefix"
    )]
    Address(IpAddr),
    /// The name is not one that DNS can carry.
    #[error("the container's name {name:?} {problem}")]
    Name {
        /// The name that was asked for.
        name: String,
        /// The rule that it breaks.
        problem: String,
    },
    /// Another container has the name.
    #[error("the name {0} is taken; close the attachment of the container that has it")]
    NameTaken(String),
    /// All addresses are taken.
    #[error(
        "all addresses of the network are taken: close the attachments of containers that have ended, or build \
         the network with a shorter prefix"
    )]
    NoAddress,
}

/// The DNS records of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Records {
    pub(crate) addresses: Vec<IpAddr>,
    /// The names of a reverse name.
    pub(crate) names: Vec<HostName>,
}

/// The addresses of a network.
#[derive(Debug)]
pub(crate) struct Pool {
    addressing: Addressing,
    directory: Directory,
}

/// The containers of a network. Shared between the threads of the embedder and the engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Directory(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    addresses: HashSet<IpAddr>,
    /// The DNS records of the containers that have a name.
    names: HashMap<HostName, Records>,
}

impl Directory {
    /// The DNS records of a name.
    pub(crate) fn records(&self, name: &HostName) -> Option<Records> {
        self.taken().names.get(name).cloned()
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// The leases of a network whose first container gets these addresses.
    pub(crate) fn new(addressing: Addressing) -> Self {
        Self { addressing, directory: Directory::default() }
    }

    /// The names and addresses in use.
    pub(crate) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Leases addresses and, if asked for, a name. No other container can have that name until the lease is dropped.
    ///
    /// # Errors
    /// If the name or address is taken or not possible in this network, or no address is left.
    pub(crate) fn lease(&self, member: &Member) -> Result<Lease, MemberError> {
        let name = member.name.as_deref().map(parse).transpose()?;
        if let Some(name) = &name {
            match self.directory.taken().names.entry(name.clone()) {
                Entry::Occupied(_) => return Err(MemberError::NameTaken(name.to_string())),
                Entry::Vacant(free) => free.insert(Records::default()),
            };
        }
        let mut lease =
            Lease { addressing: self.addressing.clone(), name, directory: self.directory.clone() };
        // Nothing stays leased if the other family fails.
        lease.addressing.v4 = None;
        lease.addressing.v6 = None;
        lease.addressing.v4 = self.take(self.addressing.v4, member.ipv4.map(IpAddr::V4))?;
        lease.addressing.v6 = self.take(self.addressing.v6, member.ipv6.map(IpAddr::V6))?;
        if let Some(name) = &lease.name {
            let names = &mut self.directory.taken().names;
            let addresses: Vec<_> = lease.addressing.subnets().map(|subnet| subnet.container).collect();
            for address in &addresses {
                let back = Records { addresses: Vec::new(), names: vec![name.clone()] };
                names.insert(HostName::reverse(*address), back);
            }
            names.insert(name.clone(), Records { addresses, names: Vec::new() });
        }
        Ok(lease)
    }

    fn take(&self, subnet: Option<Subnet>, wanted: Option<IpAddr>) -> Result<Option<Subnet>, MemberError> {
        let Some(subnet) = subnet else {
            return wanted.map_or(Ok(None), |address| Err(MemberError::Address(address)));
        };
        let taken = &mut self.directory.taken().addresses;
        let container = match wanted {
            Some(address) => Some(address)
                .filter(|address| subnet.is_for_container(*address) && !taken.contains(address))
                .ok_or(MemberError::Address(address))?,
            None => subnet
                .container_addresses()
                .find(|address| !taken.contains(address))
                .ok_or(MemberError::NoAddress)?,
        };
        taken.insert(container);
        Ok(Some(subnet.with_container(container)))
    }
}

/// Addresses and a name that belong to one container until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    addressing: Addressing,
    name: Option<HostName>,
    directory: Directory,
}

impl Lease {
    /// The network's addresses as this container sees them.
    pub(crate) fn addressing(&self) -> Addressing {
        self.addressing.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = self.directory.taken();
        for subnet in self.addressing.subnets() {
            taken.addresses.remove(&subnet.container);
            taken.names.remove(&HostName::reverse(subnet.container));
        }
        if let Some(name) = &self.name {
            taken.names.remove(name);
        }
    }
}

fn parse(name: &str) -> Result<HostName, MemberError> {
    HostName::parse(name)
        .map_err(|problem| MemberError::Name { name: name.to_owned(), problem: problem.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addressing::host_ports::OpenHost;
    use crate::{Ipv4Subnet, Ipv6Subnet};

    fn pool(v4: Ipv4Subnet) -> Pool {
        Pool::new(Addressing::new(Some(v4), Some(Ipv6Subnet::default()), OpenHost::default()))
    }

    fn v4(lease: &Lease) -> String {
        lease.addressing().v4.unwrap().container.to_string()
    }

    #[test]
    fn each_container_gets_the_next_address_and_gives_it_back() {
        let pool = pool(Ipv4Subnet::default());
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
        let subnet = "10.0.2.0/29".parse::<Ipv4Subnet>().unwrap();
        let pool = pool(subnet.container([10, 0, 2, 5].into()));
        let leases: Vec<_> = (0..4).map(|_| pool.lease(&Member::new()).unwrap()).collect();
        let addresses: Vec<_> = leases.iter().map(v4).collect();
        assert_eq!(addresses, ["10.0.2.5", "10.0.2.6", "10.0.2.1", "10.0.2.4"]);
        assert!(matches!(pool.lease(&Member::new()), Err(MemberError::NoAddress)));
    }

    #[test]
    fn a_name_belongs_to_one_container_at_a_time() {
        let pool = pool(Ipv4Subnet::default());
        let first = pool.lease(&Member::named("Db.test")).unwrap();
        let name = HostName::parse("db.test").unwrap();
        let found = pool.directory().records(&name).unwrap();
        let addresses: Vec<_> = first.addressing().subnets().map(|subnet| subnet.container).collect();
        assert_eq!(found.addresses, addresses);
        let back = HostName::reverse(addresses[0]);
        assert_eq!(pool.directory().records(&back).unwrap().names, std::slice::from_ref(&name));
        let taken = pool.lease(&Member::named("dB.TEST")).unwrap_err();
        assert!(matches!(&taken, MemberError::NameTaken(name) if name == "db.test"), "{taken}");
        assert_eq!(pool.directory().records(&name), Some(found));
        drop(first);
        assert_eq!((pool.directory().records(&name), pool.directory().records(&back)), (None, None));
        let _second = pool.lease(&Member::named("db.test")).unwrap();
    }

    #[test]
    fn a_name_that_is_not_to_be_had_keeps_nothing() {
        let pool = pool(Ipv4Subnet::default());
        let long = "a".repeat(64);
        for name in ["", ".", "a..b", "two words", "-a", "a-", "b\u{fc}cher", "a\nnameserver", &long] {
            let refused = pool.lease(&Member::named(name)).unwrap_err();
            assert!(
                matches!(&refused, MemberError::Name { name: refused, .. } if refused == name),
                "{name:?}"
            );
        }
        let gateway = "10.0.2.2".parse().unwrap();
        assert!(matches!(pool.lease(&Member::named("db").ipv4(gateway)), Err(MemberError::Address(_))));
        assert_eq!(v4(&pool.lease(&Member::named("db")).unwrap()), "10.0.2.100");
    }

    #[test]
    fn an_address_that_is_not_to_be_had_is_named() {
        let pool = pool(Ipv4Subnet::default());
        let at = |address: &str| pool.lease(&Member::new().ipv4(address.parse().unwrap()));
        let _five = at("10.0.2.5").unwrap();
        for refused in ["10.0.2.5", "10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "10.0.3.1"] {
            assert!(matches!(at(refused), Err(MemberError::Address(_))), "{refused}");
        }
        // The failed attempt has not kept an address of the other family either.
        assert_eq!(at("10.0.2.6").unwrap().addressing().v6.unwrap().container.to_string(), "fd00::101");
    }
}
