//! Limits on the DNS queries of one container, on all its queues together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for the queries under way of one container, and for its connections.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    messages: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// A query under way, and its answer until that is delivered.
#[derive(Debug)]
pub(super) struct Place(OwnedSemaphorePermit);

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// Places for this many queries under way at a time, and this many TCP connections.
    pub(crate) fn new(queries: usize, connections: usize) -> Self {
        let semaphore = |places: usize| Arc::new(Semaphore::new(places.min(MOST)));
        Self { messages: semaphore(queries), connections: semaphore(connections) }
    }

    /// Takes a place for a query of this many bytes, if there is one.
    pub(super) fn take(&self, length: usize) -> Option<Place> {
        Arc::clone(&self.messages).try_acquire_many_owned(units(length)).ok().map(Place)
    }

    /// Takes a place for one more connection, if there is one.
    pub(super) fn connect(&self) -> Option<ConnectionPlace> {
        let permit = Arc::clone(&self.connections).try_acquire_owned().ok()?;
        Some(ConnectionPlace { _permit: permit })
    }
}

impl Place {
    /// Makes room for a message of this many bytes. Returns whether there is any.
    pub(super) fn hold(&mut self, length: usize) -> bool {
        let missing = units(length).saturating_sub(u32::try_from(self.0.num_permits()).unwrap_or(u32::MAX));
        let more = (missing > 0).then(|| Arc::clone(self.0.semaphore()).try_acquire_many_owned(missing));
        match more.transpose() {
            Ok(more) => {
                more.into_iter().for_each(|more| self.0.merge(more));
                true
            }
            Err(_) => false,
        }
    }
}

/// The number of places for a message. A message longer than usual takes several, so that the limit also bounds the
/// bytes.
fn units(length: usize) -> u32 {
    u32::try_from(length.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX)
}

/// A number that a semaphore supports on every platform.
const MOST: usize = i32::MAX as usize / 4;

/// Bytes of a message that takes one place.
const UNIT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const QUERIES: usize = 4096;
    const CONNECTIONS: usize = 256;

    #[test]
    fn long_messages_take_more_places() {
        let places = Places::new(QUERIES, CONNECTIONS);
        let long: Vec<_> = (0..QUERIES / 64).map(|_| places.take(64 << 10).unwrap()).collect();
        assert!(places.take(1).is_none());
        drop(long);
        let short: Vec<_> = (0..QUERIES).map(|_| places.take(UNIT).unwrap()).collect();
        assert!(places.take(0).is_none());
        drop(short);
        assert_eq!(places.messages.available_permits(), QUERIES);
    }

    #[test]
    fn an_answer_needs_room_of_its_own_if_it_is_longer_than_the_query() {
        let places = Places::new(QUERIES, CONNECTIONS);
        let mut others: Vec<_> = (2..QUERIES).map(|_| places.take(100).unwrap()).collect();
        let mut place = places.take(100).unwrap();
        assert!(place.hold(UNIT) && place.hold(2 * UNIT) && place.hold(2 * UNIT));
        assert!(!place.hold(2 * UNIT + 1));
        others.pop();
        assert!(place.hold(2 * UNIT + 1));
        drop((others, place));
        assert_eq!(places.messages.available_permits(), QUERIES);
    }

    #[test]
    fn connections_are_bounded() {
        let places = Places::new(QUERIES, CONNECTIONS);
        let mut open: Vec<_> = (0..CONNECTIONS).map(|_| places.connect().unwrap()).collect();
        assert!(places.connect().is_none());
        open.pop();
        assert!(places.connect().is_some());
    }
}
