//! Asks the Dialer about a new client.

use std::rc::Rc;

use super::Clients;
use super::client::{Client, Permission};
use crate::dialer::Inbound;

/// A client that is forgotten unless it is allowed.
pub(super) struct Undecided {
    pub(super) clients: Rc<Clients>,
    pub(super) client: Rc<Client>,
}

impl Undecided {
    /// Asks, and acts on the answer.
    pub(super) async fn decide(self, inbound: Inbound) {
        let Self { clients, client } = &self;
        let context = &clients.context;
        if let Err(error) = context.questions.ask(|dialer| dialer.accept(&inbound)).await {
            tracing::debug!(%inbound, %error, "refused");
            return context.counters.published.refused();
        }
        if !client.has_port() {
            // Withdrawn meanwhile.
            return;
        }
        let Permission::Asking(held) = client.permission.replace(Permission::Allowed(None)) else { return };
        if context.addressing.subnets().count() > 1 {
            client.permission.replace(Permission::Allowed(clients.keep(&held)));
        }
        client.send(&context.link, &held);
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        if self.client.is_asked_about() {
            self.clients.forget(&self.client);
        }
    }
}
