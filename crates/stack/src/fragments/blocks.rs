//! The blocks of a packet that have arrived.

use std::ops::Range;

/// Blocks of the longest packet: offsets have 13 bits (RFC 791, 3.1).
const MAX_BLOCKS: usize = 1 << 13;

const WORD: usize = u64::BITS as usize;

/// One bit for each block.
#[derive(Debug, Clone)]
pub(super) struct Blocks([u64; MAX_BLOCKS / WORD]);

/// How much of a range has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    Nothing,
    Part,
    All,
}

impl Blocks {
    pub(super) const NONE: Self = Self([0; MAX_BLOCKS / WORD]);

    /// How much of `range`, which is not empty, has arrived.
    pub(super) fn coverage(&self, range: Range<usize>) -> Coverage {
        let (mut any, mut all) = (false, true);
        for (word, mask) in words(range) {
            any |= self.0[word] & mask != 0;
            all &= self.0[word] & mask == mask;
        }
        match (any, all) {
            (false, _) => Coverage::Nothing,
            (true, false) => Coverage::Part,
            (true, true) => Coverage::All,
        }
    }

    /// Notes that `range` has arrived.
    pub(super) fn insert(&mut self, range: Range<usize>) {
        for (word, mask) in words(range) {
            self.0[word] |= mask;
        }
    }
}

/// The words that `range` touches, and its bits in each of them.
fn words(range: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    (range.start / WORD..range.end.div_ceil(WORD)).map(move |word| {
        let first = range.start.saturating_sub(word * WORD);
        let behind = (word + 1) * WORD - range.end.min((word + 1) * WORD);
        (word, u64::MAX << first & u64::MAX >> behind)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Range<usize>> {
        (0..300usize, 1..200usize).prop_map(|(start, length)| start..start + length)
    }

    proptest! {
        #[test]
        fn coverage_is_that_of_a_set(inserted in prop::collection::vec(ranges(), 0..4), asked in ranges()) {
            let mut blocks = Blocks::NONE;
            for range in &inserted {
                blocks.insert(range.clone());
            }
            let come = asked.clone().filter(|block| inserted.iter().any(|range| range.contains(block))).count();
            let expected = match come {
                0 => Coverage::Nothing,
                all if all == asked.len() => Coverage::All,
                _ => Coverage::Part,
            };
            prop_assert_eq!(blocks.coverage(asked), expected);
        }
    }

    #[test]
    fn the_last_block_has_a_bit() {
        let mut blocks = Blocks::NONE;
        blocks.insert(MAX_BLOCKS - 1..MAX_BLOCKS);
        assert_eq!(blocks.coverage(MAX_BLOCKS - 2..MAX_BLOCKS), Coverage::Part);
    }
}
