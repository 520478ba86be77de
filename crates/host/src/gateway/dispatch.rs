//! Dispatches a packet to another container, to its protocol's table, to another queue's gateway, or drops it.

use std::rc::Rc;

use nsnet_proto::vnet;

use super::Gateway;
use crate::dialer::{IcmpError, Unreachable};
use crate::gateway::members::Isolation;
use crate::gateway::queues::{Passed, SiblingMessage, Siblings};
use nsnet_stack::between::Form;
use nsnet_stack::discard::Discard;
use nsnet_stack::flow::{Endpoints, FlowKey};
use nsnet_stack::icmp::Embedded;
use nsnet_stack::ip::extensions;
use nsnet_stack::ip::header;
use nsnet_stack::packet::{Packet, Transport};
use nsnet_stack::tcp::{Control, Segment};
use nsnet_stack::wire::protocol;

impl Gateway {
    pub(super) fn handle_frame(self: &Rc<Self>, frame: &[u8]) {
        if let Err(discard) = self.dispatch(frame) {
            self.context().counters.discarded(discard);
        }
    }

    fn dispatch(self: &Rc<Self>, frame: &[u8]) -> Result<(), Discard> {
        let (header, bytes) = self.context().link.split(frame).map_err(|_| Discard::Malformed)?;
        if let Some(siblings) = &self.siblings
            && (siblings.is_misplaced(bytes) || (!siblings.is_first() && self.is_for_neighbour(bytes)))
        {
            return siblings.pass_to_first(header, bytes).map_err(|_| Discard::Overrun);
        }
        if let Some(result) = self.forward(&header, bytes, Form::Whole) {
            return result;
        }
        self.handle_parsed(Packet::parse(&header, bytes), &header, bytes)
    }

    fn handle_parsed(
        self: &Rc<Self>,
        packet: Result<Packet<'_>, Discard>,
        header: &vnet::Header,
        bytes: &[u8],
    ) -> Result<(), Discard> {
        match packet {
            Err(Discard::Fragment) => self.reassemble(bytes),
            Err(Discard::Extended) => self.handle_extended(header, bytes),
            packet => self.handle_packet(&packet?),
        }
    }

    /// Handles a packet with extension headers as if it had none. Errors still quote the original.
    fn handle_extended(self: &Rc<Self>, header: &vnet::Header, bytes: &[u8]) -> Result<(), Discard> {
        let stripped = extensions::strip(bytes)?;
        match Packet::parse(header, &stripped) {
            Err(Discard::Fragment) => self.reassemble(&stripped),
            Ok(packet @ Packet { transport: Transport::Unknown, .. }) => {
                self.handle_packet(&Packet { bytes, ..packet })
            }
            packet => self.handle_packet(&packet?),
        }
    }

    /// Passes a packet on if it is for another container within reach.
    pub(super) fn forward(
        self: &Rc<Self>,
        header: &vnet::Header,
        bytes: &[u8],
        form: Form,
    ) -> Option<Result<(), Discard>> {
        self.neighbours.get()?.forward(&self.protocols, header, bytes, form)
    }

    /// Whether a packet's destination may be another container within reach.
    fn is_for_neighbour(&self, bytes: &[u8]) -> bool {
        self.isolation == Isolation::Open
            && header::destination(bytes)
                .is_some_and(|address| self.context().addressing.is_neighbour(address))
    }

    pub(super) fn handle_packet(self: &Rc<Self>, packet: &Packet<'_>) -> Result<(), Discard> {
        if self.context().addressing.subnet_of_container(packet.ends.source.ip()).is_none() {
            return Err(Discard::ForeignSource);
        }
        if packet.hop_limit <= 1 && !self.context().addressing.is_on_link(packet.ends.destination.ip()) {
            return self.refuse(packet, IcmpError::TimeExceeded, Discard::HopLimit);
        }
        match packet.transport {
            Transport::Tcp(segment) => self.handle_segment(packet.flow(), &segment, packet.bytes),
            Transport::Udp(datagrams) => {
                if !self.protocols.clients.answer(packet.flow(), datagrams) {
                    self.protocols.udp.handle(packet, datagrams);
                }
            }
            Transport::Echo(datagram) => self.handle_echo(packet, datagram),
            Transport::Error(message) => return Err(self.handle_error(packet, message)),
            Transport::Unknown => {
                return self.refuse(packet, Unreachable::Protocol.into(), Discard::Protocol);
            }
        }
        Ok(())
    }

    /// Reads an error of the container. Upstream sockets do not need it, because the host's kernel sends its own
    /// errors. But a client of a published port that is refused may be accepted in the other address family.
    fn handle_error(self: &Rc<Self>, packet: &Packet<'_>, message: &[u8]) -> Discard {
        let Endpoints { source, destination } = packet.ends;
        match Embedded::parse(source.ip(), destination.ip(), message, false) {
            Ok(Embedded { error, protocol, peer, container }) => {
                tracing::trace!(?error, protocol, %peer, %container, "an ICMP error of the container");
                let key = FlowKey { container, peer };
                if let IcmpError::Unreachable(_) = error {
                    match protocol {
                        protocol::TCP => self.protocols.tcp.refuse_opening(&key),
                        _ => self.protocols.clients.refuse(key),
                    }
                }
                Discard::IcmpError
            }
            Err(discard) => discard,
        }
    }

    pub(super) fn handle_message(self: &Rc<Self>, message: SiblingMessage) {
        match (message, &self.siblings) {
            (SiblingMessage::Packet(passed), Some(siblings)) => {
                if let Err(discard) = self.handle_passed(siblings, passed) {
                    self.context().counters.discarded(discard);
                }
            }
            (SiblingMessage::Delivered, Some(siblings)) => {
                siblings.note_delivered();
                self.context().progress.notify_one();
            }
            (SiblingMessage::Packet(_) | SiblingMessage::Delivered, None) => {}
        }
    }

    /// Handles a packet that has arrived on another queue.
    fn handle_passed(self: &Rc<Self>, siblings: &Siblings, passed: Passed) -> Result<(), Discard> {
        if let Some(result) = self.forward(&passed.header, &passed.packet, Form::Whole) {
            return result;
        }
        let is_here = |key: &FlowKey, segment: &Segment| {
            // A segment for a container that does not exist is not sent round to be answered with RST.
            self.protocols.tcp.knows(key)
                || (segment.control == Control::Open && self.is_for_neighbour(&passed.packet))
        };
        match Packet::parse(&passed.header, &passed.packet) {
            Ok(Packet { ends, transport: Transport::Tcp(segment), .. })
                if !is_here(&ends.from_container(), &segment) =>
            {
                if self.context().addressing.subnet_of_container(ends.source.ip()).is_none() {
                    return Err(Discard::ForeignSource);
                }
                if !siblings.is_back(&passed) {
                    return siblings.pass_on(passed).map_err(|_| Discard::Overrun);
                }
                self.protocols.tcp.answer_stray(ends.from_container(), &segment);
                Ok(())
            }
            packet => self.handle_parsed(packet, &passed.header, &passed.packet),
        }
    }

    /// Handles a segment. One whose flow is not here goes to the other queues, if there are any.
    fn handle_segment(&self, key: FlowKey, segment: &Segment, packet: &[u8]) {
        let tcp = &self.protocols.tcp;
        if tcp.handle(key, segment, packet) {
            return;
        }
        match &self.siblings {
            None => tcp.answer_stray(key, segment),
            Some(siblings) => {
                if siblings.send_round(packet).is_err() {
                    self.context().counters.discarded(Discard::Overrun);
                }
            }
        }
    }

    /// Refuses a packet that must not or cannot go on. Tells the container why, unless the packet was a broadcast.
    fn refuse(&self, packet: &Packet<'_>, error: IcmpError, discard: Discard) -> Result<(), Discard> {
        let is_error = matches!(packet.transport, Transport::Error(_));
        let is_broadcast = self.context().addressing.is_broadcast(packet.ends.destination.ip());
        // RFC 1122, 3.2.2; RFC 4443, 2.4 e.
        if !is_error && !is_broadcast {
            self.context().report(packet.flow(), error, packet.bytes);
        }
        Err(discard)
    }
}
