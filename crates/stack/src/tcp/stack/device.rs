//! The device that smoltcp sees, and the sink of the packets that it sends.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

/// The sink of a stack's packets.
pub trait Transmit {
    /// Whether there is room for a packet, so that [`transmit`](Self::transmit) may be called.
    fn is_ready(&self) -> bool;

    /// Sends a packet of `length` bytes, which `fill` writes. It is called only when [ready](Self::is_ready).
    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R;
}

/// The packets that the link carries, as far as TCP is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Largest packet in bytes: the MTU, or with segmentation offload the longest IP packet.
    pub max_packet: usize,
    /// Whether the kernel cuts segments that exceed the container's MSS. The [`Transmit`] must know that size, from the
    /// container's SYN: smoltcp 0.14 passes it down for IPv4 only.
    pub segmentation: bool,
    /// Whether this process computes the TCP checksum.
    pub checksum: bool,
}

/// The device during one call into smoltcp: at most one packet in, any number out.
pub(super) struct CallDevice<'a, T> {
    pub(super) capabilities: Capabilities,
    pub(super) received: Option<&'a [u8]>,
    pub(super) out: Option<&'a mut T>,
}

impl<T: Transmit> Device for CallDevice<'_, T> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b, T>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_, T>)> {
        let packet = self.received.take()?;
        Some((Incoming(packet), Outgoing(self.out.as_deref_mut())))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_, T>> {
        let out = self.out.as_deref_mut().filter(|out| out.is_ready())?;
        Some(Outgoing(Some(out)))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // The packet parser has verified the checksums of received packets.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = if self.capabilities.checksum { Checksum::Tx } else { Checksum::None };
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.capabilities.max_packet;
        capabilities.checksum = checksum;
        if self.capabilities.segmentation {
            let largest = NonZeroUsize::new(self.capabilities.max_packet);
            capabilities.segmentation.tcpv4 = largest;
            capabilities.segmentation.tcpv6 = largest;
        }
        capabilities
    }
}

pub(super) struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Outgoing<'a, T>(Option<&'a mut T>);

impl<T: Transmit> TxToken for Outgoing<'_, T> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        match self.0 {
            Some(out) if out.is_ready() => out.transmit(length, f),
            // An immediate answer (challenge ACK, RST) that finds the link full is lost, as on any network.
            Some(_) | None => f(&mut vec![0; length]),
        }
    }
}

/// A sink that is never ready, for the creation of an interface.
pub(super) struct Nowhere;

impl Transmit for Nowhere {
    fn is_ready(&self) -> bool {
        false
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        fill(&mut vec![0; length])
    }
}
