//! The buffers and sockets that all networks of one engine thread share.
//!
//! Only one of the networks runs at a time. Buffers that are filled and emptied between two awaits therefore need not
//! exist for each. Nothing in here is borrowed across an await.
//!
//! While the thread is idle, the buffers take up no memory and no sockets are kept.

mod activity;
mod buffer;
mod clearing;
mod inbox;
mod sockets;

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

pub(crate) use buffer::Buffer;
pub(crate) use clearing::{Clearing, PIECE};
pub(crate) use inbox::{Inbox, Origin, Undelivered};
pub(crate) use sockets::{RingSocket, Sockets};

use activity::Activity;

use crate::addressing::local::LocalRoutes;
use crate::threads::turns::Turns;
use nsnet_proto::vnet;
use nsnet_stack::frame::MAX_PACKET;

/// Room for the largest frame.
pub(crate) const MAX_FRAME: usize = vnet::HEADER_LEN + MAX_PACKET;

pub(crate) struct Commons {
    received: RefCell<Buffer>,
    outgoing: RefCell<Buffer>,
    inbox: RefCell<Inbox>,
    burst: RefCell<Buffer>,
    sockets: Sockets,
    /// The use of all of these.
    activity: Activity,
    routes: RefCell<LocalRoutes>,
    turns: Rc<Turns>,
    clearing: Clearing,
}

impl Commons {
    /// For a thread in the network namespace of `routes`.
    ///
    /// # Errors
    /// See [`Buffer::new`].
    pub(crate) fn new(routes: LocalRoutes) -> nix::Result<Self> {
        Ok(Self {
            received: RefCell::new(Buffer::new(MAX_FRAME)?),
            outgoing: RefCell::new(Buffer::new(MAX_FRAME)?),
            inbox: RefCell::new(Inbox::new()?),
            burst: RefCell::new(Buffer::new(MAX_PACKET)?),
            sockets: Sockets::default(),
            activity: Activity::new(),
            routes: RefCell::new(routes),
            turns: Turns::new(),
            clearing: Clearing::default(),
        })
    }

    /// For a thread that asks no kernel for routes.
    #[cfg(test)]
    pub(crate) fn of_no_host() -> std::rc::Rc<Self> {
        std::rc::Rc::new(Self::new(LocalRoutes::of_no_host()).unwrap())
    }

    /// Gives memory back to the kernel each time the thread has become idle. Runs as long as the thread.
    pub(crate) async fn give_memory_back(self: Rc<Self>) {
        loop {
            self.activity.ended().await;
            for buffer in [&self.received, &self.outgoing, &self.burst] {
                buffer.borrow_mut().discard();
            }
            self.inbox.borrow_mut().discard();
            while self.clearing.piece(|| !self.sockets.take_some(PIECE).is_empty()).await {}
        }
    }

    /// The buffer for a frame from a container.
    pub(crate) fn received(&self) -> RefMut<'_, Buffer> {
        self.activity.note();
        self.received.borrow_mut()
    }

    /// The buffer in which a frame for a container is assembled.
    pub(crate) fn outgoing(&self) -> RefMut<'_, Buffer> {
        self.activity.note();
        self.outgoing.borrow_mut()
    }

    /// The buffer for datagrams from the world.
    pub(crate) fn inbox(&self) -> RefMut<'_, Inbox> {
        self.activity.note();
        self.inbox.borrow_mut()
    }

    /// The buffer for datagrams of a container that wait for the end of their batch.
    pub(crate) fn burst(&self) -> RefMut<'_, Buffer> {
        self.activity.note();
        self.burst.borrow_mut()
    }

    /// Sockets of ended connections, for new ones to use.
    pub(crate) fn sockets(&self) -> &Sockets {
        self.activity.note();
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

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_idle_thread_keeps_neither_bytes_nor_sockets() {
        let commons = Commons::of_no_host();
        let fill = || {
            commons.received().fill(7);
            commons.outgoing().fill(7);
            commons.burst().fill(7);
            let sockets: Vec<_> = (0..2 * PIECE + 1).map(|_| commons.sockets().take().unwrap()).collect();
            sockets.into_iter().for_each(|socket| commons.sockets().give_back(socket));
        };
        let is_zero = || {
            let buffers = [&commons.received, &commons.outgoing, &commons.burst];
            buffers.map(|buffer| buffer.borrow().iter().all(|byte| *byte == 0))
        };
        LocalSet::new()
            .run_until(async {
                tokio::task::spawn_local(Rc::clone(&commons).give_memory_back());
                for _ in 0..3 {
                    fill();
                    for _ in 0..10 {
                        sleep(activity::QUIET * 3 / 4).await;
                        drop(commons.outgoing());
                    }
                    assert_eq!(is_zero(), [false; 3], "the thread is busy");
                    sleep(activity::QUIET * 3).await;
                    assert_eq!(is_zero(), [true; 3]);
                    assert!(commons.sockets.take_some(1).is_empty());
                }
            })
            .await;
    }
}
