//! The buffers and sockets that all networks of one engine thread share.
//!
//! Only one of the networks runs at a time. Buffers that are filled and emptied between two awaits therefore need not
//! exist for each. Nothing in here is borrowed across an await.

mod clearing;
mod inbox;
mod sockets;

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

pub(crate) use clearing::{Clearing, PIECE};
pub(crate) use inbox::{Inbox, Origin, Undelivered};
pub(crate) use sockets::{RingSocket, Sockets};

use crate::addressing::local::LocalRoutes;
use crate::threads::turns::Turns;
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
    turns: Rc<Turns>,
    clearing: Clearing,
}

impl Commons {
    /// For a thread in the network namespace of `routes`.
    pub(crate) fn new(routes: LocalRoutes) -> Self {
        let buffer = |length| RefCell::new(vec![0; length].into_boxed_slice());
        Self {
            received: buffer(MAX_FRAME),
            outgoing: buffer(MAX_FRAME),
            inbox: RefCell::new(Inbox::new()),
            burst: RefCell::new(Vec::with_capacity(MAX_PACKET)),
            sockets: Sockets::default(),
            routes: RefCell::new(routes),
            turns: Turns::new(),
            clearing: Clearing::default(),
        }
    }

    /// For a thread that asks no kernel for routes.
    #[cfg(test)]
    pub(crate) fn of_no_host() -> std::rc::Rc<Self> {
        std::rc::Rc::new(Self::new(LocalRoutes::of_no_host()))
    }

    /// The buffer for a frame from a container.
    pub(crate) fn received(&self) -> RefMut<'_, Box<[u8]>> {
        self.received.borrow_mut()
    }

    /// The buffer in which a frame for a container is assembled.
    pub(crate) fn outgoing(&self) -> RefMut<'_, Box<[u8]>> {
        self.outgoing.borrow_mut()
    }

    /// The buffer for datagrams from the world.
    pub(crate) fn inbox(&self) -> RefMut<'_, Inbox> {
        self.inbox.borrow_mut()
    }

    /// The buffer for datagrams of a container that wait for the end of their batch.
    pub(crate) fn burst(&self) -> RefMut<'_, Vec<u8>> {
        self.burst.borrow_mut()
    }

    /// Sockets of ended connections, for new ones to use.
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.sockets
    }

    /// The order in which tasks work.
    pub(crate) fn turns(&self) -> &Rc<Turns> {
        &self.turns
    }

    /// The turns in which containers that end are cleared up.
    pub(crate) fn clearing(&self) -> &Clearing {
        &self.clearing
    }

    /// The kernel's routing decisions.
    pub(crate) fn routes(&self) -> RefMut<'_, LocalRoutes> {
        self.routes.borrow_mut()
    }
}
