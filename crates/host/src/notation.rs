//! Parts that the text forms of the configuration share: addresses, ports, and errors that name the position. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Why a text could not be read as a value of this crate.
///
/// The message quotes the text, names the part that does not fit, and shows the expected form:
///
/// ```
/// use nsnet_host::Publish;
///
/// let error = "8080:80/sctp".parse::<Publish>().unwrap_err();
/// assert_eq!((error.position(), error.expected()), (8, "tcp or udp"));
/// assert_eq!(
///     error.to_string(),
///     "\"8080:80/sctp\": expected tcp or udp at byte 8, found \"sctp\"; \
///      the form is [NAME=][ADDR:]HOST[-HOST]:PORT[/tcp|/udp] or [NAME=]/PATH:PORT"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: expected {expected} at byte {position}, found {found:?}; the form is {form}")]
pub struct ParseError {
    text: String,
    position: usize,
    found: String,
    expected: &'static str,
    form: &'static str,
}

impl ParseError {
    /// Byte offset of the part that does not fit, from the start of the text.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// What was expected there, in words.
    #[must_use]
    pub fn expected(&self) -> &str {
        self.expected
    }
}

/// A text that is being read, with the form it should have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notation<'a> {
    pub(crate) text: &'a str,
    pub(crate) form: &'static str,
}

impl Notation<'_> {
    /// An error about `found`, which is a part of the text.
    pub(crate) fn unexpected(&self, found: &str, expected: &'static str) -> ParseError {
        // The part is a slice of the text, so the two addresses give its offset.
        let position = found.as_ptr().addr().saturating_sub(self.text.as_ptr().addr());
        let position = position.min(self.text.len());
        ParseError { text: self.text.into(), position, found: found.into(), expected, form: self.form }
    }

    /// `IPv4` or `[IPv6]`.
    pub(crate) fn address(&self, part: &str) -> Result<IpAddr, ParseError> {
        match part.strip_prefix('[') {
            Some(rest) => self.bracketed(rest)?.parse().map(Ipv6Addr::into),
            None => part.parse().map(Ipv4Addr::into),
        }
        .map_err(|_| self.unexpected(part, "an IPv4 address, or an IPv6 address in brackets"))
    }

    /// The text before the closing bracket, which must be the last character.
    pub(crate) fn bracketed<'p>(&self, part: &'p str) -> Result<&'p str, ParseError> {
        part.strip_suffix(']').ok_or_else(|| self.unexpected(part, "an IPv6 address and a closing bracket"))
    }

    /// `PORT` or `FIRST-LAST`.
    pub(crate) fn ports(&self, part: &str) -> Result<RangeInclusive<u16>, ParseError> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (self.port(first)?, self.port(last)?);
        if from > to {
            return Err(self.unexpected(part, "a range of ports, the smaller one first"));
        }
        Ok(from..=to)
    }

    /// A port in decimal digits.
    pub(crate) fn port(&self, part: &str) -> Result<u16, ParseError> {
        let digits = (!part.starts_with('+')).then_some(part);
        let port = digits.and_then(|digits| digits.parse().ok());
        port.ok_or_else(|| self.unexpected(part, "a port from 0 to 65535"))
    }
}

/// An address, written as [`Notation::address`] reads it.
pub(crate) fn written(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// Ports, written as [`Notation::ports`] reads them.
pub(crate) fn written_ports(ports: &RangeInclusive<u16>) -> String {
    match (ports.start(), ports.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    }
}
