//! Serde for types with a text form: they serialize as that text.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{HostPorts, Ipv4Subnet, Ipv6Subnet, Listen, Publish};

macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                parsed(deserializer)
            }
        }
    )*};
}

as_text! { HostPorts, Ipv4Subnet, Ipv6Subnet, Listen }

/// Fails for a UNIX socket whose path is not UTF-8, which has no text form.
impl Serialize for Publish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.path().is_some_and(|path| path.to_str().is_none()) {
            return Err(S::Error::custom(
                "the path of a published UNIX socket is not UTF-8: rename the socket",
            ));
        }
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Publish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use serde_json::{from_str, json, to_value};

    use super::*;
    use crate::{Member, Network, Offload, Statistics};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Config {
        ipv4: Ipv4Subnet,
        ipv6: Ipv6Subnet,
        open_host: Vec<HostPorts>,
        publish: Vec<Publish>,
        listen: Listen,
        member: Member,
        offload: Offload,
    }

    #[test]
    fn a_configuration_is_written_as_text_and_read_again() {
        let config = Config {
            ipv4: Ipv4Subnet::default().gateway([10, 0, 2, 1].into()),
            ipv6: Ipv6Subnet::default(),
            open_host: vec![HostPorts::loopback().port(8080).tcp()],
            publish: vec![Publish::tcp(8080, 80).container("web"), Publish::unix("/run/api.sock", 80)],
            listen: Listen::loopback(53),
            member: Member::named("db").ipv4([10, 0, 2, 5].into()),
            offload: Offload::NONE,
        };
        let written = to_value(&config).unwrap();
        assert_eq!(
            written,
            json!({
                "ipv4": "10.0.2.0/24,gateway=10.0.2.1",
                "ipv6": "fd00::/64",
                "open_host": ["loopback:8080/tcp"],
                "publish": ["web=8080:80", "/run/api.sock:80"],
                "listen": "127.0.0.1:53",
                "member": { "name": "db", "ipv4": "10.0.2.5", "ipv6": null },
                "offload": { "checksum": false, "tso4": false, "tso6": false, "uso": false },
            })
        );
        assert_eq!(from_str::<Config>(&written.to_string()).unwrap(), config);
    }

    #[test]
    fn a_text_that_does_not_fit_says_what_is_wrong() {
        let error = from_str::<Publish>("\"8080:80/sctp\"").unwrap_err().to_string();
        assert!(error.contains("expected tcp or udp at byte 8"), "{error}");
        let error = from_str::<Ipv4Subnet>("\"10.0.2.0/30\"").unwrap_err().to_string();
        assert!(error.contains("at most 29 bits"), "{error}");
    }

    #[test]
    fn a_member_needs_no_field_and_takes_no_other() {
        assert_eq!(from_str::<Member>("{}").unwrap(), Member::new());
        assert_eq!(from_str::<Member>(r#"{"name": "db"}"#).unwrap(), Member::named("db"));
        let error = from_str::<Member>(r#"{"nmae": "db"}"#).unwrap_err().to_string();
        assert!(error.contains("unknown field `nmae`"), "{error}");
    }

    #[test]
    fn statistics_are_read_again_and_older_ones_as_well() {
        let network = Network::builder().build().unwrap();
        let written = to_value(network.statistics()).unwrap();
        assert_eq!(written["tcp"], json!({ "opened": 0, "active": 0, "refused": 0, "overflowed": 0 }));
        assert_eq!(from_str::<Statistics>(&written.to_string()).unwrap(), network.statistics());
        let older = from_str::<Statistics>(r#"{"bytes_to_container": 7, "udp": {"opened": 1}}"#).unwrap();
        assert_eq!((older.bytes_to_container, older.udp.opened, older.tcp.opened), (7, 1, 0));
    }

    #[test]
    fn a_path_that_is_no_text_is_an_error() {
        let publish = Publish::unix(OsStr::from_bytes(b"/run/\xff"), 80);
        assert!(to_value(publish).unwrap_err().to_string().contains("not UTF-8"));
    }
}
