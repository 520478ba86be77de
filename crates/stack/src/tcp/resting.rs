//! Connections in TIME-WAIT (RFC 9293, 3.6.1).
//!
//! The stack of a closed connection is dropped at once. What remains is enough to acknowledge a FIN that the container
//! repeats. A new SYN ends the rest early: the container is one hop away, over a link that neither delays nor
//! duplicates, so no old segment can be taken for one of the new connection (cf. RFC 6191).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use smoltcp::wire::TcpSeqNumber;

use super::Segment;
use crate::flow::FlowKey;

/// How long a connection rests: as long as in Linux (`TCP_TIMEWAIT_LEN`, include/net/tcp.h).
const TIME_WAIT: Duration = Duration::from_secs(60);

/// Most connections at rest; a new one displaces the oldest. The repeated FIN of a displaced one is answered with RST,
/// which finds a socket that its owner has closed already.
const MAX_RESTING: usize = 4096;

/// The sequence numbers of a connection's last acknowledgment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastAck {
    /// The sequence number behind this end's FIN.
    pub sequence: TcpSeqNumber,
    /// The sequence number behind the container's FIN: what is acknowledged.
    pub expected: TcpSeqNumber,
}

impl LastAck {
    /// The answer to the segment that moved a connection into TIME-WAIT: it acknowledged this end's FIN, and the
    /// container's FIN was in it or before it. `None` if it acknowledged nothing.
    #[must_use]
    pub fn answering(segment: &Segment) -> Option<Self> {
        Some(Self { sequence: segment.acknowledgment?, expected: segment.sequence + segment.length })
    }
}

/// The connections of a container in TIME-WAIT, for 60 s each and at most 4096.
#[derive(Debug, Default)]
pub struct Resting {
    acks: HashMap<FlowKey, (Instant, LastAck)>,
    /// In the order in which they expire. One whose time differs from the map's has been replaced or removed.
    order: VecDeque<(Instant, FlowKey)>,
}

impl Resting {
    /// Lets a connection rest from now on.
    pub fn insert(&mut self, now: Instant, key: FlowKey, ack: LastAck) {
        self.expire(now);
        while self.order.len() >= MAX_RESTING {
            self.forget_oldest();
        }
        let until = now + TIME_WAIT;
        self.acks.insert(key, (until, ack));
        self.order.push_back((until, key));
    }

    /// The last acknowledgment of a connection that rests.
    pub fn get(&mut self, now: Instant, key: &FlowKey) -> Option<LastAck> {
        self.expire(now);
        self.acks.get(key).map(|(_, ack)| *ack)
    }

    /// Whether a connection rests. One whose time is over counts until it is [looked up](Self::get).
    #[must_use]
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.acks.contains_key(key)
    }

    /// Ends the rest of a connection.
    pub fn remove(&mut self, key: &FlowKey) {
        self.acks.remove(key);
    }

    fn expire(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((until, key)) = self.order.pop_front() else { return };
        if self.acks.get(&key).is_some_and(|(current, _)| *current == until) {
            self.acks.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACK: LastAck = LastAck { sequence: TcpSeqNumber(1), expected: TcpSeqNumber(2) };

    fn key(port: u16) -> FlowKey {
        FlowKey { container: ([10, 0, 2, 100], port).into(), peer: ([10, 99, 0, 2], 80).into() }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_tuple_rests_for_a_minute() {
        let (mut resting, now) = (Resting::default(), start());
        resting.insert(now, key(1), ACK);
        assert_eq!(resting.get(now + Duration::from_secs(59), &key(1)), Some(ACK));
        assert_eq!(resting.get(now + TIME_WAIT, &key(1)), None);
    }

    #[test]
    fn a_tuple_that_rests_again_is_not_forgotten_with_its_first_rest() {
        let (mut resting, now) = (Resting::default(), start());
        resting.insert(now, key(1), ACK);
        resting.remove(&key(1));
        resting.insert(now + Duration::from_secs(30), key(1), ACK);
        assert_eq!(resting.get(now + Duration::from_secs(70), &key(1)), Some(ACK));
    }

    #[test]
    fn the_oldest_make_room() {
        let (mut resting, now) = (Resting::default(), start());
        for port in 1..=5000 {
            resting.insert(now, key(port), ACK);
        }
        assert_eq!(resting.acks.len(), MAX_RESTING);
        assert_eq!(resting.order.len(), MAX_RESTING);
        assert_eq!(resting.get(now, &key(1)), None);
        assert_eq!(resting.get(now, &key(5000)), Some(ACK));
    }
}
