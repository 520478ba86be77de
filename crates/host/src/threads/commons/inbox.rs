//! Takes all waiting datagrams out of an upstream socket at once, so that datagrams that arrived together go on
//! together.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::buffer::Buffer;
use crate::addressing::Addressing;
use crate::dialer::{DatagramSocket, Datagrams, IcmpError, Received};
use nsnet_stack::udp::Run;

/// Bytes of the largest datagram, or of the largest burst that the kernel gathers (`UDP_GRO`).
const LARGEST: usize = 1 << 16;

/// Datagrams in one buffer, in runs that can travel together.
pub(crate) struct Inbox {
    buffer: Buffer,
    runs: Vec<(Origin, Run)>,
    filled: usize,
    /// Receive calls since the inbox was last cleared.
    receipts: usize,
}

/// The sender of datagrams, and the hop limit they arrived with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) source: SocketAddr,
    /// The hop limit they arrived with, if the socket reports it.
    pub(crate) hop_limit: Option<u8>,
}

impl Origin {
    pub(crate) fn seen_inside(self, addressing: &Addressing) -> Self {
        Self { source: addressing.as_seen_inside(self.source), ..self }
    }
}

/// The most receive calls before other tasks get their turn.
const BATCH: usize = 64;

/// A datagram that did not arrive.
#[derive(Debug)]
pub(crate) struct Undelivered<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) sender: Option<IpAddr>,
    pub(crate) hop_limit: Option<u8>,
    pub(crate) error: IcmpError,
    /// The start of the datagram, as far as it is known.
    pub(crate) datagram: &'a [u8],
}

impl Inbox {
    /// # Errors
    /// See [`Buffer::new`].
    pub(crate) fn new() -> nix::Result<Self> {
        // Room for one of the largest behind nearly as many bytes of others.
        let buffer = Buffer::new(2 * LARGEST)?;
        Ok(Self { buffer, runs: Vec::new(), filled: 0, receipts: 0 })
    }

    /// Clears the inbox and gives its memory back.
    pub(super) fn discard(&mut self) {
        self.clear();
        self.buffer.discard();
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.filled = 0;
        self.receipts = 0;
    }

    /// Whether nothing was received since the inbox was last cleared, not even an error.
    pub(crate) fn is_untouched(&self) -> bool {
        // The last call found nothing.
        self.receipts <= 1
    }

    /// Bytes of the received datagrams.
    pub(crate) fn bytes(&self) -> usize {
        self.filled
    }

    pub(crate) fn is_full(&self) -> bool {
        self.receipts == BATCH || self.buffer.len() - self.filled < LARGEST
    }

    /// Takes the next datagrams out of the socket. Must not be called when full.
    ///
    /// # Errors
    /// See [`DatagramSocket::try_receive`].
    pub(crate) fn receive(&mut self, socket: &dyn DatagramSocket) -> io::Result<Option<Undelivered<'_>>> {
        let space = &mut self.buffer[self.filled..];
        self.receipts += 1;
        match socket.try_receive(space)? {
            Received::Undelivered { destination, sender, hop_limit, error, length } => {
                let datagram = space.get(..length).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Some(Undelivered { destination, sender, hop_limit, error, datagram }))
            }
            Received::Datagrams { length, size, source, hop_limit } => {
                let origin = Origin { source, hop_limit };
                let received = space.get(..length).ok_or(io::ErrorKind::InvalidData)?;
                let datagrams = Datagrams::of_size(size, received);
                self.filled += length;
                let extended =
                    self.runs.last_mut().is_some_and(|(last, run)| *last == origin && run.extend(datagrams));
                if !extended {
                    self.runs.push((origin, Run::new(datagrams)));
                }
                Ok(None)
            }
        }
    }

    /// The received datagrams, with their senders.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Origin, Datagrams<'_>)> {
        let mut start = 0;
        self.runs.iter().map(move |(origin, run)| {
            let bytes = &self.buffer[start..start + run.length()];
            start += run.length();
            (*origin, run.datagrams(bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::dialer::Envelope;

    /// A sender's port, the hop limit, and the bytes.
    type Datagram = (u16, Option<u8>, Vec<u8>);

    /// A socket that holds these datagrams.
    struct Script(Mutex<VecDeque<Datagram>>);

    #[async_trait::async_trait]
    impl DatagramSocket for Script {
        async fn readable(&self) -> io::Result<()> {
            Ok(())
        }

        fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
            let next = self.0.lock().unwrap().pop_front();
            let (port, hop_limit, bytes) = next.ok_or(io::ErrorKind::WouldBlock)?;
            buffer[..bytes.len()].copy_from_slice(&bytes);
            let source = ([10, 99, 0, 2], port).into();
            Ok(Received::Datagrams { length: bytes.len(), size: bytes.len(), source, hop_limit })
        }

        fn try_send(&self, _: Datagrams<'_>, _: &Envelope) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_came_together_goes_on_together() {
        let script = [(1, "abc"), (1, "def"), (2, "ghi"), (2, ""), (2, "jkl"), (2, "m"), (2, "nop")];
        let script = script.map(|(port, text)| (port, None, text.as_bytes().to_vec())).into();
        let (socket, mut inbox) = (Script(Mutex::new(script)), Inbox::new().unwrap());
        while inbox.receive(&socket).is_ok() {}
        let runs: Vec<(u16, Vec<&[u8]>)> = inbox
            .runs()
            .map(|(origin, datagrams)| (origin.source.port(), datagrams.iter().collect()))
            .collect();
        let expected: [(u16, Vec<&[u8]>); 5] = [
            (1, vec![b"abc", b"def"]),
            (2, vec![b"ghi"]),
            (2, vec![b""]),
            (2, vec![b"jkl", b"m"]),
            (2, vec![b"nop"]),
        ];
        assert_eq!(runs, expected);
    }

    #[test]
    fn what_has_come_another_way_goes_on_by_itself() {
        let script = [Some(60), Some(60), Some(61), None].map(|hop_limit| (1, hop_limit, vec![7; 3])).into();
        let (socket, mut inbox) = (Script(Mutex::new(script)), Inbox::new().unwrap());
        while inbox.receive(&socket).is_ok() {}
        let runs: Vec<_> = inbox.runs().map(|(origin, run)| (origin.hop_limit, run.count())).collect();
        assert_eq!(runs, [(Some(60), 2), (Some(61), 1), (None, 1)]);
    }

    #[test]
    fn it_is_full_before_the_largest_would_not_fit() {
        let script = (0..9).map(|_| (1, None, vec![0; 65_507])).collect();
        let (socket, mut inbox) = (Script(Mutex::new(script)), Inbox::new().unwrap());
        while !inbox.is_full() {
            inbox.receive(&socket).unwrap();
        }
        assert_eq!(inbox.runs().count(), 2);
        inbox.clear();
        assert_eq!(inbox.runs().count(), 0);
        assert!(!inbox.is_full());
    }
}
