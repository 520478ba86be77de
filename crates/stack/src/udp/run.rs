//! Which datagrams travel together: one peer, one size, back to back. Pure.

use super::Datagrams;

/// The kernel takes no more in one call (`UDP_MAX_SEGMENTS`, include/linux/udp.h, before Linux 6.9).
pub const MAX_DATAGRAMS: usize = 64;

/// What fits in a packet of 65 535 bytes with the headers of IPv6 and UDP.
const MAX_BYTES: usize = 65_487;

/// The shape of [`Datagrams`] to which more may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    size: usize,
    length: usize,
}

impl Run {
    pub fn new(datagrams: Datagrams<'_>) -> Self {
        Self { size: datagrams.size(), length: datagrams.bytes().len() }
    }

    /// Adds datagrams if they can travel with those before: of the same size, all but the last.
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

    /// The datagrams, of which `bytes` are the bytes.
    pub fn datagrams<'a>(&self, bytes: &'a [u8]) -> Datagrams<'a> {
        Datagrams::of_size(self.size, bytes)
    }

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
