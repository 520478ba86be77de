//! A new destination: asks the Dialer, opens the socket, and sends the datagrams that waited.

use std::rc::Rc;

use nsnet_stack::flow::FlowKey;

use super::held::{HeldDatagrams, Letter};
use super::mapping::{Mapping, Peer};
use super::table::Table;
use crate::descriptors::Permit;
use crate::dialer::{Datagrams, DialError, Flow, Service};

/// A peer about which the Dialer is being asked. It is forgotten if this is dropped without an answer.
pub(super) struct Undecided {
    table: Rc<Table>,
    mapping: Rc<Mapping>,
    key: FlowKey,
    is_decided: bool,
}

impl Undecided {
    pub(super) fn new(table: Rc<Table>, mapping: Rc<Mapping>, key: FlowKey) -> Self {
        table.deciding.set(table.deciding.get() + 1);
        Self { table, mapping, key, is_decided: false }
    }

    /// Asks the Dialer about the flow and acts on its answer. `permit` is for the socket of the mapping, unless it has
    /// one.
    pub(super) async fn decide(mut self, flow: Flow, permit: Option<Permit>) {
        let mapping = &self.mapping;
        let asking = self.table.context.questions.ask(|dialer| async {
            dialer.authorize(&flow).await?;
            if flow.service != Service::Resolver {
                mapping.open(dialer, permit).await?;
            }
            Ok(())
        });
        let answer = asking.await;
        if !self.table.is_current(&self.mapping) {
            self.is_decided = true;
            return;
        }
        match answer {
            Ok(()) => self.allow(&flow),
            Err(error) => {
                tracing::debug!(%flow, %error, "refused");
                self.refuse(&error);
            }
        }
    }

    fn allow(&mut self, flow: &Flow) {
        self.is_decided = true;
        let context = &self.table.context;
        let is_resolver = flow.service == Service::Resolver;
        let peer = if is_resolver {
            Peer::Resolver
        } else {
            Peer::Allowed { target: flow.target, used: context.clock.now() }
        };
        for Letter { envelope, payload } in self.mapping.answer(self.key.peer, Some(peer)).letters() {
            if is_resolver {
                self.table.resolve(self.key, payload.clone());
            } else {
                self.mapping.send(context, flow.target, envelope, Datagrams::one(payload));
            }
        }
    }

    fn refuse(&mut self, error: &DialError) {
        let (context, kind) = (&self.table.context, self.mapping.kind());
        self.table.flows().refused();
        context.warn_of(error, self.key.peer);
        let held = self.forget();
        let Some(reason) = error.unreachable() else { return };
        for Letter { payload, .. } in held.letters().iter().take(kind.errors_at_once()) {
            let quoted = kind.quote(self.key.container, self.key.peer, payload);
            self.table.context.report(self.key, reason.into(), &quoted);
        }
    }

    /// Forgets the peer and returns the datagrams that waited for the decision.
    fn forget(&mut self) -> HeldDatagrams {
        self.is_decided = true;
        self.table.peers_gone(1);
        self.mapping.answer(self.key.peer, None)
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        if !self.is_decided && self.table.is_current(&self.mapping) {
            self.forget();
        }
        self.table.deciding.set(self.table.deciding.get() - 1);
        self.table.context.progress.notify_one();
    }
}
