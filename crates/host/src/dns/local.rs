//! Names that the network itself knows. No server is ever asked for them. Pure.
//!
//! | query | answer |
//! |---|---|
//! | A, AAAA, ANY of a host, or a container that is within reach | its addresses of that family |
//! | PTR of an address of one of these | its names |
//! | any other type of these | no records (NODATA, RFC 2308, section 2.2) |
//! | the name of this host while it is out of reach, and all below it | no such name (NXDOMAIN) |
//!
//! Every look-up of a name goes through [`LocalNames::records`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use simple_dns::rdata::{PTR, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, RCODE, ResourceRecord, TYPE};

use crate::addressing::leases::{Directory, Records};
use nsnet_stack::dns::HostName;
use nsnet_stack::dns::{Query, Question};

/// The names that were given when the network was built.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    entries: HashMap<HostName, Records>,
    /// Names that do not exist. Names below them do not exist either.
    absent: Vec<HostName>,
}

impl Hosts {
    /// Adds addresses to a name, and the name to each of them.
    pub(crate) fn add(&mut self, name: &HostName, addresses: impl IntoIterator<Item = IpAddr>) {
        for address in addresses {
            let entry = self.entries.entry(name.clone()).or_default();
            if !entry.addresses.contains(&address) {
                entry.addresses.push(address);
                self.entries.entry(HostName::reverse(address)).or_default().names.push(name.clone());
            }
        }
    }

    /// Denies a name, unless it has an address.
    pub(crate) fn deny(&mut self, name: HostName) {
        self.absent.push(name);
    }
}

/// Answers queries for the names that the network knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalNames {
    hosts: Arc<Hosts>,
    /// The containers, if they reach each other.
    containers: Option<Directory>,
}

impl LocalNames {
    pub(crate) fn new(hosts: Arc<Hosts>, containers: Option<Directory>) -> Self {
        Self { hosts, containers }
    }

    /// The answer to a query for a known name.
    pub(super) fn answer(&self, query: &Query<'_>) -> Option<Vec<u8>> {
        let question = query.question().filter(|_| query.is_standard())?;
        if ![CLASS::IN as u16, u16::from(QCLASS::ANY)].contains(&question.class) {
            return None;
        }
        let name = HostName::of_question(question.name);
        let Some(records) = self.records(&name) else {
            return self.is_absent(question.name).then(|| query.decline(RCODE::NameError));
        };
        if let Some(unknown) = query.unknown_version() {
            return Some(unknown);
        }
        Some(positive(query, question, &records).unwrap_or_else(|| query.decline(RCODE::NoError)))
    }

    /// The records of a name. A host of the builder's comes before a container.
    fn records(&self, name: &HostName) -> Option<Cow<'_, Records>> {
        let of_container = || self.containers.as_ref()?.records(name).map(Cow::Owned);
        self.hosts.entries.get(name).map(Cow::Borrowed).or_else(of_container)
    }

    fn is_absent(&self, mut wire: &[u8]) -> bool {
        if self.hosts.absent.is_empty() {
            return false;
        }
        // First the name, then each name above it.
        while let Some((&length @ 1.., rest)) = wire.split_first() {
            if self.hosts.absent.contains(&HostName::of_question(wire)) {
                return true;
            }
            wire = rest.get(length.into()..).unwrap_or_default();
        }
        false
    }
}

/// The reply with the records of the type in question. `None` if there are none.
fn positive(query: &Query<'_>, question: &Question<'_>, records: &Records) -> Option<Vec<u8>> {
    let is_asked = asks_for(question, TYPE::PTR);
    let names: Vec<_> = records.names.iter().filter(|_| is_asked).map(HostName::to_string).collect();
    let pointers = names.iter().filter_map(|name| Some(RData::PTR(PTR(Name::new(name).ok()?))));
    with_records(query, TTL, address_records(question, &records.addresses).into_iter().chain(pointers))
}

/// The records for those of the addresses that have the type in question.
pub(super) fn address_records(question: &Question<'_>, addresses: &[IpAddr]) -> Vec<RData<'static>> {
    let record = |address: &IpAddr| match *address {
        IpAddr::V4(address) => asks_for(question, TYPE::A).then(|| RData::A(address.into())),
        IpAddr::V6(address) => asks_for(question, TYPE::AAAA).then(|| RData::AAAA(address.into())),
    };
    addresses.iter().filter_map(record).collect()
}

fn asks_for(question: &Question<'_>, kind: TYPE) -> bool {
    [u16::from(kind), ANY].contains(&question.record_type)
}

/// The reply to a query with these records of its name. `None` without any.
pub(super) fn with_records<'r>(
    query: &Query<'_>,
    ttl: u32,
    records: impl Iterator<Item = RData<'r>>,
) -> Option<Vec<u8>> {
    let head = query.head_of_reply(PacketFlag::AUTHORITATIVE_ANSWER.bits());
    // The parser knows all the types that are used here.
    let mut reply = Packet::parse(&head).ok()?;
    let name = reply.questions.first()?.qname.clone();
    reply.answers = records.map(|data| ResourceRecord::new(name.clone(), CLASS::IN, ttl, data)).collect();
    if reply.answers.is_empty() {
        return None;
    }
    let mut message = reply.build_bytes_vec_compressed().ok()?;
    query.add_opt(&mut message);
    Some(message)
}

/// Seconds for which an answer may be cached. Asking again costs next to nothing, and containers come and go.
const TTL: u32 = 10;

/// The type that asks for all records, RFC 1035, section 3.2.3.
const ANY: u16 = 255;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use nsnet_stack::dns::HEADER_LEN;
    use nsnet_stack::dns::testing::{query_for, with_opt};

    fn names() -> LocalNames {
        let mut hosts = Hosts::default();
        let name = |text| HostName::parse(text).unwrap();
        hosts.add(&name("db.test"), ["10.1.0.1".parse().unwrap(), "fd01::1".parse().unwrap()]);
        hosts.add(&name("DB.test."), ["10.1.0.2".parse().unwrap(), "10.1.0.1".parse().unwrap()]);
        hosts.add(&name("alias.test"), ["10.1.0.1".parse().unwrap()]);
        hosts.deny(name("host.nsnet.internal"));
        LocalNames::new(Arc::new(hosts), None)
    }

    /// Code and records of the answer, in words.
    fn asked(name: &str, record_type: TYPE) -> Option<String> {
        let message = query_for(name, record_type);
        let answer = names().answer(&Query::parse(&message).unwrap())?;
        let packet = Packet::parse(&answer).unwrap();
        assert_eq!((packet.id(), packet.questions.len()), (0xbeef, 1));
        assert_eq!(answer[HEADER_LEN..message.len()], message[HEADER_LEN..], "question byte for byte");
        let records: Vec<_> = packet
            .answers
            .iter()
            .map(|record| {
                if let RData::A(a) = &record.rdata {
                    Ipv4Addr::from(a.address).to_string()
                } else if let RData::AAAA(a) = &record.rdata {
                    Ipv6Addr::from(a.address).to_string()
                } else if let RData::PTR(PTR(name)) = &record.rdata {
                    name.to_string()
                } else {
                    panic!("{record:?}")
                }
            })
            .collect();
        Some(format!("{:?} {}", packet.rcode(), records.join(" ")))
    }

    #[test]
    fn hosts_have_the_addresses_of_the_type_that_is_asked_for() {
        assert_eq!(asked("db.test", TYPE::A).unwrap(), "NoError 10.1.0.1 10.1.0.2");
        assert_eq!(asked("dB.TeSt", TYPE::AAAA).unwrap(), "NoError fd01::1");
        assert_eq!(asked("alias.test", TYPE::A).unwrap(), "NoError 10.1.0.1");
    }

    #[test]
    fn other_types_of_a_host_are_without_records() {
        assert_eq!(asked("alias.test", TYPE::AAAA).unwrap(), "NoError ");
        assert_eq!(asked("db.test", TYPE::MX).unwrap(), "NoError ");
        assert_eq!(asked("db.test", TYPE::HTTPS).unwrap(), "NoError ");
        let mut unknown = query_for("db.test", TYPE::A);
        let kind = unknown.len() - 4;
        unknown[kind] = 0xfe;
        let answer = names().answer(&Query::parse(&unknown).unwrap()).unwrap();
        assert_eq!(answer[6..8], [0, 0], "no answer");
        assert_eq!(answer[3] & 0xf, 0, "no error");
    }

    #[test]
    fn addresses_of_hosts_lead_back_to_their_names() {
        assert_eq!(asked("1.0.1.10.in-addr.arpa", TYPE::PTR).unwrap(), "NoError db.test alias.test");
        assert_eq!(asked("2.0.1.10.in-addr.arpa", TYPE::A).unwrap(), "NoError ");
        assert_eq!(asked("9.0.1.10.in-addr.arpa", TYPE::PTR), None);
    }

    #[test]
    fn a_denied_name_does_not_exist_and_nothing_below_it() {
        assert_eq!(asked("HOST.nsnet.internal", TYPE::A).unwrap(), "NameError ");
        assert_eq!(asked("a.b.host.nsnet.internal", TYPE::TXT).unwrap(), "NameError ");
        assert_eq!(asked("nsnet.internal", TYPE::A), None);
        assert_eq!(asked("ghost.nsnet.internal", TYPE::A), None);
    }

    #[test]
    fn others_are_left_to_others() {
        assert_eq!(asked("example.com", TYPE::A), None);
        assert_eq!(asked("sub.db.test", TYPE::A), None);
        assert_eq!(asked("test", TYPE::A), None);
        let mut chaos = query_for("db.test", TYPE::A);
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(names().answer(&Query::parse(&chaos).unwrap()), None);
        let mut update = query_for("db.test", TYPE::A);
        update[2] = 5 << 3;
        assert_eq!(names().answer(&Query::parse(&update).unwrap()), None);
    }

    #[test]
    fn an_answer_has_an_opt_record_if_the_query_has_one() {
        let message = with_opt(&query_for("db.test", TYPE::A), 1232);
        let answer = names().answer(&Query::parse(&message).unwrap()).unwrap();
        let packet = Packet::parse(&answer).unwrap();
        assert!(packet.opt().is_some() && packet.has_flags(PacketFlag::AUTHORITATIVE_ANSWER));
        assert_eq!(packet.answers.len(), 2);
    }
}
