//! Passes packets of another container on.

use std::io::{self, IoSlice};
use std::net::IpAddr;

use nsnet_proto::vnet;

use super::{Framing, Io, Link, Sent};

impl Link {
    /// Sends a packet whose start was changed: `start`, then `rest` from where it lies. Returns whether the link had
    /// room. Keeps nothing of the packet.
    pub(crate) fn pass_on(&self, header: vnet::Header, start: &[u8], rest: &[u8]) -> bool {
        let header = header.to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(start), IoSlice::new(rest)];
        let parts = match self.properties.framing {
            Framing::Header => &parts[..],
            Framing::Plain => &parts[1..],
        };
        let written = match &self.io {
            Io::Descriptor(descriptor) => descriptor.try_write_parts(parts),
            #[cfg(test)]
            Io::Memory(far) => far.try_write_parts(parts),
        };
        self.settle(&written, start.len() + rest.len())
    }

    /// Whether a packet of this length is done with after this attempt to write it.
    pub(super) fn settle(&self, written: &io::Result<()>, length: usize) -> bool {
        match written {
            Ok(()) => {
                self.counters.to_container.add(length);
                true
            }
            // A device that is down or gone loses packets like any other.
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends a UDP packet that exceeds the MTU to a far end that completes checksums, and fragments it if need be.
    pub(crate) fn send_uncut(
        &self,
        source: IpAddr,
        destination: IpAddr,
        mut packet: Vec<u8>,
        ip_header_len: usize,
    ) -> Sent {
        let ends = (source, destination);
        let identification = self.next_identification();
        let header = self.properties.device.prepare_uncut(&mut packet, ends, ip_header_len, identification);
        let fill = |buffer: &mut [u8]| buffer.copy_from_slice(&packet);
        self.send_with(header, packet.len(), fill).0
    }
}
