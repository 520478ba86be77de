//! What all networks of one engine thread use in turn.
//!
//! Only one of them runs at a time, so that buffers which are filled and emptied between two awaits need not exist
//! for each. Nothing in here is borrowed across an await.

mod inbox;
mod sockets;

use std::cell::{RefCell, RefMut};

pub(crate) use inbox::{Inbox, Origin, Undelivered};
pub(crate) use sockets::{RingSocket, Sockets};

use crate::addressing::local::LocalRoutes;
use nsnet_proto::vnet;
use nsnet_stack::frame::MAX_PACKET;

/// Room for the largest frame.
pub(crate) const MAX_FRAME: usize = vnet::HEADER_LEN + MAX_PACKET;

pub(crate) struct Commons {
    received: RefCell<Box<[u8]>>,
    outgoing: RefCell<Box<[u8]>>,
    inbox: RefCell<Inbox>,
    burst: RefCell<Vec<u8>>,
    sockets: Sockets,
    routes: RefCell<LocalRoutes>,
}

impl Commons {
    /// For a thread in the network namespace that `routes` is of.
    pub(crate) fn new(routes: LocalRoutes) -> Self {
        let buffer = |length| RefCell::new(vec![0; length].into_boxed_slice());
        Self {
            received: buffer(MAX_FRAME),
            outgoing: buffer(MAX_FRAME),
            inbox: RefCell::new(Inbox::new()),
            burst: RefCell::new(Vec::with_capacity(MAX_PACKET)),
            sockets: Sockets::default(),
            routes: RefCell::new(routes),
        }
    }

    /// For a thread that asks no kernel.
    #[cfg(test)]
    pub(crate) fn of_no_host() -> std::rc::Rc<Self> {
        std::rc::Rc::new(Self::new(LocalRoutes::of_no_host()))
    }

    /// Where a frame from a container lands.
    pub(crate) fn received(&self) -> RefMut<'_, Box<[u8]>> {
        self.received.borrow_mut()
    }

    /// Where a frame for a container is put together.
    pub(crate) fn outgoing(&self) -> RefMut<'_, Box<[u8]>> {
        self.outgoing.borrow_mut()
    }

    /// Where datagrams from the world land.
    pub(crate) fn inbox(&self) -> RefMut<'_, Inbox> {
        self.inbox.borrow_mut()
    }

    /// Where datagrams of a container wait for the end of the batch they are read in.
    pub(crate) fn burst(&self) -> RefMut<'_, Vec<u8>> {
        self.burst.borrow_mut()
    }

    /// Sockets of connections that have ended, for those to come.
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// The kernel's routing decisions.
    pub(crate) fn routes(&self) -> RefMut<'_, LocalRoutes> {
        self.routes.borrow_mut()
    }
}
