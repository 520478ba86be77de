//! smoltcp sockets with their rings, recycled: mapping fresh megabytes for every connection halves the
//! connection rate.

use std::cell::RefCell;

use smoltcp::socket::tcp;

/// Ring per direction while few connections are open. A single stream reaches its full speed with it:
/// 256 KiB cost about a fifth of it, 64 KiB half.
const LARGE_RING: usize = 1 << 20;

/// Ring per direction beyond that.
const SMALL_RING: usize = 64 << 10;

/// How many connections get large rings. With it, the rings' memory is bounded by
/// 2 × 1 MiB × 64 + 2 × 64 KiB × the flow limit, and only pages that held data are ever resident.
const LARGE_SOCKETS: usize = 64;

/// How many sockets of each size wait for reuse.
const POOL: usize = 16;

/// Hands out sockets and takes them back.
#[derive(Default)]
pub(crate) struct Sockets {
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    large: Vec<tcp::Socket<'static>>,
    small: Vec<tcp::Socket<'static>>,
    large_in_use: usize,
}

impl Sockets {
    pub(crate) fn take(&self) -> tcp::Socket<'static> {
        let mut inner = self.inner.borrow_mut();
        if inner.large_in_use < LARGE_SOCKETS {
            inner.large_in_use += 1;
            inner.large.pop().unwrap_or_else(|| socket(LARGE_RING))
        } else {
            inner.small.pop().unwrap_or_else(|| socket(SMALL_RING))
        }
    }

    /// Takes back a socket from [`take`](Self::take), in whatever state.
    pub(crate) fn give_back(&self, socket: tcp::Socket<'static>) {
        let mut inner = self.inner.borrow_mut();
        let pool = if socket.recv_capacity() == LARGE_RING {
            inner.large_in_use -= 1;
            &mut inner.large
        } else {
            &mut inner.small
        };
        if pool.len() < POOL {
            pool.push(socket);
        }
    }
}

fn socket(ring: usize) -> tcp::Socket<'static> {
    tcp::Socket::new(tcp::SocketBuffer::new(vec![0; ring]), tcp::SocketBuffer::new(vec![0; ring]))
}
