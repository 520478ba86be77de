//! `[ADDR:]HOST[-HOST]:PORT[/tcp|/udp]`, and `/PATH:PORT`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{Listen, ParsePublishError, Publish};

impl FromStr for Publish {
    type Err = ParsePublishError;

    fn from_str(text: &str) -> Result<Self, ParsePublishError> {
        if text.starts_with('/') {
            let (path, port) = text.rsplit_once(':').ok_or_else(|| error("path and port", text))?;
            return Ok(Self::unix(path, container_port(port)?));
        }
        let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (host, port) = text.rsplit_once(':').ok_or_else(|| error("pair of ports", text))?;
        let port = container_port(port)?;
        let listen = listen(host)?;
        match protocol {
            "tcp" => Ok(Self::tcp(listen, port)),
            "udp" => Ok(Self::udp(listen, port)),
            other => Err(error("protocol", other)),
        }
    }
}

/// `[ADDR:]HOST[-HOST]`.
fn listen(text: &str) -> Result<Listen, ParsePublishError> {
    match text.rsplit_once(':') {
        None => Ok(host_ports(text)?.into()),
        Some((address, ports)) => Ok((address_of(address)?, host_ports(ports)?).into()),
    }
}

fn address_of(text: &str) -> Result<IpAddr, ParsePublishError> {
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bracketed {
        Some(inner) => inner.parse().map(Ipv6Addr::into).map_err(|_| error("IPv6 address", inner)),
        None => text.parse().map(Ipv4Addr::into).map_err(|_| error("IPv4 address", text)),
    }
}

fn host_ports(text: &str) -> Result<RangeInclusive<u16>, ParsePublishError> {
    let port = |text: &str| text.parse::<u16>().map_err(|_| error("port of the host", text));
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((first, last)) => match (port(first)?, port(last)?) {
            (first, last) if 0 < first && first <= last => Ok(first..=last),
            _ => Err(error("range of ports, which has none or begins with 0", text)),
        },
    }
}

fn container_port(text: &str) -> Result<u16, ParsePublishError> {
    text.parse().ok().filter(|port| *port != 0).ok_or_else(|| error("port of the container", text))
}

fn error(part: &'static str, text: &str) -> ParsePublishError {
    ParsePublishError { part, text: text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read() {
        let at = |address: &str| address.parse::<IpAddr>().unwrap();
        for (text, expected) in [
            ("8080:80", Publish::tcp(8080, 80)),
            ("0:80/tcp", Publish::tcp(0, 80)),
            ("53:53/udp", Publish::udp(53, 53)),
            ("8000-8009:80", Publish::tcp(8000..=8009, 80)),
            ("127.0.0.1:8080:80", Publish::tcp((at("127.0.0.1"), 8080), 80)),
            ("[::1]:1-2:80/udp", Publish::udp((at("::1"), 1..=2), 80)),
            ("/run/a:b.sock:80", Publish::unix("/run/a:b.sock", 80)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "pair of ports"),
            ("80", "pair of ports"),
            ("8080:", "port of the container"),
            ("8080:0", "port of the container"),
            ("8080:65536", "port of the container"),
            ("http:80", "port of the host"),
            ("-1:80", "port of the host"),
            ("9-8:80", "range of ports"),
            ("0-8:80", "range of ports"),
            ("::1:8080:80", "IPv4 address"),
            ("[127.0.0.1]:8080:80", "IPv6 address"),
            ("8080:80/sctp", "protocol"),
            ("/run/no-port", "path and port"),
        ] {
            let error = text.parse::<Publish>().unwrap_err();
            assert!(error.part.starts_with(part), "{text}: {error}");
        }
        let error = "8080:80/sctp".parse::<Publish>().unwrap_err().to_string();
        assert!(error.starts_with("\"sctp\" is no protocol; expected [ADDR:]HOST"), "{error}");
    }
}
