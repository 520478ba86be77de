//! Messages for tests and benchmarks.

use simple_dns::rdata::OPT;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};

const WELL_FORMED: &str = "the test wrote a well-formed message";

/// A query with ID 0xbeef for the records of a type at a name.
pub fn query_for(name: &str, record_type: TYPE) -> Vec<u8> {
    let mut packet = Packet::new_query(0xbeef);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let (qtype, qclass) = (QTYPE::TYPE(record_type), QCLASS::CLASS(CLASS::IN));
    packet.questions.push(Question::new(Name::new(name).expect(WELL_FORMED), qtype, qclass, false));
    packet.build_bytes_vec().expect(WELL_FORMED)
}

/// A query for the HTTPS records of a name in mixed case.
pub fn query() -> Vec<u8> {
    query_for("wWw.eXaMpLe.com", TYPE::HTTPS)
}

/// `query` with an OPT record that has the DO bit.
pub fn with_opt(query: &[u8], udp_packet_size: u16) -> Vec<u8> {
    let mut packet = Packet::parse(query).expect(WELL_FORMED);
    *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size, version: 0 });
    let mut message = packet.build_bytes_vec().expect(WELL_FORMED);
    let flags = message.len() - 4;
    message[flags] |= 0x80;
    message
}

/// `query` as a response with `rcode`, and `tail` behind it to tell it from others.
pub fn response(query: &[u8], rcode: RCODE, tail: &[u8]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] |= 0x80;
    message[3] = 0x80 | u8::try_from(rcode as u16).expect(WELL_FORMED);
    message.extend_from_slice(tail);
    message
}
