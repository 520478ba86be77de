//! The flows that are allowed between containers.
//!
//! A flow begins when a packet [opens](Flows::begin) it, and the Dialer is asked. Meanwhile its packets are
//! [held](Flows::hold). Then it is [allowed](Flows::allow) or [withdrawn](Flows::withdraw). Once allowed, it passes
//! packets in both directions until it is forgotten:
//!
//! | protocol | opened by | forgotten after |
//! |---|---|---|
//! | TCP | SYN | 2 h 4 min of silence once the other end has answered; 4 min before that, and after RST or two FINs (RFC 5382, 5) |
//! | UDP | any datagram | the network's idle timeout, by default 180 s (RFC 4787, 4.3) |
//! | echo | a request | 60 s (RFC 5508, 3.2) |
//!
//! There is no timer, so an idle network is not woken. That a flow was silent for too long is noticed when a packet of
//! it comes, or when the table is tidied, which is due whenever the table has doubled.
//!
//! The number of flows that a container may have opened is limited. When it opens one more, a sixteenth of them is
//! forgotten: those that have been silent for longest. Established TCP connections are never forgotten that way. If
//! nothing else is left, the new flow is refused, and for a second no search is made again: a search goes through all
//! flows of the address, and the container decides how often.

mod progress;
mod tuple;

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nsnet_proto::vnet;

use progress::Progress;
pub use progress::Signal;
pub use tuple::{End, Tuple};

use super::passage::Form;
use crate::flow::Protocol;

/// Most packets held for one flow, and most bytes held for all flows that one container address has opened.
const HELD: usize = 64;
const HELD_BYTES: usize = 1 << 20;

/// A table with fewer flows is not tidied.
const FEW: usize = 256;

/// How long the result of a search that found no flow to forget stays good.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// The decision on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet goes on.
    Pass,
    /// The Dialer is being asked; [`Flows::hold`] keeps the packet.
    Wait,
    /// The packet does not fit its flow and is dropped.
    Drop,
    /// There is no such flow; [`Flows::begin`] begins one.
    Unknown,
}

/// A packet that waits for the Dialer's decision.
#[derive(Debug)]
pub struct Held {
    /// The virtio-net header of its frame.
    pub header: vnet::Header,
    /// The IP packet.
    pub packet: Box<[u8]>,
    /// Whether it was reassembled.
    pub form: Form,
}

/// The table of flows between the containers of one network. A guard of type `G` lives as long as each flow is active.
///
/// # Examples
/// ```
/// use std::time::{Duration, Instant};
///
/// use nsnet_stack::between::{Flows, Signal, Tuple, Verdict};
/// use nsnet_stack::flow::{Endpoints, Protocol};
///
/// let [source, destination] = ["10.0.2.100:4000", "10.0.2.101:53"].map(|end| end.parse().unwrap());
/// let (tuple, opener) = Tuple::of_ports(Protocol::Udp, Endpoints { source, destination });
/// let (answer, responder) =
///     Tuple::of_ports(Protocol::Udp, Endpoints { source: destination, destination: source });
/// assert_eq!(answer, tuple);
///
/// let (mut flows, now) = (Flows::new(1000, Duration::from_secs(180)), Instant::now());
/// assert_eq!(flows.judge(now, &tuple, opener, Signal::Other), Verdict::Unknown);
/// let id = flows.begin(now, tuple, opener, source.ip(), || ()).unwrap();
/// assert_eq!(flows.judge(now, &tuple, opener, Signal::Other), Verdict::Wait);
/// flows.allow(now, &tuple, id);
/// assert_eq!(flows.judge(now, &answer, responder, Signal::Other), Verdict::Pass);
/// ```
#[derive(Debug)]
pub struct Flows<G> {
    flows: HashMap<Tuple, Flow<G>>,
    /// The flows by the address of either end, and by their number.
    by_address: BTreeMap<(IpAddr, u64), Tuple>,
    /// By the address that opened the flows.
    usage: HashMap<IpAddr, Usage>,
    /// Most flows that one address may have opened.
    most: usize,
    udp_idle: Duration,
    begun: u64,
    /// The table is tidied when it has this many flows.
    tidy_at: usize,
}

/// One flow.
#[derive(Debug)]
struct Flow<G> {
    /// Tells this use of the tuple from earlier and later ones.
    id: u64,
    opener: End,
    opened_by: IpAddr,
    /// When a packet last passed.
    used: Instant,
    state: State,
    /// `None` once the connection is over.
    guard: Option<G>,
}

#[derive(Debug)]
enum State {
    /// The Dialer is being asked.
    Asking(Vec<Held>),
    Allowed(Progress),
}

/// The part of the table that one address takes.
#[derive(Debug, Default)]
struct Usage {
    flows: usize,
    held_bytes: usize,
    /// When a search found nothing to forget.
    searched: Option<Instant>,
}

impl<G> Flows<G> {
    /// An empty table, in which one address may open `most` flows, and UDP flows are forgotten after `udp_idle` of
    /// silence.
    #[must_use]
    pub fn new(most: usize, udp_idle: Duration) -> Self {
        let (flows, by_address, usage) = (HashMap::new(), BTreeMap::new(), HashMap::new());
        Self { flows, by_address, usage, most, udp_idle, begun: 0, tidy_at: FEW }
    }

    /// Decides on a packet that the end `from` of a flow has sent.
    pub fn judge(&mut self, now: Instant, tuple: &Tuple, from: End, signal: Signal) -> Verdict {
        let Some(flow) = self.flows.get_mut(tuple) else { return Verdict::Unknown };
        let is_opener = from == flow.opener;
        let progress = match &mut flow.state {
            State::Asking(_) if !is_opener => return Verdict::Drop,
            State::Asking(_) if signal == Signal::Reset => {
                self.remove(tuple);
                return Verdict::Drop;
            }
            State::Asking(_) => return Verdict::Wait,
            State::Allowed(progress) => progress,
        };
        if flow.used + progress.lifetime(tuple.protocol, self.udp_idle) <= now
            || (signal == Signal::Open && progress.is_over)
        {
            self.remove(tuple);
            return Verdict::Unknown;
        }
        // The permission is for one direction: otherwise a listener at the opener's port could be reached without
        // asking.
        if signal == Signal::Open && !is_opener {
            return Verdict::Drop;
        }
        flow.used = now;
        progress.advance(is_opener, signal);
        if progress.is_over {
            flow.guard = None;
        }
        Verdict::Pass
    }

    /// Whether a flow is allowed, for packets that only refer to it.
    #[must_use]
    pub fn is_allowed(&self, now: Instant, tuple: &Tuple) -> bool {
        self.flows.get(tuple).is_some_and(|flow| match flow.state {
            State::Asking(_) => false,
            State::Allowed(progress) => flow.used + progress.lifetime(tuple.protocol, self.udp_idle) > now,
        })
    }

    /// Begins a flow that the Dialer is being asked about. Returns a number that tells it from others of the same
    /// tuple, or `None` if `opened_by`, the address of its opener, has too many flows. What `guard` makes is dropped
    /// when the flow ends.
    pub fn begin(
        &mut self,
        now: Instant,
        tuple: Tuple,
        opener: End,
        opened_by: IpAddr,
        guard: impl FnOnce() -> G,
    ) -> Option<u64> {
        if self.flows.len() >= self.tidy_at {
            self.tidy(now);
        }
        if self.usage.get(&opened_by).is_some_and(|usage| usage.flows >= self.most)
            && !self.make_room(now, opened_by)
        {
            return None;
        }
        let id = self.begun;
        self.begun += 1;
        self.by_address.extend(tuple.addresses().map(|address| ((address, id), tuple)));
        let state = State::Asking(Vec::new());
        self.flows.insert(tuple, Flow { id, opener, opened_by, used: now, state, guard: Some(guard()) });
        self.usage.entry(opened_by).or_default().flows += 1;
        Some(id)
    }

    /// Keeps a packet of a flow that the Dialer is being asked about, if there is room. For TCP that is only the last
    /// SYN.
    pub fn hold(&mut self, tuple: &Tuple, packet: Held) {
        let Some(flow) = self.flows.get_mut(tuple) else { return };
        let (State::Asking(held), Some(usage)) = (&mut flow.state, self.usage.get_mut(&flow.opened_by))
        else {
            return;
        };
        if tuple.protocol == Protocol::Tcp {
            usage.held_bytes -= bytes_of(held);
            held.clear();
        }
        if held.len() < HELD && usage.held_bytes + packet.packet.len() <= HELD_BYTES {
            usage.held_bytes += packet.packet.len();
            held.push(packet);
        }
    }

    /// Allows a flow, and returns its packets that were held.
    pub fn allow(&mut self, now: Instant, tuple: &Tuple, id: u64) -> Vec<Held> {
        let Some(flow) = self.flows.get_mut(tuple).filter(|flow| flow.id == id) else {
            return Vec::new();
        };
        flow.used = now;
        match mem::replace(&mut flow.state, State::Allowed(Progress::default())) {
            State::Asking(held) => {
                if let Some(usage) = self.usage.get_mut(&flow.opened_by) {
                    usage.held_bytes -= bytes_of(&held);
                }
                held
            }
            State::Allowed(_) => Vec::new(),
        }
    }

    /// Forgets a flow that the Dialer has not allowed, and returns its packets that were held.
    pub fn withdraw(&mut self, tuple: &Tuple, id: u64) -> Vec<Held> {
        let is_asking = |flow: &Flow<G>| flow.id == id && matches!(flow.state, State::Asking(_));
        match self.flows.get(tuple).is_some_and(is_asking).then(|| self.remove(tuple)).flatten() {
            Some(State::Asking(held)) => held,
            Some(State::Allowed(_)) | None => Vec::new(),
        }
    }

    /// Forgets some flows of an address, `most` of them, so that its next owner inherits none. Returns whether there
    /// were any.
    pub fn forget_some(&mut self, address: IpAddr, most: usize) -> bool {
        let some: Vec<Tuple> = self.of(address).take(most).collect();
        for tuple in &some {
            self.remove(tuple);
        }
        !some.is_empty()
    }

    /// The flows of which one end has this address.
    fn of(&self, address: IpAddr) -> impl Iterator<Item = Tuple> {
        self.by_address.range((address, 0)..=(address, u64::MAX)).map(|(_, tuple)| *tuple)
    }

    /// Forgets the flows that were silent for too long.
    fn tidy(&mut self, now: Instant) {
        let is_over = |(tuple, flow): &(&Tuple, &Flow<G>)| match flow.state {
            State::Asking(_) => false,
            State::Allowed(progress) => flow.used + progress.lifetime(tuple.protocol, self.udp_idle) <= now,
        };
        let over: Vec<Tuple> = self.flows.iter().filter(is_over).map(|(tuple, _)| *tuple).collect();
        for tuple in over {
            self.remove(&tuple);
        }
        self.tidy_at = FEW.max(2 * self.flows.len());
    }

    /// Forgets some of the flows that an address has opened. Returns whether it forgot any.
    fn make_room(&mut self, now: Instant, opened_by: IpAddr) -> bool {
        let searched = self.usage.get(&opened_by).and_then(|usage| usage.searched);
        if searched.is_some_and(|last| now.saturating_duration_since(last) < SEARCH_INTERVAL) {
            return false;
        }
        let may_go = |tuple: &Tuple, flow: &Flow<G>| match flow.state {
            State::Asking(_) => false,
            State::Allowed(progress) => {
                flow.opened_by == opened_by && (tuple.protocol != Protocol::Tcp || !progress.is_established())
            }
        };
        let mut idle: Vec<(Instant, Tuple)> = self
            .of(opened_by)
            .filter_map(|tuple| self.flows.get(&tuple).map(|flow| (tuple, flow)))
            .filter(|(tuple, flow)| may_go(tuple, flow))
            .map(|(tuple, flow)| (flow.used, tuple))
            .collect();
        idle.sort_unstable_by_key(|(used, _)| *used);
        idle.truncate((self.most / 16).max(1));
        for (_, tuple) in &idle {
            self.remove(tuple);
        }
        if let Some(usage) = self.usage.get_mut(&opened_by).filter(|_| idle.is_empty()) {
            usage.searched = Some(now);
        }
        !idle.is_empty()
    }

    fn remove(&mut self, tuple: &Tuple) -> Option<State> {
        let flow = self.flows.remove(tuple)?;
        for address in tuple.addresses() {
            self.by_address.remove(&(address, flow.id));
        }
        if let Some(usage) = self.usage.get_mut(&flow.opened_by) {
            usage.flows -= 1;
            if let State::Asking(held) = &flow.state {
                usage.held_bytes -= bytes_of(held);
            }
            if usage.flows == 0 {
                self.usage.remove(&flow.opened_by);
            }
        }
        Some(flow.state)
    }
}

fn bytes_of(held: &[Held]) -> usize {
    held.iter().map(|held| held.packet.len()).sum()
}

#[cfg(test)]
mod tests;
