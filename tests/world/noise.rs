//! Bytes that compress badly, are the same every time, and whose order a digest notices.

use std::io::{self, Read, Write};

/// Bytes written or read at a time.
const CHUNK: usize = 64 * 1024;

/// An endless stream of pseudo-random bytes (xorshift64*).
pub(crate) struct Noise(u64);

impl Noise {
    /// The stream that belongs to `seed`; each has its own.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// The next `length` bytes.
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }

    /// Writes the next `length` bytes; what they were is in the digest returned.
    pub(crate) fn send(&mut self, mut to: impl Write, mut length: u64) -> io::Result<Digest> {
        let mut digest = Digest::default();
        let mut buffer = vec![0; CHUNK];
        while length > 0 {
            let chunk = &mut buffer[..usize::try_from(length).map_or(CHUNK, |length| length.min(CHUNK))];
            self.fill(chunk);
            to.write_all(chunk)?;
            digest.update(chunk);
            length -= chunk.len() as u64;
        }
        Ok(digest)
    }
}

/// How many bytes there were, and which (FNV-1a, 64 bit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) length: u64,
    pub(crate) hash: u64,
}

impl Digest {
    /// Of everything that `from` still has to say.
    pub(crate) fn receive(mut from: impl Read) -> io::Result<Self> {
        let mut digest = Self::default();
        let mut buffer = vec![0; CHUNK];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(digest),
                n => digest.update(&buffer[..n]),
            }
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.length) << 64 | u128::from(self.hash)).to_le_bytes()
    }

    fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

impl Default for Digest {
    fn default() -> Self {
        Self { length: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }
}
