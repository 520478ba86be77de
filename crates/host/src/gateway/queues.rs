//! Cooperation of the gateways of one container whose TUN device has several queues.
//!
//! # The queue of a packet
//!
//! The kernel chooses it (`tun_automq_select_queue`, drivers/net/tun.c). It uses an entry for the flow's hash, which
//! holds the queue on which a packet of the flow was last written. It forgets the entry after three seconds of silence,
//! and then uses the hash itself. The hash is the same for both directions of a flow and lasts as long as the system is
//! up.
//!
//! **TCP** is served on the queue where it arrives. The gateway that gets the SYN answers on the same queue, so the
//! entry agrees with the hash. The flow stays there as long as the number of queues does, which changes only with the
//! end of the container. Only a few events could still move a flow:
//!
//! - An answer to a datagram, or to another flow, has the same 32-bit hash.
//! - A segment comes in fragments.
//! - The container meddles with its device.
//!
//! So a segment that looks like a stray goes *round* all queues once before RST answers it. The gateway that knows its
//! flow keeps it.
//!
//! **Everything else** belongs to the first queue, and so do packets to another container, TCP included. A container's
//! port must have one upstream port for all destinations (RFC 4787, 4.1), and the fragments of a packet must meet. The
//! hash spreads both. So the other gateways pass such packets on. Only one-way traffic stays on their queues: once the
//! first gateway answers, a flow arrives there.
//!
//! Packets travel between gateways in bounded channels. One that finds its channel full is lost and counted.
//!
//! # Ending
//!
//! All queues end together. When one link is gone, the others follow ([`Siblings::link_is_gone`]) after a while, in
//! which they may still bring packets that a shuttle drains. Everything is *delivered* when it is on every queue. Each
//! gateway but the first reports this to the first, in the channel of its packets, and waits to be ended. So the first
//! has their packets by then as well. The links close only after that, because one that closed earlier would move its
//! flows to the others.

use std::cell::{Cell, RefCell};
use std::future;
use std::sync::Arc;
use std::time::Duration;

use nsnet_proto::vnet;
use nsnet_stack::ip::header;
use tokio::sync::{mpsc, watch};

/// The most packets on the way to one gateway.
const CAPACITY: usize = 256;

/// The first queue, to which everything but TCP belongs.
const FIRST: usize = 0;

/// How long a link may outlast another. It is more than the second that a shuttle takes to drain a queue.
const PATIENCE: Duration = Duration::from_secs(2);

/// One gateway's channels to those of the other queues.
pub(crate) struct Siblings {
    index: usize,
    all: Arc<[mpsc::Sender<SiblingMessage>]>,
    gone: watch::Sender<bool>,
    /// How many others have not delivered everything yet. Only the first gateway counts.
    undelivered: Cell<usize>,
    has_reported: Cell<bool>,
    inbox: RefCell<Option<mpsc::Receiver<SiblingMessage>>>,
}

/// A message from another gateway.
pub(crate) enum SiblingMessage {
    Packet(Passed),
    /// Everything is delivered on one queue.
    Delivered,
}

/// A packet that has arrived on another queue.
pub(crate) struct Passed {
    pub(crate) header: vnet::Header,
    pub(crate) packet: Box<[u8]>,
    /// The queue where it arrived.
    origin: usize,
}

/// The channel was full.
#[derive(Debug)]
pub(crate) struct Lost;

impl Siblings {
    /// The channels for this many queues, the first queue first.
    pub(crate) fn new(queues: usize) -> Vec<Self> {
        let (senders, inboxes): (Vec<_>, Vec<_>) = (0..queues).map(|_| mpsc::channel(CAPACITY)).unzip();
        let all: Arc<[_]> = senders.into();
        let (gone, _) = watch::channel(false);
        let sibling = |(index, inbox)| Self {
            index,
            all: Arc::clone(&all),
            gone: gone.clone(),
            undelivered: Cell::new(queues - 1),
            has_reported: Cell::new(false),
            inbox: RefCell::new(Some(inbox)),
        };
        inboxes.into_iter().enumerate().map(sibling).collect()
    }

    /// The receiver of messages from the others. It can be taken once.
    pub(crate) fn take_inbox(&self) -> Option<mpsc::Receiver<SiblingMessage>> {
        self.inbox.take()
    }

    /// Whether a packet that has arrived here belongs to the first queue.
    pub(crate) fn is_misplaced(&self, packet: &[u8]) -> bool {
        self.index != FIRST && !header::is_whole_segment(packet)
    }

    /// Whether this is the first queue.
    pub(crate) fn is_first(&self) -> bool {
        self.index == FIRST
    }

    /// Passes a packet to the first queue.
    pub(crate) fn pass_to_first(&self, header: vnet::Header, packet: &[u8]) -> Result<(), Lost> {
        self.pass(FIRST, Passed { header, packet: packet.into(), origin: self.index })
    }

    /// Asks the others for the flow of a segment, which must be complete and checked.
    pub(crate) fn send_round(&self, packet: &[u8]) -> Result<(), Lost> {
        let header = vnet::Header { checksum: vnet::Checksum::Verified, segmentation: None };
        self.pass_on(Passed { header, packet: packet.into(), origin: self.index })
    }

    /// Passes a segment whose flow is not here to the next queue.
    pub(crate) fn pass_on(&self, passed: Passed) -> Result<(), Lost> {
        self.pass((self.index + 1) % self.all.len(), passed)
    }

    /// Whether a segment that was sent round is back.
    pub(crate) fn is_back(&self, passed: &Passed) -> bool {
        passed.origin == self.index
    }

    fn pass(&self, to: usize, passed: Passed) -> Result<(), Lost> {
        self.all[to].try_send(SiblingMessage::Packet(passed)).map_err(|_| Lost)
    }

    /// Tells the others that the link of this one is gone.
    pub(crate) fn announce_gone(&self) {
        self.gone.send_replace(true);
    }

    /// Waits until another queue's link has been gone for so long that this one need not wait any more.
    pub(crate) async fn link_is_gone(&self) {
        // Cannot fail, because `self` owns a sender.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
        tokio::time::sleep(PATIENCE).await;
    }

    /// Records that another gateway has delivered everything.
    pub(crate) fn note_delivered(&self) {
        self.undelivered.set(self.undelivered.get().saturating_sub(1));
    }

    /// Whether this gateway need not wait for others.
    pub(crate) fn are_delivered(&self) -> bool {
        self.index != FIRST || self.undelivered.get() == 0
    }

    /// Whether this gateway, behind the first, has reported that everything is delivered here.
    pub(crate) fn has_reported(&self) -> bool {
        self.has_reported.get()
    }

    /// Reports that everything is delivered here. Returns for the first only, because the others wait to be ended.
    pub(crate) async fn report_delivered(&self) {
        if self.index == FIRST {
            return;
        }
        if !self.has_reported.get() {
            // Fails only if the first has ended, and then this one ends too.
            let _ = self.all[FIRST].send(SiblingMessage::Delivered).await;
            // Not earlier, because the caller may drop this future and begin anew.
            self.has_reported.set(true);
        }
        future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: vnet::Header = vnet::Header { checksum: vnet::Checksum::Complete, segmentation: None };

    fn v4(fragment: u16, protocol: u8) -> [u8; 20] {
        let mut packet = [0; 20];
        (packet[0], packet[9]) = (0x45, protocol);
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet
    }

    fn v6(next_header: u8) -> [u8; 40] {
        let mut packet = [0; 40];
        (packet[0], packet[6]) = (0x60, next_header);
        packet
    }

    #[test]
    fn whole_segments_stay_and_the_rest_belongs_to_the_first() {
        let siblings = Siblings::new(2);
        let [first, second] = &siblings[..] else { panic!("two") };
        // Don't Fragment does not make a packet a fragment.
        for stays in [&v4(0, 6)[..], &v4(0x4000, 6), &v6(6)] {
            assert!(!second.is_misplaced(stays));
        }
        for goes in [&v4(0, 17)[..], &v4(0, 1), &v4(0x2000, 6), &v4(1, 6), &v6(17), &v6(44), &[], &[0x45; 9]]
        {
            assert!(second.is_misplaced(goes), "{goes:?}");
            assert!(!first.is_misplaced(goes));
        }
    }

    #[test]
    fn a_segment_goes_round_once() {
        let siblings = Siblings::new(3);
        siblings[1].send_round(b"segment").unwrap();
        for at in [2, 0, 1] {
            let sibling = &siblings[at];
            let mut inbox = sibling.inbox.borrow_mut();
            let inbox = inbox.as_mut().unwrap();
            let Ok(SiblingMessage::Packet(passed)) = inbox.try_recv() else { panic!("not at {at}") };
            assert_eq!(&*passed.packet, b"segment");
            assert_eq!(sibling.is_back(&passed), at == 1);
            if at != 1 {
                sibling.pass_on(passed).unwrap();
            }
        }
    }

    #[test]
    fn packets_beyond_the_capacity_are_lost() {
        let siblings = Siblings::new(2);
        let second = &siblings[1];
        for _ in 0..CAPACITY {
            second.pass_to_first(HEADER, &[0x45]).unwrap();
        }
        second.pass_to_first(HEADER, &[0x45]).unwrap_err();
    }

    #[tokio::test]
    async fn the_first_has_delivered_when_all_have() {
        let siblings = Siblings::new(3);
        let first = &siblings[FIRST];
        let mut inbox = first.take_inbox().unwrap();
        assert!(!first.are_delivered());
        for (index, reports) in [(1, 1), (1, 0), (2, 1)] {
            let reporting = siblings[index].report_delivered();
            tokio::time::timeout(Duration::from_millis(10), reporting)
                .await
                .expect_err("it waits for its end");
            for _ in 0..reports {
                assert!(matches!(inbox.try_recv(), Ok(SiblingMessage::Delivered)));
                first.note_delivered();
            }
            assert!(inbox.try_recv().is_err(), "reported once");
        }
        assert!(first.are_delivered());
        first.report_delivered().await;
    }
}
