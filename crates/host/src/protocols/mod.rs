//! The protocols of one container, or of one queue of it.

pub(crate) mod clients;
pub(crate) mod tcp;
pub(crate) mod udp;

use std::cell::Cell;
use std::rc::Rc;

use clients::Clients;

use crate::context::Context;
use crate::dns::NameServer;

pub(crate) struct Protocols {
    pub(crate) context: Rc<Context>,
    pub(crate) tcp: Rc<tcp::Table>,
    pub(crate) udp: Rc<udp::Table>,
    pub(crate) echo: Rc<udp::Table>,
    /// The clients of published UDP ports.
    pub(crate) clients: Rc<Clients>,
    /// Whether the container's end of the link is gone.
    is_orphaned: Cell<bool>,
}

impl Protocols {
    pub(crate) fn new(context: Rc<Context>, name_server: NameServer) -> Rc<Self> {
        let name_server = Rc::new(name_server);
        let datagrams = |kind| udp::Table::new(kind, Rc::clone(&context), Rc::clone(&name_server));
        Rc::new(Self {
            tcp: tcp::Table::new(Rc::clone(&context), Rc::clone(&name_server)),
            udp: datagrams(udp::Kind::Udp),
            echo: datagrams(udp::Kind::Echo),
            clients: Clients::new(Rc::clone(&context)),
            context,
            is_orphaned: Cell::new(false),
        })
    }

    /// Sends the datagrams that wait for the end of a batch.
    pub(crate) fn flush(&self) {
        self.udp.flush();
        self.clients.flush();
    }

    /// Whether the upstream sockets have everything that the container has sent so far.
    pub(crate) fn are_delivered(&self) -> bool {
        self.tcp.is_delivered() && self.udp.is_settled() && self.echo.is_settled()
    }

    /// Breaks off everything that the container has not finished, because its end of the link is gone.
    pub(crate) fn orphan(&self) {
        self.is_orphaned.set(true);
        self.tcp.orphan();
    }

    /// Whether the container's end of the link is gone. Only data it had finished sending is still being delivered.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.is_orphaned.get()
    }

    /// Ends everything, and resets connections on both sides.
    pub(crate) fn close(&self) {
        self.tcp.close();
        self.udp.close();
        self.echo.close();
        self.clients.close();
        self.context.tasks.abort_all();
        self.context.link.finish();
    }
}
