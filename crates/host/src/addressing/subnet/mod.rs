//! The addresses of a container's network: one type per address family, both with the same methods. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::notation::{Notation, ParseError};

/// Why addresses do not form a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// The text does not have the form of a subnet.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// Bits behind the prefix are set.
    #[error("{given} has bits set behind its prefix: write {prefix}")]
    HostBits {
        /// The prefix that was given.
        given: IpNet,
        /// The same prefix without these bits.
        prefix: IpNet,
    },
    /// The prefix is too long.
    #[error("{prefix} has too few addresses: take a prefix of at most {longest} bits")]
    TooLong {
        /// The prefix.
        prefix: IpNet,
        /// The longest prefix that has room for gateway, DNS and a container, in bits.
        longest: u8,
    },
    /// Hosts cannot use addresses of this prefix.
    #[error(
        "{prefix} overlaps {reserved}, which is not for hosts: take a private prefix, such as 10.0.2.0/24 (RFC 1918) or \
         fd00::/64 (RFC 4193)"
    )]
    Reserved {
        /// The prefix.
        prefix: IpNet,
        /// The reserved part of the address space.
        reserved: IpNet,
    },
    /// An address is outside the prefix, or stands for more than one host.
    #[error(
        "the {role} address {address} is not of a host in {prefix}: take one of the prefix that is neither its first nor, \
         with IPv4, its last"
    )]
    NotAHost {
        /// The role of the address: `container`, `gateway` or `dns`.
        role: &'static str,
        /// The address.
        address: IpAddr,
        /// The prefix.
        prefix: IpNet,
    },
    /// Two of the addresses are the same.
    #[error("the {first} and the {second} address are both {address}: choose another one for either")]
    Shared {
        /// The role of one: `container` or `gateway`.
        first: &'static str,
        /// The role of the other: `gateway` or `dns`.
        second: &'static str,
        /// The address of both.
        address: IpAddr,
    },
}

/// Defines the subnet of one address family. The functions below hold everything that both families share.
macro_rules! subnet {
    (
        $(#[$documentation:meta])*
        $Subnet:ident, $Net:ident, $Addr:ident, $Bits:ident,
        default: $default:expr, container: $container:expr, longest: $longest:expr, reserved: $reserved:expr,
    ) => {
        $(#[$documentation])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $Subnet {
            prefix: $Net,
            container: $Addr,
            gateway: $Addr,
            dns: $Addr,
        }

        impl $Subnet {
            /// The usual addresses in this prefix, as in the table above.
            ///
            /// # Errors
            /// [`SubnetError`] for a prefix that is too long, that is not for hosts, or that has bits set behind it.
            pub fn new(prefix: $Net) -> Result<Self, SubnetError> {
                check_prefix(prefix.into(), $longest, &$reserved)?;
                Ok(Self::usual(prefix))
            }

            /// Sets the address of the container, or of the first one where a network has several.
            #[must_use]
            pub fn container(self, container: $Addr) -> Self {
                Self { container, ..self }
            }

            /// Sets the address of the router, to which the container's default route points.
            #[must_use]
            pub fn gateway(self, gateway: $Addr) -> Self {
                Self { gateway, ..self }
            }

            /// Sets the address that answers DNS.
            #[must_use]
            pub fn dns(self, dns: $Addr) -> Self {
                Self { dns, ..self }
            }

            /// The prefix on the container's link.
            #[must_use]
            pub fn prefix(&self) -> $Net {
                self.prefix
            }

            /// The address that [`container`](Self::container) sets.
            #[must_use]
            pub fn container_address(&self) -> $Addr {
                self.container
            }

            /// The address that [`gateway`](Self::gateway) sets.
            #[must_use]
            pub fn gateway_address(&self) -> $Addr {
                self.gateway
            }

            /// The address that [`dns`](Self::dns) sets.
            #[must_use]
            pub fn dns_address(&self) -> $Addr {
                self.dns
            }

            /// Checks what the setters do not: the addresses must be three different hosts of the prefix.
            pub(crate) fn check(&self) -> Result<(), SubnetError> {
                check_hosts(self.prefix.into(), self.hosts())
            }

            fn usual(prefix: $Net) -> Self {
                let host = |number: u16| $Addr::from_bits(prefix.network().to_bits() | $Bits::from(number));
                let fits = prefix.hostmask().to_bits() > $Bits::from($container);
                let container = host(if fits { $container } else { USUAL_CONTAINER_OF_FEW });
                Self { prefix, container, gateway: host(USUAL_GATEWAY), dns: host(USUAL_DNS) }
            }

            fn hosts(&self) -> [(&'static str, IpAddr); 3] {
                [("container", self.container.into()), ("gateway", self.gateway.into()), ("dns", self.dns.into())]
            }
        }

        impl Default for $Subnet {
            fn default() -> Self {
                Self::usual($default)
            }
        }

        impl fmt::Display for $Subnet {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.prefix)?;
                let hosts = self.hosts().into_iter().zip(Self::usual(self.prefix).hosts());
                for ((role, address), _) in hosts.filter(|(host, usual)| host != usual) {
                    write!(f, ",{role}={address}")?;
                }
                Ok(())
            }
        }

        impl FromStr for $Subnet {
            type Err = SubnetError;

            fn from_str(text: &str) -> Result<Self, SubnetError> {
                let notation = Notation { text, form: FORM };
                let (prefix, hosts) = text.split_once(',').unwrap_or((text, ""));
                let prefix = prefix.parse().map_err(|_| {
                    notation.unexpected(prefix, concat!("a prefix as ", stringify!($Net), " reads it"))
                })?;
                let mut subnet = Self::new(prefix)?;
                for host in hosts.split(',').filter(|host| !host.is_empty()) {
                    let (role, address) = host.split_once('=').unwrap_or((host, ""));
                    let field = match role {
                        "container" => &mut subnet.container,
                        "gateway" => &mut subnet.gateway,
                        "dns" => &mut subnet.dns,
                        _ => return Err(notation.unexpected(host, "container=, gateway= or dns=").into()),
                    };
                    *field = address.parse().map_err(|_| {
                        notation.unexpected(host, concat!("an address as ", stringify!($Addr), " reads it"))
                    })?;
                }
                subnet.check()?;
                Ok(subnet)
            }
        }
    };
}

subnet! {
    /// The IPv4 addresses of a container's network. The default is 10.0.2.0/24.
    ///
    /// | address | number in the prefix | in the default |
    /// |---|---|---|
    /// | gateway: the container's default route, and the host if it is [opened](crate::NetworkBuilder::open_host) | 2 | 10.0.2.2 |
    /// | DNS | 3 | 10.0.2.3 |
    /// | container: the first; others have the next ones that are free | 100, or 4 in a prefix of over 25 bits | 10.0.2.100 |
    ///
    /// These are the numbers of slirp and slirp4netns. The setters choose others.
    ///
    /// Its text form is the prefix, followed by the addresses that differ from the table:
    /// `PREFIX/LENGTH[,container=ADDRESS][,gateway=ADDRESS][,dns=ADDRESS]`.
    ///
    /// # Examples
    /// ```
    /// use std::net::Ipv4Addr;
    /// use nsnet_host::{Ipv4Net, Ipv4Subnet, Network};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let subnet = Ipv4Subnet::new(Ipv4Net::new(Ipv4Addr::new(172, 30, 0, 0), 16)?)?;
    /// assert_eq!(subnet.container_address(), Ipv4Addr::new(172, 30, 0, 100));
    /// let subnet = subnet.gateway(Ipv4Addr::new(172, 30, 0, 1));
    /// assert_eq!(subnet, "172.30.0.0/16,gateway=172.30.0.1".parse()?);
    /// let network = Network::builder().ipv4(subnet).build()?;
    /// # Ok(())
    /// # }
    /// ```
    Ipv4Subnet, Ipv4Net, Ipv4Addr, u32,
    default: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24),
    container: 100_u16,
    longest: 29,
    reserved: RESERVED_V4,
}

subnet! {
    /// The IPv6 addresses of a container's network. The default is fd00::/64.
    ///
    /// | address | number in the prefix | in the default |
    /// |---|---|---|
    /// | gateway: the container's default route, and the host if it is [opened](crate::NetworkBuilder::open_host) | 2 | fd00::2 |
    /// | DNS | 3 | fd00::3 |
    /// | container: the first; others have the next ones that are free | 0x100, or 4 in a prefix of over 119 bits | fd00::100 |
    ///
    /// The setters choose others.
    ///
    /// Its text form is the prefix, followed by the addresses that differ from the table:
    /// `PREFIX/LENGTH[,container=ADDRESS][,gateway=ADDRESS][,dns=ADDRESS]`.
    ///
    /// # Examples
    /// ```
    /// use nsnet_host::{Ipv6Subnet, Network};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let subnet: Ipv6Subnet = "fd17:625c:f037::/64".parse()?;
    /// let network = Network::builder().ipv6(subnet.dns("fd17:625c:f037::53".parse()?)).build()?;
    /// # Ok(())
    /// # }
    /// ```
    Ipv6Subnet, Ipv6Net, Ipv6Addr, u128,
    default: Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64),
    container: 0x100_u16,
    longest: 125,
    reserved: RESERVED_V6,
}

const FORM: &str = "PREFIX/LENGTH[,container=ADDRESS][,gateway=ADDRESS][,dns=ADDRESS]";

const USUAL_GATEWAY: u16 = 2;
const USUAL_DNS: u16 = 3;

/// The container's number in a prefix that is too small for the usual one.
const USUAL_CONTAINER_OF_FEW: u16 = 4;

/// Addresses that no host can have: "this network", loopback, multicast (RFC 6890; RFC 5771).
const RESERVED_V4: [IpNet; 3] = [v4([0, 0, 0, 0], 8), v4([127, 0, 0, 0], 8), v4([224, 0, 0, 0], 4)];

/// Addresses that no host on a network can have: unspecified and loopback, IPv4-mapped, link-local, multicast (RFC
/// 4291, 2.4).
const RESERVED_V6: [IpNet; 4] = [
    v6([0; 8], 127),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length))
}

fn check_prefix(prefix: IpNet, longest: u8, reserved: &[IpNet]) -> Result<(), SubnetError> {
    if prefix != prefix.trunc() {
        return Err(SubnetError::HostBits { given: prefix, prefix: prefix.trunc() });
    }
    if prefix.prefix_len() > longest {
        return Err(SubnetError::TooLong { prefix, longest });
    }
    match reserved.iter().find(|reserved| reserved.contains(&prefix) || prefix.contains(*reserved)) {
        Some(reserved) => Err(SubnetError::Reserved { prefix, reserved: *reserved }),
        None => Ok(()),
    }
}

fn check_hosts(prefix: IpNet, hosts: [(&'static str, IpAddr); 3]) -> Result<(), SubnetError> {
    let is_host = |address| prefix.contains(&address) && !is_shared(prefix, address);
    if let Some((role, address)) = hosts.into_iter().find(|(_, address)| !is_host(*address)) {
        return Err(SubnetError::NotAHost { role, address, prefix });
    }
    let [container, gateway, dns] = hosts;
    let pairs = [(container, gateway), (container, dns), (gateway, dns)];
    match pairs.into_iter().find(|((_, first), (_, second))| first == second) {
        Some(((first, address), (second, _))) => Err(SubnetError::Shared { first, second, address }),
        None => Ok(()),
    }
}

/// Whether an address of a prefix stands for more than one host. The first one stands for the network (RFC 1122,
/// 3.2.1.3) or for any of its routers (RFC 4291, 2.6.1). The last one of an IPv4 prefix stands for all of its hosts
/// (RFC 919).
pub(crate) fn is_shared(prefix: IpNet, address: IpAddr) -> bool {
    address == prefix.network() || is_broadcast(prefix, address)
}

/// Whether an address reaches every host of an IPv4 prefix.
pub(crate) fn is_broadcast(prefix: IpNet, address: IpAddr) -> bool {
    address.is_ipv4() && address == prefix.broadcast()
}

#[cfg(test)]
mod tests;
