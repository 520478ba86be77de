//! One client of a published UDP port.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Weak;
use std::time::{Duration, Instant};

use super::port::PublishedPort;
use super::socket::Local;
use crate::dialer::Datagrams;
use crate::link::{Link, Sent};
use crate::protocols::udp::{HeldDatagrams, Letter};
use crate::statistics::Counted;
use nsnet_stack::flow::FlowKey;

/// How long a client is remembered that the container has never answered, as by a stateful firewall
/// (`nf_conntrack_udp_timeout`). Such clients cost nothing to forge.
const UNANSWERED: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    pub(super) key: Cell<FlowKey>,
    /// The number of the way by which it has that. The best one is 0.
    pub(super) way: Cell<usize>,
    pub(super) address: SocketAddr,
    pub(super) local: Cell<Local>,
    pub(super) port: Weak<PublishedPort>,
    pub(super) permission: RefCell<Permission>,
    pub(super) used: Cell<Instant>,
    pub(super) is_answered: Cell<bool>,
    /// Whether it has written again after an answer. Such a client need not make room for others.
    pub(super) is_confirmed: Cell<bool>,
    pub(super) _counted: Counted,
}

pub(super) enum Permission {
    /// The Dialer is deciding.
    Asking(HeldDatagrams),
    /// With its first datagrams, as long as the container may refuse them.
    Allowed(Option<HeldDatagrams>),
}

impl Client {
    pub(crate) fn key(&self) -> FlowKey {
        self.key.get()
    }

    /// Whether its port is still published.
    pub(super) fn has_port(&self) -> bool {
        self.port.strong_count() > 0
    }

    pub(super) fn is_asked_about(&self) -> bool {
        matches!(*self.permission.borrow(), Permission::Asking(_))
    }

    /// Sends the held datagrams to the container. They are lost if the link is full.
    pub(super) fn send(&self, link: &Link, held: &HeldDatagrams) {
        let key = self.key();
        for Letter { payload, .. } in held.letters() {
            let (Sent::Done | Sent::Held(_)) =
                link.send_datagrams(key.peer, key.container, Datagrams::one(payload));
        }
    }

    pub(super) fn deadline(&self, idle: Duration) -> Instant {
        let patience = if self.is_answered.get() { idle } else { idle.min(UNANSWERED) };
        self.used.get() + patience
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(port) = self.port.upgrade() {
            port.clients.set(port.clients.get() - 1);
        }
    }
}
