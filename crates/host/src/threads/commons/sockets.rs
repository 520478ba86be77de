//! smoltcp sockets with their rings, reused. Mapping fresh megabytes for every connection would halve the connection
//! rate.

use std::cell::RefCell;

use nsnet_stack::tcp::{BOTH_RINGS, RECEIVE_RING};
use smoltcp::socket::tcp;

use crate::sys::Pages;

/// The most sockets that wait for reuse.
const POOL: usize = 64;

/// A socket with the memory of its rings. The fields are dropped in this order, so the memory outlives the socket.
pub(crate) struct RingSocket {
    pub(crate) socket: tcp::Socket<'static>,
    pub(crate) pages: Pages,
}

impl RingSocket {
    fn new() -> nix::Result<Self> {
        let mut pages = Pages::map(BOTH_RINGS)?;
        let (receive, send) = pages.lend().split_at_mut(RECEIVE_RING);
        let socket = tcp::Socket::new(tcp::SocketBuffer::new(receive), tcp::SocketBuffer::new(send));
        Ok(Self { socket, pages })
    }
}

/// Hands out sockets and takes them back.
#[derive(Default)]
pub(crate) struct Sockets {
    pool: RefCell<Vec<RingSocket>>,
}

impl Sockets {
    /// A closed socket.
    ///
    /// # Errors
    /// `ENOMEM` if the process has no more address space or mappings (`vm.max_map_count`).
    pub(crate) fn take(&self) -> nix::Result<RingSocket> {
        self.pool.borrow_mut().pop().map_or_else(RingSocket::new, Ok)
    }

    /// Takes out some of the sockets that wait for reuse.
    pub(super) fn take_some(&self, count: usize) -> Vec<RingSocket> {
        let mut pool = self.pool.borrow_mut();
        let rest = pool.len().saturating_sub(count);
        pool.split_off(rest)
    }

    /// Takes a socket back in any state.
    pub(crate) fn give_back(&self, socket: RingSocket) {
        let mut pool = self.pool.borrow_mut();
        if pool.len() < POOL {
            pool.push(socket);
        }
    }
}
