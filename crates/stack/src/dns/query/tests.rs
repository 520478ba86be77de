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
            prop_assert_eq!(query.id().to_be_bytes(), &message[..2]);
            let declined = query.decline(RCODE::NotImplemented);
            let replies = [query.failure(), query.truncated(), declined];
            for reply in replies.into_iter().chain(query.unknown_version()) {
                prop_assert!(Query::parse(&reply).is_none(), "a response");
                prop_assert!(reply.len() <= message.len());
            }
            let reply = query.failure();
            prop_assert!(query.is_answered_by(&reply, query.id()));
            prop_assert!(reply.len() <= message.len());
            prop_assert!(query.longest_datagram() >= LEAST_DATAGRAM);
            prop_assert!(!query.hides_its_question() || query.question().is_none());
            prop_assert!(!query.is_transfer() || query.question().is_some());
            prop_assert!(!query.is_transfer() || query.is_standard());
            if let Some(question) = query.question() {
                prop_assert!(message[HEADER_LEN..].starts_with(question.name));
                prop_assert_eq!(&query.head_of_reply(0)[HEADER_LEN..], question.bytes);
            }
            let _ = query.is_answered_by(&other, query.id());
        }
    }
}
