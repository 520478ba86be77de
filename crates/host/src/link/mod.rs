//! Frames in and out of one TUN device that was handed over, or of one socketpair whose other end shuttles.
//!
//! Both are a file descriptor that reads and writes whole frames, so the rest of the engine does not know which one it
//! has. Sending never waits. A frame that the link cannot take comes back to the caller. The caller holds exactly that
//! one frame and produces nothing until [`Link::writable`]. Nothing is queued here. A datagram that exceeds the MTU
//! counts as one frame, and comes back as its remaining fragments.

mod descriptor;
#[cfg(test)]
pub(crate) mod memory;
mod passing;

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use nsnet_proto::{Carriage, vnet};
use nsnet_stack::frame::{Device, Plan};
use nsnet_stack::udp::packet::ChecksumMode;
use nsnet_stack::udp::{self, Datagrams};

use descriptor::Descriptor;

use crate::statistics::Counters;
use crate::sys::Entrusted;
use crate::threads::commons::Commons;
use nsnet_stack::fragments::{self, Fragments};

/// The kind of a link, and the abilities of its far end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinkProperties {
    pub(crate) carriage: Carriage,
    pub(crate) device: Device,
    /// Whether frames on the file descriptor start with a virtio-net header.
    pub(crate) framing: Framing,
    /// Whether the device knows `RWF_NOWAIT`; see [`sys::read_nowait`](crate::sys::read_nowait).
    pub(crate) nowait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A virtio-net header precedes every packet.
    Header,
    /// A plain TUN device, with packets only.
    Plain,
}

/// A file descriptor to make a link of, on any thread.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    /// A non-blocking TUN device or socketpair end.
    pub(crate) fd: Entrusted,
    pub(crate) properties: LinkProperties,
}

pub(crate) struct Link {
    io: Io,
    properties: LinkProperties,
    counters: Arc<Counters>,
    commons: Rc<Commons>,
    /// Identification of the next datagram that is sent in fragments.
    identification: Cell<u32>,
}

/// Where the frames travel.
enum Io {
    Descriptor(Descriptor),
    #[cfg(test)]
    Memory(memory::FarEnd),
}

/// The fate of a frame.
#[derive(Debug)]
#[must_use]
pub(crate) enum Sent {
    /// The far end has it, or is gone, so that the frame no longer matters.
    Done,
    /// The link is full and returns the frame.
    Held(HeldFrame),
}

/// A frame that waits for the link to become writable.
#[derive(Debug)]
pub(crate) struct HeldFrame(HeldContent);

#[derive(Debug)]
enum HeldContent {
    Frame(Box<[u8]>),
    /// The remaining fragments of a datagram that exceeds the MTU.
    Fragments(Fragments),
}

impl Link {
    /// Takes a link end over. Must be called within the runtime of the engine thread that `commons` belongs to.
    pub(crate) fn new(port: LinkEnd, counters: Arc<Counters>, commons: Rc<Commons>) -> io::Result<Self> {
        let LinkEnd { fd, properties } = port;
        let io = Io::Descriptor(Descriptor::new(fd, properties.carriage, properties.nowait)?);
        Ok(Self { io, properties, counters, commons, identification: Cell::new(random()) })
    }

    /// A link in memory, and its far end.
    #[cfg(test)]
    pub(crate) fn in_memory(
        device: Device,
        counters: Arc<Counters>,
        commons: Rc<Commons>,
    ) -> (Self, memory::FarEnd) {
        let far = memory::FarEnd::default();
        let properties =
            LinkProperties { carriage: Carriage::Shuttled, device, framing: Framing::Header, nowait: false };
        let io = Io::Memory(far.clone());
        (Self { io, properties, counters, commons, identification: Cell::new(1) }, far)
    }

    /// The abilities of the container's device.
    pub(crate) fn device(&self) -> Device {
        self.properties.device
    }

    /// Waits until there is a frame to read or the far end is gone.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match &self.io {
            Io::Descriptor(descriptor) => descriptor.readable().await,
            #[cfg(test)]
            Io::Memory(far) => {
                far.readable().await;
                Ok(())
            }
        }
    }

    /// Waits until a frame can be sent.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match &self.io {
            Io::Descriptor(descriptor) => descriptor.writable().await,
            #[cfg(test)]
            Io::Memory(far) => {
                far.writable().await;
                Ok(())
            }
        }
    }

    /// Reads one frame into `buffer` without waiting.
    ///
    /// `Ok(None)` means that the far end is gone.
    pub(crate) fn try_receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        let length = match &self.io {
            Io::Descriptor(descriptor) => descriptor.try_read(buffer),
            #[cfg(test)]
            Io::Memory(far) => far.try_read(buffer),
        };
        Ok(length?.map(|length| &buffer[..length]))
    }

    /// Splits a received frame into its header and its packet.
    pub(crate) fn split<'f>(&self, frame: &'f [u8]) -> Result<(vnet::Header, &'f [u8]), vnet::HeaderError> {
        self.counters.from_container.add(frame.len().saturating_sub(self.header_len()));
        match self.properties.framing {
            Framing::Header => vnet::Header::split(frame),
            Framing::Plain => Ok((vnet::Header::default(), frame)),
        }
    }

    /// Sends a packet of `length` bytes that `fill` writes.
    pub(crate) fn send_with<R>(
        &self,
        header: vnet::Header,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> (Sent, R) {
        let mut scratch = self.commons.outgoing();
        let (head, packet) = scratch.split_at_mut(vnet::HEADER_LEN);
        head.copy_from_slice(&header.to_bytes());
        let result = fill(&mut packet[..length]);
        let start = vnet::HEADER_LEN - self.header_len();
        (self.write(&scratch[start..vnet::HEADER_LEN + length]), result)
    }

    /// Sends a complete packet.
    pub(crate) fn send(&self, packet: &[u8]) -> Sent {
        self.send_with(vnet::Header::default(), packet.len(), |buffer| buffer.copy_from_slice(packet)).0
    }

    /// Splits datagrams into groups that fit one frame each.
    pub(crate) fn frames<'d>(
        &self,
        source: SocketAddr,
        datagrams: Datagrams<'d>,
    ) -> impl Iterator<Item = Datagrams<'d>> {
        let in_one = self.properties.device.takes_at_once(source, datagrams);
        let whole = in_one.then_some(datagrams);
        let single = (!in_one).then(|| datagrams.iter().map(Datagrams::one));
        whole.into_iter().chain(single.into_iter().flatten())
    }

    /// Sends one of the groups from [`frames`](Self::frames). A datagram that no IP packet can carry is lost.
    pub(crate) fn send_datagrams(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        datagrams: Datagrams<'_>,
    ) -> Sent {
        let payload = datagrams.bytes();
        let length = udp::packet::length(source, payload.len());
        let plan = self.properties.device.plan(source, datagrams);
        match plan {
            Plan::Frame { header, checksum } => {
                let fill = |buffer: &mut [u8]| {
                    udp::packet::write(buffer, source, destination, payload, checksum);
                    if plan.may_be_cut() {
                        fragments::permit(buffer, self.next_identification());
                    }
                };
                self.send_with(header, length, fill).0
            }
            Plan::Fragments => self.send_cut(source.ip(), length, |buffer| {
                udp::packet::write(buffer, source, destination, payload, ChecksumMode::Full);
            }),
            Plan::Nothing => Sent::Done,
        }
    }

    /// Sends a packet of `length` bytes that `fill` writes, with all its checksums. It goes in fragments if it exceeds
    /// the MTU. `address` is one of its addresses.
    pub(crate) fn send_cut(&self, address: IpAddr, length: usize, fill: impl FnOnce(&mut [u8])) -> Sent {
        if length <= self.properties.device.mtu.into() {
            return self.send_with(vnet::Header::default(), length, fill).0;
        }
        let mut packet = vec![0; length];
        fill(&mut packet);
        self.send_in_fragments(address, packet)
    }

    /// Sends a packet that exceeds the MTU, without IP options or extension headers and with complete checksums.
    pub(crate) fn send_in_fragments(&self, source: IpAddr, packet: Vec<u8>) -> Sent {
        let size = fragments::size(source, self.properties.device.mtu);
        self.send_fragments(Fragments::new(packet, size, self.next_identification()))
    }

    fn next_identification(&self) -> u32 {
        let identification = self.identification.get();
        self.identification.set(identification.wrapping_add(1));
        identification
    }

    /// Sends a frame that was held back.
    pub(crate) fn resend(&self, frame: HeldFrame) -> Sent {
        match frame.0 {
            HeldContent::Frame(frame) if self.is_taken(&frame) => Sent::Done,
            HeldContent::Frame(frame) => Sent::Held(HeldFrame(HeldContent::Frame(frame))),
            HeldContent::Fragments(fragments) => self.send_fragments(fragments),
        }
    }

    /// Ends the link so that its far end still gets the frames that were sent.
    pub(crate) fn finish(&self) {
        match &self.io {
            Io::Descriptor(descriptor) => descriptor.finish(),
            #[cfg(test)]
            Io::Memory(_) => {}
        }
    }

    /// Bytes in front of the packet in a frame of this link.
    fn header_len(&self) -> usize {
        match self.properties.framing {
            Framing::Header => vnet::HEADER_LEN,
            Framing::Plain => 0,
        }
    }

    fn send_fragments(&self, mut fragments: Fragments) -> Sent {
        while let Some(length) = fragments.next_len() {
            let fill = |buffer: &mut [u8]| fragments.write_next(buffer);
            if let (Sent::Held(_), ()) = self.send_with(vnet::Header::default(), length, fill) {
                return Sent::Held(HeldFrame(HeldContent::Fragments(fragments)));
            }
            fragments.advance();
        }
        Sent::Done
    }

    fn write(&self, frame: &[u8]) -> Sent {
        if self.is_taken(frame) {
            Sent::Done
        } else {
            Sent::Held(HeldFrame(HeldContent::Frame(frame.into())))
        }
    }

    fn is_taken(&self, frame: &[u8]) -> bool {
        let written = match &self.io {
            Io::Descriptor(descriptor) => descriptor.try_write(frame),
            #[cfg(test)]
            Io::Memory(far) => far.try_write_parts(&[io::IoSlice::new(frame)]),
        };
        self.settle(&written, frame.len() - self.header_len())
    }
}

/// An unpredictable number (RFC 7739, 5.2) without a crate for it: the kernel seeds the standard library's hash.
fn random() -> u32 {
    let [a, b, c, d, ..] = RandomState::new().hash_one(()).to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests;
