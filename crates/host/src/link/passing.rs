//! What goes out as it has come in from another container.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{self, MsgFlags};
use nix::sys::uio;
use nsnet_proto::{Carriage, vnet};
use tokio::io::Interest;

use super::{Framing, Link, Sent};
use crate::sys;

impl Link {
    /// Sends a packet whose start was changed from where it lies: `start`, then `rest`. Returns whether the link had room
    /// for it; nothing is kept of it.
    pub(crate) fn pass_on(&self, header: vnet::Header, start: &[u8], rest: &[u8]) -> bool {
        let header = header.to_bytes();
        let parts = [IoSlice::new(&header), IoSlice::new(start), IoSlice::new(rest)];
        let parts = match self.properties.framing {
            Framing::Header => &parts[..],
            Framing::Plain => &parts[1..],
        };
        self.settle(self.try_write_parts(parts), start.len() + rest.len())
    }

    /// Whether nothing is left to do for a packet of so many bytes after this attempt to write it.
    pub(super) fn settle(&self, written: io::Result<()>, length: usize) -> bool {
        match written {
            Ok(()) => {
                self.counters.to_container.add(length);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            // A device that is gone is the end of the link, of which the reader may have missed the event; one that
            // is down loses packets like any other.
            Err(error) => {
                if error.raw_os_error() == Some(libc::EBADFD) {
                    self.gone.notify_one();
                }
                true
            }
        }
    }

    fn try_write_parts(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, |fd| {
            match self.properties.carriage {
                Carriage::HandedOver if self.properties.nowait => sys::write_parts_nowait(fd, parts)?,
                Carriage::HandedOver => uio::writev(fd.as_fd(), parts)?,
                Carriage::Shuttled => {
                    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                    socket::sendmsg::<()>(fd.as_raw_fd(), parts, &[], flags, None)?
                }
            };
            Ok(())
        })
    }

    /// Sends a UDP packet that exceeds the MTU to a far end that completes checksums, and cuts if need be.
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
