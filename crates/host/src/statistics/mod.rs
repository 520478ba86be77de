//! Statistics of a container or a network.

mod ledger;

use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) use ledger::Ledger;
use nsnet_stack::discard::Discard;

/// Counters of [a network](crate::Network::statistics) since it was built, or of [one
/// container](crate::Attachment::statistics) since it was attached.
///
/// A network's counters are the sums over all its containers, ended ones included, plus traffic that belongs to no
/// container. A packet from one container to another counts as read from the one and written to the other. The flow
/// counts for the container that has opened it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct Statistics {
    /// Frames read from containers.
    pub packets_from_container: u64,
    /// IP bytes read from containers.
    pub bytes_from_container: u64,
    /// Frames written to containers.
    pub packets_to_container: u64,
    /// IP bytes written to containers.
    pub bytes_to_container: u64,
    /// TCP connections of containers to the world, the host and the DNS address.
    pub tcp: FlowStatistics,
    /// UDP flows: a container address and port with one destination.
    pub udp: FlowStatistics,
    /// Echo flows (ping): a container address and identifier with one destination. Pings that the gateway answers
    /// itself do not count.
    pub echo: FlowStatistics,
    /// TCP connections and UDP clients of published ports.
    pub published: FlowStatistics,
    /// Flows between containers, of any protocol. An idle flow of UDP or echo stays active until others need its place.
    pub between_containers: FlowStatistics,
    /// ICMP errors towards containers.
    pub icmp: IcmpStatistics,
    /// Packets from containers that went no further.
    pub discarded: DiscardStatistics,
}

/// ICMP errors towards containers, from the gateway, routers and destinations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct IcmpStatistics {
    /// Errors sent.
    pub errors: u64,
    /// Errors of the gateway's own that were not sent, because it had sent a thousand within one second.
    pub suppressed: u64,
}

/// Counters of one kind of flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct FlowStatistics {
    /// Flows that the Dialer was asked about, or is about to be.
    pub opened: u64,
    /// Flows that exist now, including those still being dialled.
    pub active: u64,
    /// Flows that were refused or could not be connected.
    pub refused: u64,
    /// Flows that were dropped because a limit was reached.
    pub overflowed: u64,
}

/// Packets from containers that went no further, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(default))]
#[non_exhaustive]
pub struct DiscardStatistics {
    /// Inconsistent lengths, wrong checksums, impossible headers.
    pub malformed: u64,
    /// Fragments that did not become a packet. Pieces were missing after 30 s or contradicted each other, or too many
    /// datagrams were under way.
    pub fragments: u64,
    /// Multicast, broadcast, loopback or unspecified addresses.
    pub not_unicast: u64,
    /// A source address that is not the container's.
    pub foreign_source: u64,
    /// Transport protocols, ICMP messages and IPv6 options that are not carried.
    pub protocol: u64,
    /// ICMP errors of a container. They may end a client's attempt at a published port, and nothing else.
    pub icmp_errors: u64,
    /// Packets whose hop limit ended at the gateway.
    pub hop_limit: u64,
    /// Packets that arrived on another queue than their own, while too many were already on the way there.
    pub overrun: u64,
    /// Datagrams from the world whose sender the container has not written to, and answers from other containers to
    /// packets that were never sent.
    pub unsolicited: u64,
    /// Packets for other containers, which did not read them fast enough.
    pub congested: u64,
}

impl AddAssign for Statistics {
    fn add_assign(&mut self, other: Self) {
        self.packets_from_container += other.packets_from_container;
        self.bytes_from_container += other.bytes_from_container;
        self.packets_to_container += other.packets_to_container;
        self.bytes_to_container += other.bytes_to_container;
        self.tcp += other.tcp;
        self.udp += other.udp;
        self.echo += other.echo;
        self.published += other.published;
        self.between_containers += other.between_containers;
        self.icmp += other.icmp;
        self.discarded += other.discarded;
    }
}

impl AddAssign for FlowStatistics {
    fn add_assign(&mut self, other: Self) {
        self.opened += other.opened;
        self.active += other.active;
        self.refused += other.refused;
        self.overflowed += other.overflowed;
    }
}

impl AddAssign for IcmpStatistics {
    fn add_assign(&mut self, other: Self) {
        self.errors += other.errors;
        self.suppressed += other.suppressed;
    }
}

impl AddAssign for DiscardStatistics {
    fn add_assign(&mut self, other: Self) {
        self.malformed += other.malformed;
        self.fragments += other.fragments;
        self.not_unicast += other.not_unicast;
        self.foreign_source += other.foreign_source;
        self.protocol += other.protocol;
        self.icmp_errors += other.icmp_errors;
        self.hop_limit += other.hop_limit;
        self.overrun += other.overrun;
        self.unsolicited += other.unsolicited;
        self.congested += other.congested;
    }
}

/// The live counters behind the [`Statistics`] of one container.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) from_container: Traffic,
    pub(crate) to_container: Traffic,
    pub(crate) tcp: FlowCounters,
    pub(crate) udp: FlowCounters,
    pub(crate) between_containers: FlowCounters,
    pub(crate) echo: FlowCounters,
    pub(crate) icmp: IcmpErrors,
    pub(crate) published: FlowCounters,
    malformed: AtomicU64,
    fragments: AtomicU64,
    not_unicast: AtomicU64,
    foreign_source: AtomicU64,
    protocol: AtomicU64,
    icmp_errors: AtomicU64,
    hop_limit: AtomicU64,
    overrun: AtomicU64,
    pub(crate) unsolicited: AtomicU64,
    congested: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Traffic {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Traffic {
    pub(crate) fn add(&self, bytes: usize) {
        self.packets.fetch_add(1, Relaxed);
        self.bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Relaxed);
    }
}

#[derive(Debug, Default)]
pub(crate) struct FlowCounters {
    opened: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
    overflowed: AtomicU64,
}

impl FlowCounters {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn overflowed(&self) {
        self.overflowed.fetch_add(1, Relaxed);
    }

    fn read(&self) -> FlowStatistics {
        let closed = self.closed.load(Relaxed);
        let opened = self.opened.load(Relaxed);
        FlowStatistics {
            opened,
            active: opened.saturating_sub(closed),
            refused: self.refused.load(Relaxed),
            overflowed: self.overflowed.load(Relaxed),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct IcmpErrors {
    sent: AtomicU64,
    suppressed: AtomicU64,
}

impl IcmpErrors {
    pub(crate) fn sent(&self) {
        self.sent.fetch_add(1, Relaxed);
    }

    pub(crate) fn suppressed(&self) {
        self.suppressed.fetch_add(1, Relaxed);
    }
}

/// Counts a flow while it exists.
#[derive(Debug)]
pub(crate) struct Counted {
    counters: Arc<Counters>,
    kind: fn(&Counters) -> &FlowCounters,
}

impl Counted {
    /// A connection or client of a published port.
    pub(crate) fn published(counters: &Arc<Counters>) -> Self {
        Self::new(counters, |counters| &counters.published)
    }

    /// A flow to another container.
    pub(crate) fn between_containers(counters: &Arc<Counters>) -> Self {
        Self::new(counters, |counters| &counters.between_containers)
    }

    fn new(counters: &Arc<Counters>, kind: fn(&Counters) -> &FlowCounters) -> Self {
        kind(counters).opened();
        Self { counters: Arc::clone(counters), kind }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.kind)(&self.counters).closed();
    }
}

impl Counters {
    pub(crate) fn discarded(&self, discard: Discard) {
        let counter = match discard {
            Discard::Malformed => &self.malformed,
            // Inside a reassembled packet or behind stripped headers: no kernel sends these.
            Discard::Fragment | Discard::Extended => &self.malformed,
            Discard::NotUnicast => &self.not_unicast,
            Discard::ForeignSource => &self.foreign_source,
            Discard::Protocol => &self.protocol,
            Discard::IcmpError => &self.icmp_errors,
            Discard::HopLimit => &self.hop_limit,
            Discard::Overrun => &self.overrun,
            Discard::Unsolicited => &self.unsolicited,
            Discard::Congested => &self.congested,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts fragments that did not become a packet.
    pub(crate) fn dropped_fragments(&self, number: u64) {
        self.fragments.fetch_add(number, Relaxed);
    }

    pub(crate) fn read(&self) -> Statistics {
        Statistics {
            packets_from_container: self.from_container.packets.load(Relaxed),
            bytes_from_container: self.from_container.bytes.load(Relaxed),
            packets_to_container: self.to_container.packets.load(Relaxed),
            bytes_to_container: self.to_container.bytes.load(Relaxed),
            tcp: self.tcp.read(),
            udp: self.udp.read(),
            between_containers: self.between_containers.read(),
            echo: self.echo.read(),
            icmp: IcmpStatistics {
                errors: self.icmp.sent.load(Relaxed),
                suppressed: self.icmp.suppressed.load(Relaxed),
            },
            published: self.published.read(),
            discarded: DiscardStatistics {
                malformed: self.malformed.load(Relaxed),
                fragments: self.fragments.load(Relaxed),
                not_unicast: self.not_unicast.load(Relaxed),
                foreign_source: self.foreign_source.load(Relaxed),
                protocol: self.protocol.load(Relaxed),
                icmp_errors: self.icmp_errors.load(Relaxed),
                hop_limit: self.hop_limit.load(Relaxed),
                overrun: self.overrun.load(Relaxed),
                unsolicited: self.unsolicited.load(Relaxed),
                congested: self.congested.load(Relaxed),
            },
        }
    }
}
