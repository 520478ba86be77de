//! The text form of [`HostPorts`].

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::{ALL_PORTS, HostAddress, HostPorts};
use crate::notation::{Notation, ParseError, written, written_ports};

const FORM: &str =
    "loopback[:PORT[-PORT]][/tcp|/udp], with PORT[-PORT] alone or an address of the host instead";

const LOOPBACK: &str = "loopback";

impl FromStr for HostPorts {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let notation = Notation { text, form: FORM };
        let (target, protocol) = match text.split_once('/') {
            Some((target, protocol)) => (target, Some(protocol)),
            None => (text, None),
        };
        let open = match split(target) {
            (place, Some(ports)) => at(&notation, place)?.ports(notation.ports(ports)?),
            (place, None) => at(&notation, place)?,
        };
        match protocol {
            None => Ok(open),
            Some("tcp") => Ok(open.tcp()),
            Some("udp") => Ok(open.udp()),
            Some(other) => Err(notation.unexpected(other, "tcp or udp")),
        }
    }
}

impl fmt::Display for HostPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            HostAddress::Loopback => f.write_str(LOOPBACK)?,
            HostAddress::Address(address) => f.write_str(&written(address))?,
        }
        if self.ports != ALL_PORTS {
            write!(f, ":{}", written_ports(&self.ports))?;
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

/// The address part and the ports. A text with ports only is about the loopback.
fn split(target: &str) -> (&str, Option<&str>) {
    if target.ends_with(']') || target.parse::<Ipv6Addr>().is_ok() {
        return (target, None);
    }
    match target.rsplit_once(':') {
        Some((place, ports)) => (place, Some(ports)),
        None if target.starts_with(|first: char| first.is_ascii_digit()) && !target.contains('.') => {
            (LOOPBACK, Some(target))
        }
        None => (target, None),
    }
}

fn at(notation: &Notation<'_>, place: &str) -> Result<HostPorts, ParseError> {
    if place == LOOPBACK {
        return Ok(HostPorts::loopback());
    }
    let bare = place.parse::<Ipv6Addr>().ok().filter(|_| notation.text.len() == place.len());
    match bare.map(IpAddr::V6).or_else(|| notation.address(place).ok()) {
        Some(address) => Ok(HostPorts::at(address)),
        None => Err(notation.unexpected(place, "loopback, an IPv4 address, or an IPv6 address in brackets")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dialer::Protocol;

    #[test]
    fn every_form_is_read() {
        let v6 = HostPorts::at("fd99::1".parse::<IpAddr>().unwrap());
        for (text, expected) in [
            ("loopback", HostPorts::loopback()),
            ("loopback:8080", HostPorts::loopback().port(8080)),
            ("loopback:8080/tcp", HostPorts::loopback().port(8080).tcp()),
            ("loopback/udp", HostPorts::loopback().udp()),
            ("192.168.1.5", HostPorts::at([192, 168, 1, 5])),
            ("192.168.1.5:5000-5010/udp", HostPorts::at([192, 168, 1, 5]).ports(5000..=5010).udp()),
            ("127.0.0.1:0-1023", HostPorts::at([127, 0, 0, 1]).ports(0..=1023)),
            ("[fd99::1]", v6.clone()),
            ("[fd99::1]:53", v6.clone().port(53)),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
        for (text, expected) in [
            ("8080", "loopback:8080"),
            ("5000-5010/tcp", "loopback:5000-5010/tcp"),
            ("loopback:0-65535", "loopback"),
            ("fd99::1", "[fd99::1]"),
            ("[::ffff:192.0.2.1]:1", "192.0.2.1:1"),
        ] {
            assert_eq!(text.parse::<HostPorts>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, position, expected) in [
            ("", 0, "loopback, an IPv4"),
            ("localhost", 0, "loopback, an IPv4"),
            ("localhost:80", 0, "loopback, an IPv4"),
            ("fd99::1:80:x", 0, "loopback, an IPv4"),
            ("fd99::1/tcp", 0, "loopback, an IPv4"),
            ("[fd99::1", 0, "loopback, an IPv4"),
            ("loopback:", 9, "a port from 0"),
            ("loopback:http", 9, "a port from 0"),
            ("192.168.1.5:80-x", 15, "a port from 0"),
            ("9-8", 0, "a range of ports"),
            ("70000", 0, "a port from 0"),
            ("loopback:53/icmp", 12, "tcp or udp"),
            ("loopback/", 9, "tcp or udp"),
        ] {
            let error = text.parse::<HostPorts>().unwrap_err();
            assert!(error.expected().starts_with(expected), "{error}");
            assert_eq!(error.position(), position, "{error}");
        }
    }

    fn all() -> impl Strategy<Value = HostPorts> {
        let places = prop_oneof![
            Just(HostPorts::loopback()),
            any::<IpAddr>().prop_map(HostPorts::at),
            any::<[u8; 4]>().prop_map(|[a, b, c, d]| HostPorts::at([
                0,
                0,
                0,
                0,
                0,
                0xffff,
                u16::from_be_bytes([a, b]),
                u16::from_be_bytes([c, d])
            ])),
        ];
        let ports = (any::<u16>(), any::<u16>()).prop_map(|(a, b)| a.min(b)..=a.max(b));
        let protocols = prop_oneof![Just(None), Just(Some(Protocol::Tcp)), Just(Some(Protocol::Udp))];
        (places, proptest::option::of(ports), protocols).prop_map(|(place, ports, protocol)| {
            let ports = ports.unwrap_or(ALL_PORTS);
            HostPorts { ports, protocol, ..place }
        })
    }

    proptest! {
        #[test]
        fn host_ports_survive_their_text(ports in all()) {
            prop_assert_eq!(ports.to_string().parse(), Ok(ports));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z0-9:/\\[\\]. -]{0,20}|\\PC{0,20}") {
            match text.parse::<HostPorts>() {
                Ok(ports) => prop_assert_eq!(ports.to_string().parse(), Ok(ports)),
                Err(error) => prop_assert!(text.is_char_boundary(error.position())),
            }
        }
    }
}
