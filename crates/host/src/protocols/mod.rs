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
    /// Whether the container's end of the link is gone, or its network ends.
    is_leaving: Cell<bool>,
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
            is_leaving: Cell::new(false),
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
    pub(crate) async fn orphan(&self) {
        self.is_leaving.set(true);
        self.tcp.orphan().await;
    }

    /// Whether the container is on its way out. At most data that it had finished sending is still being delivered.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
    }

    /// Ends everything in pieces, and resets connections on both sides.
    pub(crate) async fn end(&self) {
        self.is_leaving.set(true);
        self.tcp.end().await;
        let clearing = self.context.commons.clearing();
        while clearing.piece(|| self.clients.forget_some()).await {}
        // Each task takes its own entry out of its table.
        self.context.tasks.end(clearing).await;
    }

    /// Ends everything at once, for want of time.
    pub(crate) fn close(&self) {
        self.tcp.close();
        self.udp.close();
        self.echo.close();
        self.clients.close();
        self.context.tasks.abort_all();
        self.context.link.finish();
    }
}
