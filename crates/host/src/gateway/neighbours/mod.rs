//! What one container sends to another of its network.
//!
//! ```text
//!   container A                     engine thread                       container B
//!   kernel ── tun0 ──► link A ──► Neighbours::forward ──► link B ──► tun0 ── kernel
//!                                  │ Passage: checked view, whose flow it is
//!                                  │ Flows: allowed? ── new ──► Dialer::authorize
//! ```
//!
//! Containers are isolated from each other unless
//! [`containers_reach_each_other`](crate::NetworkBuilder::containers_reach_each_other). Then the packets of one are
//! *passed on* to the other as a router does it: nothing is terminated, so that TCP is between the two kernels, and
//! whatever they agree on (segments of 64 KiB, SACK, ECN, echo, errors) works. One frame is read and one is written;
//! what a frame leaves to the device (checksums, segmentation) is left to the other container's device, or done here if
//! that has no such offload.
//!
//! # What a router does
//! The hop limit is counted down; at its end the sender is told (time exceeded). A packet for a link that is full is
//! lost, as on any busy interface: unlike the flows that end here, both ends of these retransmit like kernels. What
//! comes in fragments is put together first, so that nobody gets past the decision in pieces, and cut again.
//!
//! # What a firewall does
//! A flow is allowed before the first of its packets passes. The Dialer is asked once
//! ([`Service::Container`]); meanwhile packets are held, and what it refuses is answered as if it led
//! into the world. After that [`Flows`] knows the flow until it is idle for long, is over, or one of the containers
//! goes: whoever gets the address next is another. A policy that becomes stricter holds for new flows; those that are
//! allowed stay so. ICMP errors pass if they quote a packet of an allowed flow.
//! A sender has no address but its own, and chooses no way: IPv4 source routes (RFC 7126, 4.3 and 4.4) are discarded. A segment that neither opens a connection nor belongs to one is answered with
//! RST, echo replies and errors without a flow are dropped.
//!
//! # Who does not answer
//! To an address that no container has, nothing is passed on, and the gateway goes on as with any other: host
//! unreachable for what would open a flow, and RST for the segments of a connection whose other side has gone. An
//! unreachable host is no reason for TCP to give an established connection up (RFC 1122, 4.2.3.9), a reset is.
//!
//! # Not done
//! Protocols other than TCP, UDP and echo. IPv6 extension headers but fragments: what has them is unreachable. Broadcast
//! and multicast.

mod decide;

use std::cell::RefCell;
use std::rc::Rc;

use nsnet_proto::vnet::{self, SegmentKind, Segmentation};
use smoltcp::wire::IPV4_HEADER_LEN;

#[cfg(doc)]
use crate::Service;
use crate::context::{Context, Limits};
use crate::dialer::IcmpError;
use crate::gateway::members::Members;
use crate::link::{Link, Sent};
use crate::protocols::Protocols;
use crate::statistics::Counted;
use nsnet_stack::between::{
    Content, Flows, Form, Held, Passage, Routed, Verdict, complete, cut, write_segment,
};
use nsnet_stack::discard::Discard;
use nsnet_stack::ip::header;
use nsnet_stack::wire;

/// The traffic between the containers of one network, on the thread of their first queues.
pub(crate) struct Neighbours {
    members: Rc<Members>,
    flows: RefCell<Flows<Counted>>,
}

impl Neighbours {
    pub(crate) fn new(members: Rc<Members>, limits: &Limits) -> Rc<Self> {
        let flows = Flows::new(limits.flows_between_containers, limits.udp_idle_timeout);
        Rc::new(Self { members, flows: RefCell::new(flows) })
    }

    /// Takes a container in until what is returned is dropped.
    pub(crate) fn admit(self: &Rc<Self>, container: &Protocols) -> Stay {
        Stay { neighbours: Rc::clone(self), context: Rc::clone(&container.context) }
    }

    /// Takes in a packet of one container if it is for another. `None` means that it is somebody else's business.
    pub(crate) fn forward(
        self: &Rc<Self>,
        sender: &Rc<Protocols>,
        header: &vnet::Header,
        bytes: &[u8],
        form: Form,
    ) -> Option<Result<(), Discard>> {
        let destination =
            header::destination(bytes).filter(|address| sender.context.addressing.is_neighbour(*address))?;
        let receiver = self.members.at(destination)?;
        match Passage::parse(header, bytes, form) {
            // To be put together, or to be answered as in the world.
            Err(Discard::Fragment | Discard::Protocol) => None,
            passage => {
                Some(passage.and_then(|passage| self.handle(sender, &receiver.context, &passage, form)))
            }
        }
    }

    fn handle(
        self: &Rc<Self>,
        sender: &Rc<Protocols>,
        receiver: &Context,
        passage: &Passage<'_>,
        form: Form,
    ) -> Result<(), Discard> {
        if sender.context.addressing.subnet_of_container(passage.ends.source.ip()).is_none() {
            return Err(Discard::ForeignSource);
        }
        if header::is_source_routed(passage.packet.bytes) {
            return Err(Discard::Protocol);
        }
        if header::hop_limit(passage.packet.bytes) <= 1 {
            // No error about an error (RFC 1122, 3.2.2).
            if !matches!(passage.content, Content::Error(_)) {
                sender.context.report(
                    passage.ends.from_container(),
                    IcmpError::TimeExceeded,
                    passage.packet.bytes,
                );
            }
            return Err(Discard::HopLimit);
        }
        let (tuple, from, signal) = passage.flow();
        if let Content::Error(_) = passage.content {
            let is_answer = self.flows.borrow().is_allowed(sender.context.clock.now(), &tuple);
            return if is_answer { pass_on(receiver, passage, form) } else { Err(Discard::Unsolicited) };
        }
        let verdict = self.flows.borrow_mut().judge(sender.context.clock.now(), &tuple, from, signal);
        match verdict {
            Verdict::Pass => pass_on(receiver, passage, form),
            Verdict::Wait => {
                self.hold(passage, form);
                Ok(())
            }
            Verdict::Drop => Err(Discard::Unsolicited),
            Verdict::Unknown => self.begin(sender, passage, form),
        }
    }

    fn hold(&self, passage: &Passage<'_>, form: Form) {
        let Routed { bytes, header, .. } = passage.packet;
        let (tuple, ..) = passage.flow();
        self.flows.borrow_mut().hold(&tuple, Held { header, packet: bytes.into(), form });
    }
}

/// A container is among its neighbours until this is dropped.
pub(crate) struct Stay {
    neighbours: Rc<Neighbours>,
    context: Rc<Context>,
}

impl Drop for Stay {
    fn drop(&mut self) {
        for subnet in self.context.addressing.subnets() {
            self.neighbours.flows.borrow_mut().forget(subnet.container);
        }
    }
}

/// Writes a packet to the container it is for.
fn pass_on(receiver: &Context, passage: &Passage<'_>, form: Form) -> Result<(), Discard> {
    let (link, routed) = (&receiver.link, &passage.packet);
    let (offload, bytes) = (link.device().offload, routed.bytes);
    if form == Form::Reassembled && bytes.len() > link.device().mtu.into() {
        return pass_on_again(link, passage);
    }
    let is_cut_there = |kind| match kind {
        SegmentKind::TcpV4 => offload.tso4,
        SegmentKind::TcpV6 => offload.tso6,
        SegmentKind::Udp => offload.uso,
        SegmentKind::Fragments => false,
    };
    match routed.header.segmentation {
        Some(segmentation) if !is_cut_there(segmentation.kind) => {
            pass_on_segments(receiver, routed, segmentation)
        }
        Some(_) | None if offload.checksum || routed.header == vnet::Header::default() => {
            pass_on_as_it_is(link, routed)
        }
        Some(_) | None => {
            let fill = |buffer: &mut [u8]| {
                buffer.copy_from_slice(bytes);
                header::count_hop(buffer);
                complete(buffer, routed.header.checksum);
            };
            taken(link.send_with(vnet::Header::default(), bytes.len(), fill).0)
        }
    }
}

/// Writes a packet from where it lies: all of it but the hop limit stays what it is.
fn pass_on_as_it_is(link: &Link, routed: &Routed<'_>) -> Result<(), Discard> {
    let (start, rest) = routed.bytes.split_first_chunk::<IPV4_HEADER_LEN>().ok_or(Discard::Malformed)?;
    let mut start = *start;
    header::count_hop(&mut start);
    if link.pass_on(routed.header, &start, rest) { Ok(()) } else { Err(Discard::Congested) }
}

/// Writes a super-frame to a device that cannot cut it.
fn pass_on_segments(
    receiver: &Context,
    routed: &Routed<'_>,
    segmentation: Segmentation,
) -> Result<(), Discard> {
    let pieces = cut(routed, segmentation).ok_or(Discard::Malformed)?;
    for payload in pieces {
        let length = usize::from(segmentation.header_len) + payload.len();
        let fill = |buffer: &mut [u8]| {
            write_segment(routed, segmentation, payload, buffer);
            header::count_hop(buffer);
        };
        taken(receiver.link.send_with(vnet::Header::default(), length, fill).0)?;
    }
    Ok(())
}

/// Writes a packet that exceeds the MTU and has come in fragments: a datagram whole if the device takes it, the rest in
/// fragments again.
fn pass_on_again(link: &Link, passage: &Passage<'_>) -> Result<(), Discard> {
    let Routed { bytes, ip_header_len, .. } = passage.packet;
    let (source, destination) = (passage.ends.source.ip(), passage.ends.destination.ip());
    let mut packet = bytes.to_vec();
    header::count_hop(&mut packet);
    if matches!(passage.content, Content::Udp) && link.device().offload.checksum {
        return taken(link.send_uncut(source, destination, packet, ip_header_len));
    }
    if ip_header_len != wire::ip_header_len(source) {
        return Err(Discard::Protocol);
    }
    taken(link.send_in_fragments(source, packet))
}

fn taken(sent: Sent) -> Result<(), Discard> {
    match sent {
        Sent::Done => Ok(()),
        Sent::Held(_) => Err(Discard::Congested),
    }
}
