//! Datagrams that wait for the Dialer's decision or for a full link. Their bytes are bounded.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use nsnet_stack::udp::{Datagrams, Envelope, MAX_DATAGRAMS};

use crate::link::{HeldFrame, Link, Sent};

/// The most datagrams held for one decision. More of them are lost, as in a full queue.
const HELD: usize = MAX_DATAGRAMS;

/// The most bytes of one budget.
const BUDGET: usize = 1 << 20;

/// A limit on the bytes of waiting datagrams. Its copies share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ByteBudget(Rc<Cell<usize>>);

impl ByteBudget {
    fn charge(&self) -> Charge {
        Charge { bytes: 0, budget: self.clone() }
    }
}

/// Bytes that count against a budget while this exists.
#[derive(Debug)]
struct Charge {
    bytes: usize,
    budget: ByteBudget,
}

impl Charge {
    /// Counts more bytes, if there is room for them.
    fn add(&mut self, bytes: usize) -> bool {
        let used = &self.budget.0;
        let fits = used.get() + bytes <= BUDGET;
        if fits {
            self.bytes += bytes;
            used.set(used.get() + bytes);
        }
        fits
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let used = &self.budget.0;
        used.set(used.get() - self.bytes);
    }
}

/// Datagrams that wait for a decision.
#[derive(Debug)]
pub(crate) struct HeldDatagrams {
    letters: Vec<Letter>,
    charge: Charge,
}

/// A datagram, and how it is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Letter {
    /// With the addresses that the container knows.
    pub(crate) envelope: Envelope,
    pub(crate) payload: Bytes,
}

impl HeldDatagrams {
    pub(crate) fn new(budget: &ByteBudget) -> Self {
        Self { letters: Vec::new(), charge: budget.charge() }
    }

    /// Keeps a datagram if there is room for it.
    pub(crate) fn push(&mut self, envelope: &Envelope, payload: &[u8]) {
        if self.letters.len() < HELD && self.charge.add(size_of::<Letter>() + payload.len()) {
            self.letters.push(Letter { envelope: *envelope, payload: Bytes::copy_from_slice(payload) });
        }
    }

    pub(crate) fn letters(&self) -> &[Letter] {
        &self.letters
    }

    /// The same datagrams under another budget, as far as that has room for them.
    pub(crate) fn copy(&self, budget: &ByteBudget) -> Self {
        let mut copy = Self::new(budget);
        for letter in &self.letters {
            if copy.charge.add(size_of::<Letter>() + letter.payload.len()) {
                copy.letters.push(letter.clone());
            }
        }
        copy
    }
}

/// Frames of datagrams that a full link did not take. `T` is the origin of the datagrams of one frame.
pub(crate) struct Backlog<T> {
    frame: HeldFrame,
    rest: Vec<Rest<T>>,
    _charge: Charge,
}

/// The datagrams of a later frame.
struct Rest<T> {
    origin: T,
    size: usize,
    bytes: Bytes,
}

/// Sends frames of datagrams until the link is full. Datagrams beyond the budget are lost, as in any full queue.
pub(crate) fn send_all<'d, T>(
    mut frames: impl Iterator<Item = (T, Datagrams<'d>)>,
    budget: &ByteBudget,
    mut send: impl FnMut(&T, Datagrams<'_>) -> Sent,
) -> Option<Backlog<T>> {
    let frame = frames.find_map(|(origin, datagrams)| match send(&origin, datagrams) {
        Sent::Done => None,
        Sent::Held(frame) => Some(frame),
    })?;
    let mut charge = budget.charge();
    let rest = frames
        .filter(|(_, datagrams)| charge.add(datagrams.bytes().len()))
        .map(|(origin, datagrams)| Rest {
            origin,
            size: datagrams.size(),
            bytes: Bytes::copy_from_slice(datagrams.bytes()),
        })
        .collect();
    Some(Backlog { frame, rest, _charge: charge })
}

impl<T> Backlog<T> {
    /// Sends the rest as the link takes it.
    ///
    /// # Errors
    /// If the link is gone.
    pub(crate) async fn clear(
        self,
        link: &Link,
        mut send: impl FnMut(&T, Datagrams<'_>) -> Sent,
    ) -> io::Result<()> {
        let mut sent = Sent::Held(self.frame);
        let mut rest = self.rest.iter();
        loop {
            while let Sent::Held(frame) = sent {
                link.writable().await?;
                sent = link.resend(frame);
            }
            let Some(Rest { origin, size, bytes }) = rest.next() else { return Ok(()) };
            sent = send(origin, Datagrams::of_size(*size, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_held_up_to_a_limit_however_short_they_are() {
        let budget = ByteBudget::default();
        let envelope = Envelope::new("10.99.0.2:53".parse().unwrap());
        for payload in [&[][..], &[7; 1000]] {
            let mut all = Vec::new();
            for _ in 0..2000 {
                let mut held = HeldDatagrams::new(&budget);
                (0..2 * HELD).for_each(|_| held.push(&envelope, payload));
                assert!(held.letters().len() <= HELD);
                all.push(held);
            }
            let letters: usize = all.iter().map(|held| held.letters().len()).sum();
            let bytes = letters * (payload.len() + size_of::<Letter>());
            assert!((BUDGET - 1200..=BUDGET).contains(&bytes), "{bytes}");
            drop(all);
            assert_eq!(budget.0.get(), 0);
        }
    }
}
