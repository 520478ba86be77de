//! The text forms of [`Publish`] and [`Listen`].

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::str::FromStr;

use super::{Front, Listen, Publish};
use crate::dns::HostName;
use crate::notation::{Notation, ParseError, written, written_ports};

const PUBLISH: &str = "[NAME=][ADDR:]HOST[-HOST]:PORT[/tcp|/udp] or [NAME=]/PATH:PORT";
const LISTEN: &str = "[ADDR:]HOST[-HOST]";

/// The prefix of a path that does not begin with a slash.
const UNIX: &str = "unix:";

impl FromStr for Publish {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let notation = Notation { text, form: PUBLISH };
        let (member, rest) = match text.split_once('=') {
            Some((name, rest)) if !is_file(text) => (Some(member(&notation, name)?), rest),
            Some(_) | None => (None, text),
        };
        let publish = if is_file(rest) { file(&notation, rest) } else { ports(&notation, rest) }?;
        Ok(Self { member, ..publish })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.member {
            write!(f, "{name}=")?;
        }
        match &self.front {
            Front::Tcp(listen) => write!(f, "{listen}:{}", self.port),
            Front::Udp(listen) => write!(f, "{listen}:{}/udp", self.port),
            Front::Unix(path) if path.has_root() => write!(f, "{}:{}", path.display(), self.port),
            Front::Unix(path) => write!(f, "{UNIX}{}:{}", path.display(), self.port),
        }
    }
}

impl FromStr for Listen {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        listen(&Notation { text, form: LISTEN }, text)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                write!(f, "[{}%{}]:", address.ip(), address.scope_id())?;
            }
            Some(address) => write!(f, "{}:", written(address.ip()))?,
            None => {}
        }
        f.write_str(&written_ports(&self.ports))
    }
}

fn is_file(text: &str) -> bool {
    text.starts_with('/') || text.starts_with(UNIX)
}

fn member(notation: &Notation<'_>, name: &str) -> Result<String, ParseError> {
    match HostName::parse(name) {
        Ok(_) => Ok(name.into()),
        Err(_) => Err(notation.unexpected(name, "the name of a container, as in DNS")),
    }
}

/// `/PATH:PORT` or `unix:PATH:PORT`.
fn file(notation: &Notation<'_>, text: &str) -> Result<Publish, ParseError> {
    let path = text.strip_prefix(UNIX).unwrap_or(text);
    match path.rsplit_once(':') {
        Some((path, port)) if !path.is_empty() => Ok(Publish::unix(path, container_port(notation, port)?)),
        Some(_) | None => Err(notation.unexpected(text, "a path, a colon and a port of the container")),
    }
}

/// `[ADDR:]HOST[-HOST]:PORT[/tcp|/udp]`.
fn ports(notation: &Notation<'_>, text: &str) -> Result<Publish, ParseError> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let Some((host, port)) = ports.rsplit_once(':') else {
        return Err(notation.unexpected(ports, "a port of the host, a colon and a port of the container"));
    };
    let (listen, port) = (listen(notation, host)?, container_port(notation, port)?);
    match protocol {
        "tcp" => Ok(Publish::tcp(listen, port)),
        "udp" => Ok(Publish::udp(listen, port)),
        other => Err(notation.unexpected(other, "tcp or udp")),
    }
}

/// `[ADDR:]HOST[-HOST]`.
fn listen(notation: &Notation<'_>, text: &str) -> Result<Listen, ParseError> {
    let (address, ports) = match text.rsplit_once(':') {
        Some((address, ports)) => (Some(address), ports),
        None => (None, text),
    };
    let address = address.map(|address| listened_on(notation, address)).transpose()?;
    let range = notation.ports(ports)?;
    if range.clone().count() > 1 && *range.start() == 0 {
        return Err(notation.unexpected(ports, "a range of ports that begins with 1 or more"));
    }
    Ok(match address {
        Some(address) => Listen::at(address, range),
        None => range.into(),
    })
}

/// `IPv4` or `[IPv6]`, optionally with the number of an interface: `[fe80::1%2]`.
fn listened_on(notation: &Notation<'_>, text: &str) -> Result<SocketAddr, ParseError> {
    if let Some((address, scope)) = text.split_once('%') {
        let scope = notation.bracketed(scope)?;
        let scope_id = scope.parse().map_err(|_| notation.unexpected(scope, "the number of an interface"))?;
        let address = address.strip_prefix('[').and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| notation.unexpected(text, "an IPv6 address in brackets"))?;
        return Ok(SocketAddrV6::new(address, 0, 0, scope_id).into());
    }
    Ok(SocketAddr::new(notation.address(text)?, 0))
}

fn container_port(notation: &Notation<'_>, text: &str) -> Result<u16, ParseError> {
    match notation.port(text) {
        Ok(port) if port != 0 => Ok(port),
        Ok(_) | Err(_) => Err(notation.unexpected(text, "a port of the container from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::ops::RangeInclusive;

    use proptest::prelude::*;

    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn every_form_is_read() {
        for (text, expected) in [
            ("8080:80", Publish::tcp(8080, 80)),
            ("53:53/udp", Publish::udp(53, 53)),
            ("8000-8009:80", Publish::tcp(8000..=8009, 80)),
            ("127.0.0.1:8080:80", Publish::tcp((at("127.0.0.1"), 8080), 80)),
            ("[::1]:1-2:80/udp", Publish::udp((at("::1"), 1..=2), 80)),
            ("[fe80::1%3]:1:80", Publish::tcp("[fe80::1%3]:1".parse::<SocketAddr>().unwrap(), 80)),
            ("web=0:80", Publish::tcp(0, 80).container("web")),
            ("web.test=127.0.0.1:8080:80", Publish::tcp(Listen::loopback(8080), 80).container("web.test")),
            ("/run/a:b=c.sock:80", Publish::unix("/run/a:b=c.sock", 80)),
            ("unix:a=b.sock:80", Publish::unix("a=b.sock", 80)),
            ("web=/run/a.sock:80", Publish::unix("/run/a.sock", 80).container("web")),
            ("unix=8080:80", Publish::tcp(8080, 80).container("unix")),
        ] {
            assert_eq!(text.parse(), Ok(expected.clone()), "{text}");
            assert_eq!(expected.to_string(), text);
        }
        assert_eq!("8080:80/tcp".parse(), Ok(Publish::tcp(8080, 80)));
        assert_eq!("unix:/run/a.sock:80".parse(), Ok(Publish::unix("/run/a.sock", 80)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, position, expected) in [
            ("", 0, "a port of the host, a colon"),
            ("80", 0, "a port of the host, a colon"),
            ("8080:", 5, "a port of the container"),
            ("8080:0", 5, "a port of the container"),
            ("8080:65536", 5, "a port of the container"),
            ("8080:+80", 5, "a port of the container"),
            ("http:80", 0, "a port from 0"),
            ("-1:80", 0, "a port from 0"),
            ("9-8:80", 0, "a range of ports, the smaller one first"),
            ("0-8:80", 0, "a range of ports that begins with 1"),
            ("::1:8080:80", 0, "an IPv4 address, or an IPv6 address in brackets"),
            ("[127.0.0.1]:8080:80", 0, "an IPv4 address, or an IPv6 address in brackets"),
            ("[fe80::1%eth0]:1:80", 9, "the number of an interface"),
            ("fe80::1%3:1:80", 8, "an IPv6 address and a closing bracket"),
            ("8080:80/sctp", 8, "tcp or udp"),
            ("a b=8080:80", 0, "the name of a container"),
            ("=8080:80", 0, "the name of a container"),
            ("web=8080:80/", 12, "tcp or udp"),
            ("/run/no-port", 0, "a path, a colon"),
            ("web=unix::80", 4, "a path, a colon"),
        ] {
            let error = text.parse::<Publish>().unwrap_err();
            assert!(error.expected().starts_with(expected), "{error}");
            assert_eq!(error.position(), position, "{error}");
        }
    }

    fn ranges() -> impl Strategy<Value = RangeInclusive<u16>> {
        let range = (1..=u16::MAX, 1..=u16::MAX).prop_map(|(a, b)| a.min(b)..=a.max(b));
        prop_oneof![any::<u16>().prop_map(|port| port..=port), range]
    }

    fn listens() -> impl Strategy<Value = Listen> {
        let scoped = (any::<std::net::Ipv6Addr>(), any::<u32>(), any::<u32>(), any::<u16>()).prop_map(
            |(address, flow, scope, port)| {
                Listen::from(SocketAddr::from(SocketAddrV6::new(address, port, flow, scope)))
            },
        );
        let one = (any::<IpAddr>(), ranges()).prop_map(|(address, ports)| Listen::from((address, ports)));
        prop_oneof![ranges().prop_map(Listen::from), one, scoped]
    }

    fn fronts() -> impl Strategy<Value = Front> {
        prop_oneof![
            listens().prop_map(Front::Tcp),
            listens().prop_map(Front::Udp),
            "[a-z/:=. %]{1,12}".prop_map(|path| Front::Unix(path.into())),
            "/\\PC{0,20}".prop_map(|path| Front::Unix(path.into())),
        ]
    }

    proptest! {
        #[test]
        fn a_listener_survives_its_text(listen in listens()) {
            prop_assert_eq!(listen.to_string().parse(), Ok(listen));
        }

        #[test]
        fn what_is_published_survives_its_text(
            front in fronts(), name in proptest::option::of("[a-zA-Z0-9_]{1,9}(\\.[a-z0-9]{1,9}){0,2}"), port in 1..=u16::MAX,
        ) {
            let publish = Publish { front, member: name, port };
            prop_assert_eq!(publish.to_string().parse(), Ok(publish));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z0-9:/=%\\[\\]. -]{0,20}|\\PC{0,20}") {
            match text.parse::<Publish>() {
                Ok(publish) => prop_assert_eq!(publish.to_string().parse(), Ok(publish)),
                Err(error) => prop_assert!(text.is_char_boundary(error.position())),
            }
        }
    }
}
