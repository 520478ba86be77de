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

/// How long a client is remembered to which the container has never answered, as by a stateful firewall
/// (`nf_conntrack_udp_timeout`): they cost nothing to forge.
const UNANSWERED: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    pub(super) key: Cell<FlowKey>,
    /// The way by which it has that, the best one being 0.
    pub(super) way: Cell<usize>,
    pub(super) address: SocketAddr,
    pub(super) local: Cell<Local>,
    pub(super) port: Weak<PublishedPort>,
    pub(super) permission: RefCell<Permission>,
    pub(super) used: Cell<Instant>,
    pub(super) is_answered: Cell<bool>,
    /// Whether it has written again after an answer, and so is more than a passer-by.
    pub(super) is_confirmed: Cell<bool>,
    pub(super) _counted: Counted,
}

pub(super) enum Permission {
    /// The Dialer is deciding.
    Asking(HeldDatagrams),
    /// With what it has written first, as long as the container may refuse it.
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

    /// Sends the container what was held back. With a full link it is lost.
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
