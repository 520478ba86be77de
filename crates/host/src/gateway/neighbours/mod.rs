//! Packets from one container to another of its network.
//!
//! ```text
//!   container A                     engine thread                       container B
//!   kernel ── tun0 ──► link A ──► Neighbours::forward ──► link B ──► tun0 ── kernel
//!                                  │ Passage: checked view, whose flow it is
//!                                  │ Flows: allowed? ── new ──► Dialer::authorize
//! ```
//!
//! Containers are isolated from each other unless
//! [`containers_reach_each_other`](crate::NetworkBuilder::containers_reach_each_other). Then the gateway *passes
//! packets on* like a router. Nothing is terminated: TCP runs between the two kernels, with all that they agree on
//! (segments of 64 KiB, SACK, ECN, echo, errors). One frame is read and one is written. Checksums and segmentation that
//! a frame leaves to the device are left to the other container's device. If that lacks the offload, they are done
//! here.
//!
//! # As a router
//! The hop limit is counted down. When it ends, the sender gets "time exceeded". A packet for a full link is lost, as
//! on any busy interface, because both ends of these flows retransmit like kernels. Fragments are reassembled first, so
//! that nothing bypasses the decision in pieces, and the packet is fragmented again.
//!
//! # As a firewall
//! A flow must be allowed before its first packet passes. The Dialer is asked once ([`Service::Container`]). Packets
//! are held meanwhile. A refusal is answered as for a destination in the world. [`Flows`] then knows the flow until it
//! is idle for long or is over. It also forgets the flow when one of the containers goes, because another container may
//! get the address next. A stricter policy holds for new flows only.
//!
//! ICMP errors pass if they quote a packet of an allowed flow. A sender may use only its own address, and IPv4 source
//! routes (RFC 7126, 4.3 and 4.4) are discarded. A segment that neither opens a connection nor belongs to one is
//! answered with RST. Echo replies and errors without a flow are dropped.
//!
//! # Unused addresses
//! Nothing is passed on to an address that no container has. The gateway sends "host unreachable" for a packet that
//! would open a flow, and RST for segments of a connection whose other side has gone. For TCP, an unreachable host is
//! no reason to give an established connection up (RFC 1122, 4.2.3.9), but a reset is.
//!
//! # Not done
//! Protocols other than TCP, UDP and echo. IPv6 extension headers other than fragments: packets with them are answered
//! as unreachable. Broadcast and multicast.

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

/// Flows that are forgotten before other tasks get their turn. To forget one takes about 0.5 µs.
const AT_ONCE: usize = 256;

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

    /// Admits a container until the returned value is dropped.
    pub(crate) fn admit(self: &Rc<Self>, container: &Protocols) -> Stay {
        Stay { neighbours: Rc::clone(self), context: Rc::clone(&container.context) }
    }

    /// Passes a packet of one container on if it is for another. `None` means that it is not.
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
            // To be reassembled, or to be answered like a packet to the world.
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

/// The container is among its neighbours until this is dropped.
pub(crate) struct Stay {
    neighbours: Rc<Neighbours>,
    context: Rc<Context>,
}

impl Stay {
    /// Forgets the container's flows, in pieces.
    pub(crate) async fn end(&self) {
        let clearing = self.context.commons.clearing();
        while clearing.piece(|| self.forget_some()).await {}
    }

    /// Returns whether there were flows to forget.
    fn forget_some(&self) -> bool {
        let mut flows = self.neighbours.flows.borrow_mut();
        self.context.addressing.subnets().any(|subnet| flows.forget_some(subnet.container, AT_ONCE))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        while self.forget_some() {}
    }
}

/// Writes a packet to its receiver.
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

/// Writes a packet from where it lies. Only the hop limit changes.
fn pass_on_as_it_is(link: &Link, routed: &Routed<'_>) -> Result<(), Discard> {
    let (start, rest) = routed.bytes.split_first_chunk::<IPV4_HEADER_LEN>().ok_or(Discard::Malformed)?;
    let mut start = *start;
    header::count_hop(&mut start);
    if link.pass_on(routed.header, &start, rest) { Ok(()) } else { Err(Discard::Congested) }
}

/// Writes a super-frame to a device that cannot segment it.
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

/// Writes a packet that exceeds the MTU and has come in fragments. A datagram goes whole if the device takes it.
/// Anything else goes in fragments again.
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
