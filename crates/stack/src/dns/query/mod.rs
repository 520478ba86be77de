//! Queries, as far as a forwarder must understand them, and replies without records.

use simple_dns::{OPCODE, PacketFlag, RCODE, TYPE, header_buffer};

/// A message that is a query: it has a whole header, whose flags do not say "response".
///
/// # Examples
/// ```
/// use nsnet_stack::dns::Query;
///
/// // One question, for the A records of "db".
/// let message = b"\xbe\xef\x01\0\0\x01\0\0\0\0\0\0\x02db\0\0\x01\0\x01";
/// let query = Query::parse(message).unwrap();
/// assert_eq!((query.id(), query.question().unwrap().record_type), (0xbeef, 1));
///
/// let failure = query.failure();
/// assert!(query.is_answered_by(&failure, 0xbeef));
/// assert!(Query::parse(&failure).is_none());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    message: &'a [u8],
    header: &'a [u8; HEADER_LEN],
    question: Option<Question<'a>>,
}

/// The only question of a query (RFC 9619; RFC 1035, section 4.1.2).
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Name, type and class as they came.
    bytes: &'a [u8],
    /// The name in the wire format, as it came: labels behind their lengths, the empty one last.
    pub name: &'a [u8],
    /// The type of the records asked for (QTYPE).
    pub record_type: u16,
    /// The class of the records asked for (QCLASS).
    pub class: u16,
}

/// What the sender says about itself in its OPT record (RFC 6891, section 6.1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opt {
    /// Length in bytes of the longest datagram that it takes.
    payload_size: u16,
    version: u8,
    /// DO, and the reserved bits beside it.
    flags: u16,
}

impl<'a> Query<'a> {
    /// Reads a query. `None` if the header is cut short, or if the message is a response. A question that cannot be
    /// read makes [`question`](Self::question) return `None`.
    #[must_use]
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        let header = message.first_chunk()?;
        if header_buffer::has_flags_unchecked(header, PacketFlag::RESPONSE) {
            return None;
        }
        let has_one = header_buffer::questions_unchecked(header) == 1;
        let question = has_one.then(|| Question::parse(&message[HEADER_LEN..])).flatten();
        Some(Self { message, header, question })
    }

    /// The ID, which the reply repeats.
    #[must_use]
    pub fn id(&self) -> u16 {
        header_buffer::id_unchecked(self.header)
    }

    /// The question, if there is exactly one and it is whole.
    #[must_use]
    pub fn question(&self) -> Option<&Question<'a>> {
        self.question.as_ref()
    }

    /// Whether the opcode is that of an ordinary query (RFC 1035, section 4.1.1).
    #[must_use]
    pub fn is_standard(&self) -> bool {
        header_buffer::opcode_unchecked(self.header) == OPCODE::StandardQuery
    }

    /// Whether this is an ordinary query with several questions, or with one that cannot be read. Servers differ in how
    /// they understand that (RFC 9619). A query without questions is sound (RFC 7873, section 5.4).
    #[must_use]
    pub fn hides_its_question(&self) -> bool {
        self.is_standard() && self.question.is_none() && header_buffer::questions_unchecked(self.header) != 0
    }

    /// Whether it asks for a zone transfer, whose answer is many messages (RFC 5936, section 2.2; RFC 1995, section 4).
    #[must_use]
    pub fn is_transfer(&self) -> bool {
        self.is_standard() && self.question.is_some_and(|question| TRANSFERS.contains(&question.record_type))
    }

    /// Length in bytes of the longest datagram that the sender takes: 512 (RFC 1035, section 4.2.1), or more if it says
    /// so (RFC 6891, section 6.2.5).
    #[must_use]
    pub fn longest_datagram(&self) -> usize {
        self.opt().map_or(LEAST_DATAGRAM, |opt| usize::from(opt.payload_size).max(LEAST_DATAGRAM))
    }

    /// Whether `message` is a response to this query, which was sent with `id` (RFC 5452, section 9.1). It must have
    /// the same question, unless this query has none or the response only reports an error.
    #[must_use]
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

    /// The reply that reports a failure of the server (SERVFAIL): nobody answered, or not in time.
    #[must_use]
    pub fn failure(&self) -> Vec<u8> {
        self.reply(RCODE::ServerFailure as u16)
    }

    /// The reply with this code and no records.
    #[must_use]
    pub fn decline(&self, rcode: RCODE) -> Vec<u8> {
        self.reply(rcode as u16)
    }

    /// The reply that says that the answer is too long for a datagram (TC). The client asks again over TCP (RFC 7766,
    /// section 5).
    #[must_use]
    pub fn truncated(&self) -> Vec<u8> {
        self.reply(PacketFlag::TRUNCATION.bits())
    }

    /// The reply to a query with an unknown version of EDNS (BADVERS, RFC 6891, section 6.1.3). `None` if the version
    /// is 0 or the query has none.
    #[must_use]
    pub fn unknown_version(&self) -> Option<Vec<u8>> {
        self.opt().filter(|opt| opt.version != 0)?;
        let mut reply = self.reply(0);
        // The upper bits of the code precede version, flags and length.
        let upper = reply.len().checked_sub(6)?;
        *reply.get_mut(upper)? = BAD_VERSION_UPPER;
        Some(reply)
    }

    /// A reply without records but for an OPT record, which it has if the query has one. `news` are bits of the flags.
    fn reply(&self, news: u16) -> Vec<u8> {
        let mut reply = self.head_of_reply(news);
        self.add_opt(&mut reply);
        reply
    }

    /// Header and question of a reply (RFC 1035, section 4.1.1). ID, opcode, RD, CD (RFC 4035, section 3.2.2) and the
    /// question are the query's; `news` are further bits of the flags.
    ///
    /// It is built by hand because `simple_dns::Packet` has only the record types, classes and opcodes that it knows.
    #[must_use]
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

    /// Adds an OPT record to a reply if the query has one (RFC 6891, section 6.1.1). The reply must have no additional
    /// records yet.
    ///
    /// It is built by hand because `simple_dns` drops the DO bit, which must be copied (RFC 3225, section 3).
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

    /// The OPT record. It is searched by hand, to find it behind records that `simple_dns` does not know.
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
        // A compression pointer has nothing to point to: no name precedes this one.
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

    /// Names are equal whatever the case of their letters (RFC 4343). A length is at most 63, so it is never a letter.
    fn is_same(&self, other: &Question<'_>) -> bool {
        let kind = |question: &Question<'_>| (question.record_type, question.class);
        kind(self) == kind(other) && self.name.eq_ignore_ascii_case(other.name)
    }
}

/// Length of the name that `bytes` begin with (RFC 1035, section 3.1). It may end with a compression pointer (section
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
/// Length of a datagram that every resolver takes, RFC 1035, section 4.2.1.
const LEAST_DATAGRAM: usize = 512;
/// The size that RFC 6891, section 6.2.5 suggests. In fact queries of any length are taken.
const OUR_PAYLOAD_SIZE: u16 = 4096;

#[cfg(test)]
mod tests;
