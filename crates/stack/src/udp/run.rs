//! Which datagrams may travel together: those of one size, back to back, but for a shorter last one.

use super::Datagrams;

/// Most datagrams that the kernel takes in one call (`UDP_MAX_SEGMENTS`, include/linux/udp.h, before Linux 6.9).
pub const MAX_DATAGRAMS: usize = 64;

/// Most bytes of payload: a packet of 65 535 bytes less the headers of IPv6 and UDP.
const MAX_BYTES: usize = 65_487;

/// The shape of [`Datagrams`] to which more may be added: their size and their total length, without the bytes.
///
/// All of them have one peer and one [`Envelope`](super::Envelope); the caller sees to that.
///
/// # Examples
/// ```
/// use nsnet_stack::udp::{Datagrams, Run};
///
/// let mut run = Run::new(Datagrams::one(b"four"));
/// assert!(run.extend(Datagrams::one(b"five")));
/// assert!(!run.extend(Datagrams::one(b"longer")));
/// assert_eq!(run.datagrams(b"fourfive").count(), 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    size: usize,
    length: usize,
}

impl Run {
    /// Begins a run with these datagrams.
    #[must_use]
    pub fn new(datagrams: Datagrams<'_>) -> Self {
        Self { size: datagrams.size(), length: datagrams.bytes().len() }
    }

    /// Adds datagrams if they can travel with those before. Returns whether they can.
    ///
    /// They must have the same size, and at most the last one of the run may be shorter. A run has at most
    /// [`MAX_DATAGRAMS`] and fits one IP packet.
    pub fn extend(&mut self, datagrams: Datagrams<'_>) -> bool {
        let length = self.length + datagrams.bytes().len();
        let last_is_whole = self.size > 0 && self.length.is_multiple_of(self.size);
        let follows = datagrams.size() == self.size
            || datagrams.count() == 1 && (1..self.size).contains(&datagrams.size());
        let fits = length <= MAX_BYTES && length <= self.size * MAX_DATAGRAMS;
        if last_is_whole && follows && fits {
            self.length = length;
        }
        last_is_whole && follows && fits
    }

    /// The datagrams of this run, whose bytes the caller has collected in `bytes`.
    #[must_use]
    pub fn datagrams<'a>(&self, bytes: &'a [u8]) -> Datagrams<'a> {
        Datagrams::of_size(self.size, bytes)
    }

    /// Length of all datagrams in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_datagram_ends_a_run() {
        let mut run = Run::new(Datagrams::one(&[0; 100]));
        assert!(run.extend(Datagrams::one(&[0; 100])));
        assert!(!run.extend(Datagrams::one(&[0; 101])));
        assert!(!run.extend(Datagrams::one(&[])));
        assert!(run.extend(Datagrams::one(&[0; 99])));
        assert!(!run.extend(Datagrams::one(&[0; 100])));
        assert!(!run.extend(Datagrams::one(&[0; 99])));
        assert_eq!(run.length(), 299);
    }

    #[test]
    fn an_empty_datagram_travels_alone() {
        let mut run = Run::new(Datagrams::one(&[]));
        assert!(!run.extend(Datagrams::one(&[])));
        assert!(!run.extend(Datagrams::one(&[1])));
    }

    #[test]
    fn a_run_takes_what_the_kernel_takes() {
        let mut run = Run::new(Datagrams::one(&[0; 10]));
        for _ in 1..MAX_DATAGRAMS {
            assert!(run.extend(Datagrams::one(&[0; 10])));
        }
        assert!(!run.extend(Datagrams::one(&[0; 10])));
        let mut run = Run::new(Datagrams::one(&[0; 32_000]));
        assert!(run.extend(Datagrams::of_size(32_000, &[0; 33_000])));
        assert!(!run.extend(Datagrams::one(&[0; 900])));
    }
}
