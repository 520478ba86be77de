//! A query as far as whoever answers or forwards it must understand it, and replies without records. Pure.

use simple_dns::{OPCODE, PacketFlag, RCODE, TYPE, header_buffer};

/// A message that is a query: a whole header without the bit that makes it a response.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    message: &'a [u8],
    header: &'a [u8; HEADER_LEN],
    question: Option<Question<'a>>,
}

/// The one question of a query (RFC 9619), RFC 1035, section 4.1.2.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Name, type and class as they came.
    bytes: &'a [u8],
    /// The name as it came: labels behind their lengths, up to the empty one.
    pub name: &'a [u8],
    pub record_type: u16,
    pub class: u16,
}

/// What the sender says of itself in its OPT record (RFC 6891, section 6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opt {
    /// The longest datagram it can take.
    payload_size: u16,
    version: u8,
    /// DO and the bits that are reserved beside it.
    flags: u16,
}

impl<'a> Query<'a> {
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let header = message.first_chunk()?;
        if header_buffer::has_flags_unchecked(header, PacketFlag::RESPONSE) {
            return None;
        }
        let has_one = header_buffer::questions_unchecked(header) == 1;
        let question = has_one.then(|| Question::parse(&message[HEADER_LEN..])).flatten();
        Some(Self { message, header, question })
    }

    /// The ID of the message.
    #[must_use]
    pub fn id(&self) -> u16 {
        header_buffer::id_unchecked(self.header)
    }

    /// `None` unless there is exactly one and it is whole.
    pub fn question(&self) -> Option<&Question<'a>> {
        self.question.as_ref()
    }

    /// Whether it asks for records, as all but a few do.
    pub fn is_standard(&self) -> bool {
        header_buffer::opcode_unchecked(self.header) == OPCODE::StandardQuery
    }

    /// Whether it asks for records by other than one whole question (RFC 9619), or none (RFC 7873, section 5.4). Servers
    /// differ in what they make of that.
    pub fn hides_its_question(&self) -> bool {
        self.is_standard() && self.question.is_none() && header_buffer::questions_unchecked(self.header) != 0
    }

    /// Whether it asks for a zone, which comes in many messages (RFC 5936, section 2.2; RFC 1995, section 4).
    pub fn is_transfer(&self) -> bool {
        self.is_standard() && self.question.is_some_and(|question| TRANSFERS.contains(&question.record_type))
    }

    /// The longest datagram that the sender can take: 512 bytes (RFC 1035, section 4.2.1) or what it says (RFC 6891,
    /// section 6.2.5).
    pub fn longest_datagram(&self) -> usize {
        self.opt().map_or(LEAST_DATAGRAM, |opt| usize::from(opt.payload_size).max(LEAST_DATAGRAM))
    }

    /// Whether `message` is a response to this query, which was sent with `id`: of the same question, if this one has
    /// one and the response does not merely report an error (RFC 5452, section 9.1).
    pub fn is_answered_by(&self, message: &[u8], id: u16) -> bool {
        let Some(header) = message.first_chunk::<HEADER_LEN>() else { return false };
        let is_response = header_buffer::has_flags_unchecked(header, PacketFlag::RESPONSE);
        if !is_response || header_buffer::id_unchecked(header) != id {
            return false;
        }
        let Some(asked) = self.question else { return true };
        match header_buffer::questions_unchecked(header) {
            0 => header_buffer::rcode_unchecked(header) != RCODE::NoError,
            1 => Question::parse(&message[HEADER_LEN..]).is_some_and(|question| question.is_same(&asked)),
            _ => false,
        }
    }

    /// The reply that says that nobody answered, or not in time.
    pub fn failure(&self) -> Vec<u8> {
        self.reply(RCODE::ServerFailure as u16)
    }

    /// The reply with this code and no records.
    pub fn decline(&self, rcode: RCODE) -> Vec<u8> {
        self.reply(rcode as u16)
    }

    /// The reply that says that the answer is too long for a datagram: the client asks again over TCP (RFC 7766,
    /// section 5).
    pub fn truncated(&self) -> Vec<u8> {
        self.reply(PacketFlag::TRUNCATION.bits())
    }

    /// The reply to a query of a version of EDNS that is not known here (BADVERS, RFC 6891, section 6.1.3); `None` if
    /// it is known, or none.
    pub fn unknown_version(&self) -> Option<Vec<u8>> {
        self.opt().filter(|opt| opt.version != 0)?;
        let mut reply = self.reply(0);
        // The upper bits of the code stand before version, flags and length.
        let upper = reply.len().checked_sub(6)?;
        *reply.get_mut(upper)? = BAD_VERSION_UPPER;
        Some(reply)
    }

    /// A reply without records, with an OPT record if the query has one.
    fn reply(&self, news: u16) -> Vec<u8> {
        let mut reply = self.head_of_reply(news);
        self.add_opt(&mut reply);
        reply
    }

    /// Header and question of a reply (RFC 1035, section 4.1.1): ID, opcode, RD and CD (RFC 4035, section 3.2.2) copied,
    /// question echoed byte for byte. Not built with `simple_dns::Packet`, which cannot express the record
    /// types, classes and opcodes that it does not know.
    pub fn head_of_reply(&self, news: u16) -> Vec<u8> {
        let question = self.question.map_or(&[][..], |question| question.bytes);
        let copied = OPCODE_BITS | (PacketFlag::RECURSION_DESIRED | PacketFlag::CHECKING_DISABLED).bits();
        let asked = u16::from_be_bytes([self.header[2], self.header[3]]);
        let ours = (PacketFlag::RESPONSE | PacketFlag::RECURSION_AVAILABLE).bits();
        let flags = asked & copied | ours | news;
        let mut reply = Vec::with_capacity(HEADER_LEN + question.len() + OPT_LEN);
        reply.extend_from_slice(&self.header[..2]);
        reply.extend_from_slice(&flags.to_be_bytes());
        reply.extend_from_slice(&u16::from(!question.is_empty()).to_be_bytes());
        reply.resize(HEADER_LEN, 0);
        reply.extend_from_slice(question);
        reply
    }

    /// Adds the OPT record that a reply to a query with one must have (RFC 6891, section 6.1.1), to a reply that has no
    /// additional records. By hand: `simple_dns` drops the DO bit, which is to be copied (RFC 3225, section 3).
    pub fn add_opt(&self, reply: &mut Vec<u8>) {
        let Some(opt) = self.opt() else { return };
        let Some(counts) = reply.get_mut(10..HEADER_LEN) else { return };
        counts.copy_from_slice(&1u16.to_be_bytes());
        reply.push(0);
        reply.extend_from_slice(&u16::from(TYPE::OPT).to_be_bytes());
        reply.extend_from_slice(&OUR_PAYLOAD_SIZE.to_be_bytes());
        reply.extend_from_slice(&[0, 0]);
        reply.extend_from_slice(&(opt.flags & DNSSEC_OK).to_be_bytes());
        reply.extend_from_slice(&[0, 0]);
    }

    /// Looked for by hand, so that it is found behind records that `simple_dns` does not know.
    fn opt(&self) -> Option<Opt> {
        let question = self.question?;
        let mut rest = &self.message[HEADER_LEN + question.bytes.len()..];
        let counts = self.header[6..].chunks_exact(2);
        let records: usize = counts.map(|count| usize::from(u16::from_be_bytes([count[0], count[1]]))).sum();
        for _ in 0..records {
            let fields = rest.get(name_len(rest)?..)?;
            let (&[kind0, kind1, size0, size1, _, version, flags0, flags1, length0, length1], data) =
                fields.split_first_chunk()?;
            if u16::from_be_bytes([kind0, kind1]) == u16::from(TYPE::OPT) {
                let payload_size = u16::from_be_bytes([size0, size1]);
                return Some(Opt { payload_size, version, flags: u16::from_be_bytes([flags0, flags1]) });
            }
            rest = data.get(u16::from_be_bytes([length0, length1]).into()..)?;
        }
        None
    }
}

impl<'a> Question<'a> {
    fn parse(body: &'a [u8]) -> Option<Self> {
        let name = body.get(..name_len(body)?)?;
        // Nothing stands before the first name that a compression pointer could point to.
        if name.last() != Some(&0) {
            return None;
        }
        let (&[kind0, kind1, class0, class1], _) = body[name.len()..].split_first_chunk()?;
        Some(Self {
            bytes: &body[..name.len() + 4],
            name,
            record_type: u16::from_be_bytes([kind0, kind1]),
            class: u16::from_be_bytes([class0, class1]),
        })
    }

    /// Names are equal whatever the case of their letters (RFC 4343); a length is never a letter.
    fn is_same(&self, other: &Question<'_>) -> bool {
        let kind = |question: &Question<'_>| (question.record_type, question.class);
        kind(self) == kind(other) && self.name.eq_ignore_ascii_case(other.name)
    }
}

/// Length of the name that `bytes` begins with (RFC 1035, section 3.1), which may end with a compression pointer (section
/// 4.1.4).
fn name_len(bytes: &[u8]) -> Option<usize> {
    let mut end = 0;
    loop {
        match usize::from(*bytes.get(end)?) {
            0 => return Some(end + 1),
            0xc0.. => return Some(end + 2),
            label @ ..=MAX_LABEL if end + label < MAX_NAME => end += 1 + label,
            _ => return None,
        }
    }
}

/// Length of the header, RFC 1035, section 4.1.1.
pub const HEADER_LEN: usize = 12;
/// Length of an OPT record without options, RFC 6891, section 6.1.2.
const OPT_LEN: usize = 11;
/// The opcode's bits in the flags, RFC 1035, section 4.1.1.
const OPCODE_BITS: u16 = 0x7800;
/// The DO bit of an OPT record, RFC 3225, section 3.
const DNSSEC_OK: u16 = 0x8000;
/// BADVERS is 16, of which the header holds the lower four bits (RFC 6891, section 6.1.3).
const BAD_VERSION_UPPER: u8 = 1;
/// IXFR and AXFR, RFC 1995 and RFC 1035, section 3.2.3.
const TRANSFERS: [u16; 2] = [251, 252];
/// Limits of names, RFC 1035, section 2.3.4.
pub(super) const MAX_LABEL: usize = 63;
pub(super) const MAX_NAME: usize = 255;
/// What every resolver takes, RFC 1035, section 4.2.1.
const LEAST_DATAGRAM: usize = 512;
/// Queries of any length are taken. The size that RFC 6891, section 6.2.5 suggests.
const OUR_PAYLOAD_SIZE: u16 = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::Packet;

    use super::super::testing::{query, query_for, response, with_opt};
    use super::*;

    #[test]
    fn unknown_types_and_opcodes_are_echoed() {
        let mut message = query();
        message[2] = 0x79; // opcode 15, RD
        message.truncate(message.len() - 4);
        message.extend_from_slice(&[0xfe, 0xdc, 0xba, 0x98]);
        let reply = Query::parse(&message).unwrap().failure();
        assert_eq!(reply[2..6], [0xf9, 0x82, 0, 1]);
        assert_eq!(reply[HEADER_LEN..], message[HEADER_LEN..]);
    }

    #[test]
    fn broken_question_is_not_echoed() {
        let whole = query();
        let mut pointer = whole.clone();
        pointer[HEADER_LEN] = 0xc0;
        let endless = [&whole[..HEADER_LEN], &[1, b'a'].repeat(200), &[0, 0, 1, 0, 1]].concat();
        for broken in [&whole[..whole.len() - 1], &pointer, &endless, &whole[..HEADER_LEN]] {
            let reply = Query::parse(broken).unwrap().failure();
            assert_eq!(reply.len(), HEADER_LEN);
            assert!(Packet::parse(&reply).is_ok_and(|packet| packet.questions.is_empty()));
        }
    }

    #[test]
    fn size_of_datagrams_is_what_the_query_says() {
        let longest = |message: &[u8]| Query::parse(message).unwrap().longest_datagram();
        assert_eq!(longest(&query()), 512);
        assert_eq!(longest(&with_opt(&query(), 1232)), 1232);
        assert_eq!(longest(&with_opt(&query(), 100)), 512, "RFC 6891, section 6.2.3");
        // Cut off in the middle of the record.
        let whole = with_opt(&query(), 1232);
        assert_eq!(longest(&whole[..whole.len() - 5]), 512);
    }

    #[test]
    fn replies_keep_question_and_opt() {
        let asked = with_opt(&query(), 1232);
        let truncated = Query::parse(&asked).unwrap().truncated();
        let packet = Packet::parse(&truncated).unwrap();
        assert!(packet.has_flags(PacketFlag::TRUNCATION | PacketFlag::RESPONSE));
        assert_eq!(truncated[HEADER_LEN..query().len()], query()[HEADER_LEN..]);
        assert_eq!(packet.opt().unwrap().udp_packet_size, OUR_PAYLOAD_SIZE);
        assert_eq!(truncated[truncated.len() - 4..], [0x80, 0, 0, 0], "DO is copied, nothing else");
        assert!(Packet::parse(&Query::parse(&query()).unwrap().truncated()).unwrap().opt().is_none());
    }

    #[test]
    fn unknown_versions_of_edns_are_named() {
        let mut message = with_opt(&query(), 1232);
        assert_eq!(Query::parse(&message).unwrap().unknown_version(), None);
        let version = message.len() - 5;
        message[version] = 1;
        let reply = Query::parse(&message).unwrap().unknown_version().unwrap();
        assert_eq!(reply[3] & 0xf, 0, "the lower bits of 16");
        assert_eq!(reply[reply.len() - 6..][..2], [1, 0], "the upper bits, and the version that is known");
    }

    #[test]
    fn an_answer_has_the_id_and_the_question() {
        let message = query();
        let asked = Query::parse(&message).unwrap();
        let is_answered = |reply: &[u8]| asked.is_answered_by(reply, 0xbeef);
        let good = response(&message, RCODE::NoError, b"tail");
        assert!(is_answered(&good));
        assert!(!asked.is_answered_by(&good, 0xbeee));
        assert!(!is_answered(&message), "a query");
        assert!(!is_answered(&response(&query_for("www.example.net", TYPE::HTTPS), RCODE::NoError, b"")));
        assert!(!is_answered(&response(&query_for("www.example.com", TYPE::A), RCODE::NoError, b"")));
        assert!(is_answered(&response(&query_for("WWW.example.com", TYPE::HTTPS), RCODE::NoError, b"")));
        // Without a question only an error is believed.
        let mut bare = good[..HEADER_LEN].to_vec();
        bare[4..].fill(0);
        assert!(!is_answered(&bare));
        bare[3] |= 1;
        assert!(is_answered(&bare));
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled_without_panic(
            message in prop::collection::vec(any::<u8>(), 0..400),
            other in prop::collection::vec(any::<u8>(), 0..40),
            tail in prop::collection::vec(any::<u8>(), 0..60),
            counts in any::<[u8; 6]>(),
        ) {
            let is_query = message.len() >= HEADER_LEN && message[2] & 0x80 == 0;
            prop_assert_eq!(Query::parse(&message).is_some(), is_query);
            let mut sound = [query(), tail].concat();
            sound[6..HEADER_LEN].copy_from_slice(&counts);
            for message in [message, sound] {
                let Some(query) = Query::parse(&message) else { continue };
                let reply = query.failure();
                prop_assert!(query.is_answered_by(&reply, query.id()));
                prop_assert!(reply.len() <= message.len());
                prop_assert!(query.longest_datagram() >= LEAST_DATAGRAM);
                let _ = query.is_answered_by(&other, query.id());
            }
        }
    }
}
