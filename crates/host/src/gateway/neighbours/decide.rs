//! Asks the Dialer about new flows between containers.

use std::net::IpAddr;
use std::rc::Rc;

use super::{Neighbours, pass_on};
use crate::dialer::{DialError, Flow, Protocol, Service};
use crate::protocols::Protocols;
use crate::statistics::Counted;
use nsnet_stack::between::{Content, Form, Passage};
use nsnet_stack::between::{Held, Signal, Tuple};
use nsnet_stack::discard::Discard;
use nsnet_stack::tcp;

impl Neighbours {
    /// Handles a packet whose flow is not known.
    pub(super) fn begin(
        self: &Rc<Self>,
        sender: &Rc<Protocols>,
        passage: &Passage<'_>,
        form: Form,
    ) -> Result<(), Discard> {
        let (tuple, opener, signal) = passage.flow();
        let protocol = match passage.content {
            Content::Tcp(_) if signal == Signal::Open => Protocol::Tcp,
            Content::Tcp(segment) => {
                sender.tcp.answer_stray(passage.ends.from_container(), &segment);
                return Ok(());
            }
            Content::Udp => Protocol::Udp,
            Content::EchoRequest => Protocol::Icmp,
            Content::EchoReply | Content::Error(_) => return Err(Discard::Unsolicited),
        };
        let (source, destination) = (passage.ends.source, passage.ends.destination);
        let counted = || Counted::between_containers(&sender.context.counters);
        let now = sender.context.clock.now();
        let begun = self.flows.borrow_mut().begin(now, tuple, opener, source.ip(), counted);
        let Some(id) = begun else {
            sender.context.counters.between_containers.overflowed();
            return Ok(());
        };
        self.hold(passage, form);
        let flow = Flow { protocol, source, destination, target: destination, service: Service::Container };
        let asked = Asked { neighbours: Rc::clone(self), sender: Rc::clone(sender), tuple, id };
        sender.context.tasks.spawn(async move { asked.decide(&flow).await });
        Ok(())
    }
}

/// A flow that the Dialer is being asked about. It is forgotten if this is dropped without an answer, as when the
/// Dialer panics.
struct Asked {
    neighbours: Rc<Neighbours>,
    sender: Rc<Protocols>,
    tuple: Tuple,
    id: u64,
}

impl Asked {
    async fn decide(self, flow: &Flow) {
        match self.sender.context.questions.ask(|dialer| dialer.authorize(flow)).await {
            Ok(()) => self.allow(flow.destination.ip()),
            Err(error) => {
                tracing::debug!(%flow, %error, "refused");
                self.refuse(&error);
            }
        }
    }

    fn allow(&self, destination: IpAddr) {
        let held =
            self.neighbours.flows.borrow_mut().allow(self.sender.context.clock.now(), &self.tuple, self.id);
        let Some(receiver) = self.neighbours.members.at(destination) else { return };
        for Held { header, packet, form } in held {
            let passed = Passage::parse(&header, &packet, form)
                .and_then(|passage| pass_on(&receiver.context, &passage, form));
            if let Err(discard) = passed {
                self.sender.context.counters.discarded(discard);
            }
        }
    }

    /// Answers the first packet of the flow as for a destination in the world.
    fn refuse(&self, error: &DialError) {
        self.sender.context.counters.between_containers.refused();
        let held = self.neighbours.flows.borrow_mut().withdraw(&self.tuple, self.id);
        let Some(Held { header, packet, form }) = held.first() else { return };
        let Ok(passage) = Passage::parse(header, packet, *form) else { return };
        match (passage.content, error) {
            (Content::Tcp(syn), DialError::Refused) => {
                self.sender.context.send(&tcp::reset_for(passage.ends.from_container(), &syn))
            }
            _ => self.sender.context.send_unreachable(passage.ends.from_container(), error, packet),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.neighbours.flows.borrow_mut().withdraw(&self.tuple, self.id);
    }
}
