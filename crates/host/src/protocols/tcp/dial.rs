//! A connection that the container opens. Its SYN is held until the dial has ended.

use std::hash::BuildHasher;
use std::rc::Rc;

use nsnet_stack::discard::Discard;
use nsnet_stack::flow::FlowKey;
use nsnet_stack::tcp::{self, Rings, Segment, TcpStack};

use super::flow::TcpFlow;
use super::relay::relay;
use super::table::{OpenedBy, Release, State, Table, TupleUse};
use crate::addressing::Destination;
use crate::descriptors::Permit;
use crate::dialer::{self, DialError, Protocol, Service, Stream};
use crate::threads::commons::RingSocket;

/// The longest packet with a SYN that is dialled for, in bytes. It has room for every existing option twice.
const MAX_SYN: usize = 256;

impl Table {
    /// Asks the Dialer about a new connection and holds its SYN.
    pub(super) fn dial(self: &Rc<Self>, key: FlowKey, syn: &Segment, packet: &[u8]) {
        let context = &self.context;
        let (target, service) = match context.destination(Protocol::Tcp, key.peer) {
            Destination::Forward { target, service } => (target, service),
            Destination::Refuse(error) => return self.refuse(key, syn, packet, &error),
            Destination::Ignore => return context.counters.discarded(Discard::NotUnicast),
        };
        // A SYN with data would be held with it. Without an answer, it comes again without data (RFC 7413, 4.1.3).
        if packet.len() > MAX_SYN || !self.has_room() {
            return context.counters.tcp.overflowed();
        }
        // The network's own resolver needs no socket.
        let permit = match (service != Service::Resolver).then(|| context.descriptors.take()) {
            Some(None) => return context.counters.tcp.overflowed(),
            permit => permit.flatten(),
        };
        let flow = dialer::Flow {
            protocol: Protocol::Tcp,
            source: key.container,
            destination: key.peer,
            target,
            service,
        };
        let id = self.next_id();
        let state = State::Dialing { syn: *syn, packet: packet.into() };
        self.tuples.borrow_mut().insert(key, TupleUse { id, task: None, state });
        context.counters.tcp.opened();
        let release = Release { table: Rc::clone(self), key, id, origin: OpenedBy::Container };
        let task = context.tasks.spawn(serve(release, permit, flow));
        if let Some(tuple) = self.tuples.borrow_mut().get_mut(&key).filter(|tuple| tuple.id == id) {
            tuple.task = Some(task);
        }
    }

    /// Takes the held SYN out after the dial has ended.
    fn take_syn(&self, key: &FlowKey, id: u64) -> Option<(Segment, Box<[u8]>)> {
        let mut tuples = self.tuples.borrow_mut();
        let tuple = tuples.get_mut(key).filter(|tuple| tuple.id == id)?;
        match &mut tuple.state {
            State::Dialing { syn, packet } => Some((*syn, std::mem::take(packet))),
            State::Open(_) => None,
        }
    }

    /// Opens the connection after a dial that succeeded. Only now does the container get its SYN-ACK.
    fn open(&self, key: FlowKey, id: u64) -> Option<Rc<TcpFlow>> {
        let (syn, packet) = self.take_syn(&key, id)?;
        let context = &self.context;
        let RingSocket { socket, pages } = match context.commons.sockets().take() {
            Ok(socket) => socket,
            Err(errno) => {
                self.refuse(key, &syn, &packet, &DialError::other(std::io::Error::from(errno)));
                return None;
            }
        };
        let now = context.clock.now();
        let stack = TcpStack::listen(
            key,
            socket,
            context.link.device().tcp_capabilities(key.peer.ip()),
            self.seeds.hash_one((key, id)),
            context.clock.smoltcp(now),
        );
        let rings = Rings::new(pages, syn.sequence + 1, Rc::clone(&self.budget));
        let flow = Rc::new(TcpFlow::new(key, &syn, stack, rings, Rc::clone(&context.commons), now));
        flow.handle_packet(&context.clock, &context.link, &syn, &packet);
        if flow.is_listening() {
            // Packets are checked before, so smoltcp must read this SYN differently.
            tracing::warn!(%key.container, %key.peer, "a SYN was refused by the TCP stack");
            context.send(&tcp::reset_for(key, &syn));
            return None;
        }
        if let Some(tuple) = self.tuples.borrow_mut().get_mut(&key) {
            tuple.state = State::Open(Rc::clone(&flow));
        }
        Some(flow)
    }

    fn refuse(&self, key: FlowKey, syn: &Segment, packet: &[u8], error: &DialError) {
        self.context.counters.tcp.refused();
        match error {
            DialError::Refused => self.context.send(&tcp::reset_for(key, syn)),
            DialError::HostUnreachable
            | DialError::NetworkUnreachable
            | DialError::Prohibited
            | DialError::TimedOut
            | DialError::Other(_) => self.context.send_unreachable(key, error, packet),
        }
    }

    /// Asks the Dialer and lets it connect.
    async fn connect_upstream(&self, flow: &dialer::Flow) -> Result<Stream, DialError> {
        self.context
            .questions
            .ask(|dialer| async move {
                dialer.authorize(flow).await?;
                if flow.service == Service::Resolver {
                    self.resolver_stream(flow)
                } else {
                    dialer.dial_tcp(flow).await
                }
            })
            .await
    }

    /// A stream to the network's own resolver. It needs no socket: its other end is served here.
    fn resolver_stream(&self, flow: &dialer::Flow) -> Result<Stream, DialError> {
        let (stream, work) = self.name_server.stream(flow.source).ok_or(DialError::Refused)?;
        self.context.tasks.spawn(work);
        Ok(Stream::new(stream))
    }
}

/// The task of a flow: dials, opens, relays. The stream is gone before the permit is.
async fn serve(release: Release, _permit: Option<Permit>, flow: dialer::Flow) {
    let Release { table, key, id, .. } = &release;
    let place = table.context.lane.place();
    match place.begin(table.connect_upstream(&flow)).await {
        Ok(stream) => {
            let turn = place.turn().await;
            let Some(open) = table.open(*key, *id) else { return };
            drop(turn);
            relay(open, &table.context, &place, stream).await;
        }
        Err(error) => {
            tracing::debug!(%flow, %error, "refused");
            if let Some((syn, packet)) = table.take_syn(key, *id) {
                table.refuse(*key, &syn, &packet, &error);
            }
        }
    }
}
