//! Host names as embedders write them and as questions carry them.

use std::fmt;
use std::net::IpAddr;

use super::query::{MAX_LABEL, MAX_NAME};

/// A host name as the wire format has it (RFC 1035, section 3.1): labels behind their lengths, the empty one last.
/// Letters are in lower case, so names that differ only in case are equal.
///
/// # Examples
/// ```
/// use nsnet_stack::dns::HostName;
///
/// let name = HostName::parse("DB.example.").unwrap();
/// assert_eq!(name, HostName::of_question(b"\x02db\x07example\0"));
/// assert_eq!(name.to_string(), "db.example");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName(Box<[u8]>);

/// What is wrong with a name. Displayed as the end of a sentence that begins "the name …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameProblem {
    /// The name, or one of its labels, is empty.
    #[error("is empty, or has an empty label")]
    EmptyLabel,
    /// A label exceeds 63 bytes (RFC 1035, section 2.3.4).
    #[error("has a label of more than {MAX_LABEL} bytes")]
    LongLabel,
    /// The name exceeds 253 bytes (RFC 1035, section 2.3.4).
    #[error("has more than 253 bytes")]
    Long,
    /// A character is neither an ASCII letter, a digit, `-` nor `_`.
    #[error(
        "has a character that is neither a letter, a digit, '-' nor '_'; write others as an A-label (xn--…)"
    )]
    Character,
    /// A label begins or ends with `-` (RFC 952).
    #[error("has a label that begins or ends with '-'")]
    Hyphen,
}

impl HostName {
    /// Reads a name as RFC 1123, section 2.1 allows it. Underscores and a final dot are allowed too.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn parse(text: &str) -> Result<Self, NameProblem> {
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            if label.is_empty() {
                return Err(NameProblem::EmptyLabel);
            }
            if label.len() > MAX_LABEL {
                return Err(NameProblem::LongLabel);
            }
            if !label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                return Err(NameProblem::Character);
            }
            if label.starts_with('-') || label.ends_with('-') {
                return Err(NameProblem::Hyphen);
            }
            wire.push(u8::try_from(label.len()).map_err(|_| NameProblem::LongLabel)?);
            wire.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
        }
        wire.push(0);
        if wire.len() > MAX_NAME {
            return Err(NameProblem::Long);
        }
        Ok(Self(wire.into()))
    }

    /// The name of a question, in the wire format.
    #[must_use]
    pub fn of_question(wire: &[u8]) -> Self {
        // A length is at most 63 and so no letter.
        Self(wire.to_ascii_lowercase().into())
    }

    /// The name whose PTR records hold the names of an address (RFC 1035, section 3.5; RFC 3596, section 2.5).
    #[must_use]
    pub fn reverse(address: IpAddr) -> Self {
        let mut wire = Vec::with_capacity(74);
        let mut push = |label: &str| {
            wire.push(u8::try_from(label.len()).unwrap_or(0));
            wire.extend_from_slice(label.as_bytes());
        };
        match address {
            IpAddr::V4(address) => {
                address.octets().iter().rev().for_each(|octet| push(&octet.to_string()));
                ["in-addr", "arpa"].into_iter().for_each(push);
            }
            IpAddr::V6(address) => {
                for octet in address.octets().iter().rev() {
                    push(&format!("{:x}", octet & 0xf));
                    push(&format!("{:x}", octet >> 4));
                }
                ["ip6", "arpa"].into_iter().for_each(push);
            }
        }
        wire.push(0);
        Self(wire.into())
    }
}

/// Labels with dots between them, and none at the end. Bytes that no host name has are escaped (RFC 1035, section 5.1),
/// so that no two names look alike.
impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        while let Some((&length @ 1.., tail)) = rest.split_first()
            && let Some((label, tail)) = tail.split_at_checked(length.into())
        {
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    _ if byte.is_ascii_graphic() => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            rest = tail;
            if rest.first() != Some(&0) {
                f.write_str(".")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_and_the_final_dot_do_not_matter() {
        assert_eq!(HostName::parse("Db.Example.").unwrap(), HostName::of_question(b"\x02dB\x07exAmple\0"));
        assert_eq!(HostName::parse("Db.Example.").unwrap().to_string(), "db.example");
    }

    #[test]
    fn names_that_are_not_the_same_do_not_look_the_same() {
        let shown = |wire: &[u8]| HostName::of_question(wire).to_string();
        assert_eq!(shown(b"\x03a.b\x01C\0"), "a\\.b.c");
        assert_eq!(shown(b"\x04a\\ \xff\0"), "a\\\\\\032\\255");
        assert_eq!(shown(b"\0"), "");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let problem = |text: &str| HostName::parse(text).unwrap_err();
        assert_eq!(problem(""), NameProblem::EmptyLabel);
        assert_eq!(problem("."), NameProblem::EmptyLabel);
        assert_eq!(problem("a..b"), NameProblem::EmptyLabel);
        assert_eq!(problem(&"a".repeat(64)), NameProblem::LongLabel);
        assert_eq!(problem(&["a"; 128].join(".")), NameProblem::Long);
        assert!(HostName::parse(&["a"; 127].join(".")).is_ok());
        assert_eq!(problem("two words"), NameProblem::Character);
        assert_eq!(problem("a\nnameserver"), NameProblem::Character);
        assert_eq!(problem("bücher.example"), NameProblem::Character);
        assert_eq!(problem("-a.example"), NameProblem::Hyphen);
    }

    proptest! {
        #[test]
        fn any_bytes_are_shown_without_panic(wire in prop::collection::vec(any::<u8>(), 0..300)) {
            let shown = HostName::of_question(&wire).to_string();
            prop_assert!(shown.bytes().all(|byte| byte.is_ascii_graphic()));
        }

        #[test]
        fn any_text_that_is_a_name_is_shown_as_it_was_written(text in "[a-z0-9_.-]{0,40}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(name.to_string(), text.strip_suffix('.').unwrap_or(&text));
            }
        }
    }

    #[test]
    fn addresses_are_reversed() {
        let reverse = |address: &str| HostName::reverse(address.parse().unwrap()).to_string();
        assert_eq!(reverse("10.0.2.3"), "3.2.0.10.in-addr.arpa");
        let v6 = reverse("fd00::a3");
        assert!(v6.starts_with("3.a.0.0.") && v6.ends_with(".0.0.d.f.ip6.arpa"), "{v6}");
        assert_eq!(v6.split('.').count(), 34);
    }
}
