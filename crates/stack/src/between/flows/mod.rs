//! Which flows between containers are allowed. Pure.
//!
//! | protocol | opens | forgotten after |
//! |---|---|---|
//! | TCP | SYN | 2 h 4 min of silence once the other side has answered, 4 min before that and after RST or two FINs (RFC 5382, 5) |
//! | UDP | any datagram | the network's idle timeout, 180 s (RFC 4787, 4.3) |
//! | echo | a request | 60 s (RFC 5508, 3.2) |
//!
//! What is idle for too long is not looked for: it is noticed when a packet comes, or when the table is tidied, which
//! is due whenever it has doubled. So there is no timer, and an idle network is not woken.
//!
//! A container that has opened as many flows as it may has its own idle ones forgotten, a sixteenth at a time,
//! those that have been silent for longest first; TCP connections that are established never, so that one more flow may
//! have to be refused. Where there is nothing to forget, that is not looked for again for a second: the search goes through
//! all flows, and it is the container that decides how often.

use std::collections::HashMap;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nsnet_proto::vnet;

use super::passage::Form;
use crate::flow::Endpoints;
use crate::flow::Protocol;

/// Most flows that one container address may have opened.
const FLOWS: usize = 16_384;

/// Packets held for a flow that is being decided on, and bytes for all such flows of one container address.
const HELD: usize = 64;
const HELD_BYTES: usize = 1 << 20;

/// Entries below which tidying is not worth it.
const FEW: usize = 256;

/// How long a search for flows to forget that found none holds good.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// RFC 5382, REQ-5.
const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
const TCP_TRANSITORY: Duration = Duration::from_secs(4 * 60);

/// RFC 5508, REQ-1.
const ECHO: Duration = Duration::from_secs(60);

/// A flow, whichever of its ends speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    protocol: Protocol,
    ends: Endpoints,
}

/// One of the two ends of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    First,
    Second,
}

impl Tuple {
    /// The flow of a TCP segment or UDP datagram, and the end that has sent it.
    pub fn of_ports(protocol: Protocol, packet: Endpoints) -> (Self, End) {
        if packet.source <= packet.destination {
            (Self { protocol, ends: packet }, End::First)
        } else {
            let ends = Endpoints { source: packet.destination, destination: packet.source };
            (Self { protocol, ends }, End::Second)
        }
    }

    /// The flow of echo requests and their replies. Requests the other way are another flow.
    pub fn of_echo(requester: IpAddr, responder: IpAddr, identifier: u16) -> Self {
        let source = SocketAddr::new(requester, identifier);
        Self {
            protocol: Protocol::Icmp,
            ends: Endpoints { source, destination: SocketAddr::new(responder, 0) },
        }
    }

    /// Whether the flow ends at this address.
    fn involves(&self, address: IpAddr) -> bool {
        self.ends.source.ip() == address || self.ends.destination.ip() == address
    }
}

/// What a packet means for its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// TCP wants a connection.
    Open,
    /// TCP says that no more is to come.
    Finish,
    /// TCP breaks off.
    Reset,
    Other,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// The Dialer is being asked.
    Wait,
    /// It does not fit its flow.
    Drop,
    /// There is no such flow.
    Unknown,
}

/// A packet that waits for the Dialer's decision.
#[derive(Debug)]
pub struct Held {
    pub header: vnet::Header,
    pub packet: Box<[u8]>,
    pub form: Form,
}

pub struct Flows {
    entries: HashMap<Tuple, Entry>,
    /// By the address that has opened.
    usage: HashMap<IpAddr, Usage>,
    udp_idle: Duration,
    begun: u64,
    /// With this many entries the table is tidied.
    tidy_at: usize,
    /// Flows that have ended since they were last counted.
    ended: usize,
}

#[derive(Debug)]
struct Entry {
    /// Tells this use of the tuple from others.
    id: u64,
    opener: End,
    opened_by: IpAddr,
    used: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Asking(Vec<Held>),
    Allowed(Progress),
}

/// How far a TCP connection is; other flows stay new.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// The other side has answered.
    is_answered: bool,
    opener_finished: bool,
    other_finished: bool,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Usage {
    flows: usize,
    held_bytes: usize,
    /// When there was nothing to forget.
    searched: Option<Instant>,
}

impl Flows {
    /// None yet. UDP flows will be forgotten after `udp_idle` of silence.
    pub fn new(udp_idle: Duration) -> Self {
        let (entries, usage) = (HashMap::new(), HashMap::new());
        Self { entries, usage, udp_idle, begun: 0, tidy_at: FEW, ended: 0 }
    }

    /// What becomes of a packet that one end of a flow has sent.
    pub fn judge(&mut self, now: Instant, tuple: &Tuple, from: End, signal: Signal) -> Verdict {
        let Some(entry) = self.entries.get_mut(tuple) else { return Verdict::Unknown };
        let is_opener = from == entry.opener;
        let progress = match &mut entry.state {
            State::Asking(_) if !is_opener => return Verdict::Drop,
            State::Asking(_) if signal == Signal::Reset => {
                self.remove(tuple);
                return Verdict::Drop;
            }
            State::Asking(_) => return Verdict::Wait,
            State::Allowed(progress) => progress,
        };
        if entry.used + lifetime(tuple.protocol, *progress, self.udp_idle) <= now
            || (signal == Signal::Open && progress.is_over)
        {
            self.remove(tuple);
            return Verdict::Unknown;
        }
        // Both may not use the permission of one: a listener at the opener's port would be reached unasked.
        if signal == Signal::Open && !is_opener {
            return Verdict::Drop;
        }
        entry.used = now;
        self.ended += usize::from(progress.advance(is_opener, signal));
        Verdict::Pass
    }

    /// Whether a flow is allowed, for what refers to it.
    pub fn is_allowed(&self, now: Instant, tuple: &Tuple) -> bool {
        self.entries.get(tuple).is_some_and(|entry| match entry.state {
            State::Asking(_) => false,
            State::Allowed(progress) => entry.used + lifetime(tuple.protocol, progress, self.udp_idle) > now,
        })
    }

    /// Notes that the Dialer is asked about a new flow, and gives that a number. `None` if its opener has too many.
    pub fn begin(&mut self, now: Instant, tuple: Tuple, opener: End, opened_by: IpAddr) -> Option<u64> {
        if self.entries.len() >= self.tidy_at {
            self.tidy(now);
        }
        if self.usage.get(&opened_by).is_some_and(|usage| usage.flows >= FLOWS)
            && !self.make_room(now, opened_by)
        {
            return None;
        }
        let id = self.begun;
        self.begun += 1;
        let state = State::Asking(Vec::new());
        self.entries.insert(tuple, Entry { id, opener, opened_by, used: now, state });
        self.usage.entry(opened_by).or_default().flows += 1;
        Some(id)
    }

    /// Keeps a packet of a flow that is being decided on, if there is room. Of TCP that is the last SYN.
    pub fn hold(&mut self, tuple: &Tuple, packet: Held) {
        let Some(entry) = self.entries.get_mut(tuple) else { return };
        let (State::Asking(held), Some(usage)) = (&mut entry.state, self.usage.get_mut(&entry.opened_by))
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

    /// Allows a flow, and returns what was held of it.
    pub fn allow(&mut self, now: Instant, tuple: &Tuple, id: u64) -> Vec<Held> {
        let Some(entry) = self.entries.get_mut(tuple).filter(|entry| entry.id == id) else {
            return Vec::new();
        };
        entry.used = now;
        match mem::replace(&mut entry.state, State::Allowed(Progress::default())) {
            State::Asking(held) => {
                if let Some(usage) = self.usage.get_mut(&entry.opened_by) {
                    usage.held_bytes -= bytes_of(&held);
                }
                held
            }
            State::Allowed(_) => Vec::new(),
        }
    }

    /// Forgets a flow if the Dialer has not allowed it, and returns what was held of it.
    pub fn withdraw(&mut self, tuple: &Tuple, id: u64) -> Vec<Held> {
        let is_asking = |entry: &Entry| entry.id == id && matches!(entry.state, State::Asking(_));
        match self.entries.get(tuple).is_some_and(is_asking).then(|| self.remove(tuple)).flatten() {
            Some(State::Asking(held)) => held,
            Some(State::Allowed(_)) | None => Vec::new(),
        }
    }

    /// Forgets all flows of an address: whoever has it next inherits nothing.
    pub fn forget(&mut self, address: IpAddr) {
        self.remove_if(|tuple, _| tuple.involves(address));
    }

    /// How many flows have ended since the last call.
    pub fn take_ended(&mut self) -> usize {
        mem::take(&mut self.ended)
    }

    fn tidy(&mut self, now: Instant) {
        let udp_idle = self.udp_idle;
        self.remove_if(|tuple, entry| match entry.state {
            State::Asking(_) => false,
            State::Allowed(progress) => entry.used + lifetime(tuple.protocol, progress, udp_idle) <= now,
        });
        self.tidy_at = FEW.max(2 * self.entries.len());
    }

    /// Forgets some of the flows that an address has opened. Returns whether there were any to forget.
    fn make_room(&mut self, now: Instant, opened_by: IpAddr) -> bool {
        let searched = self.usage.get(&opened_by).and_then(|usage| usage.searched);
        if searched.is_some_and(|last| now.saturating_duration_since(last) < SEARCH_INTERVAL) {
            return false;
        }
        let may_go = |(tuple, entry): &(&Tuple, &Entry)| match entry.state {
            State::Asking(_) => false,
            State::Allowed(progress) => {
                entry.opened_by == opened_by
                    && (tuple.protocol != Protocol::Tcp || !progress.is_answered || progress.is_over)
            }
        };
        let mut idle: Vec<(Instant, Tuple)> =
            self.entries.iter().filter(may_go).map(|(tuple, entry)| (entry.used, *tuple)).collect();
        idle.sort_unstable_by_key(|(used, _)| *used);
        idle.truncate(FLOWS / 16);
        for (_, tuple) in &idle {
            self.remove(tuple);
        }
        if let Some(usage) = self.usage.get_mut(&opened_by).filter(|_| idle.is_empty()) {
            usage.searched = Some(now);
        }
        !idle.is_empty()
    }

    fn remove_if(&mut self, is_over: impl Fn(&Tuple, &Entry) -> bool) {
        let over: Vec<Tuple> = self
            .entries
            .iter()
            .filter(|(tuple, entry)| is_over(tuple, entry))
            .map(|(tuple, _)| *tuple)
            .collect();
        for tuple in over {
            self.remove(&tuple);
        }
    }

    fn remove(&mut self, tuple: &Tuple) -> Option<State> {
        let entry = self.entries.remove(tuple)?;
        let is_counted = matches!(entry.state, State::Allowed(Progress { is_over: true, .. }));
        self.ended += usize::from(!is_counted);
        if let Some(usage) = self.usage.get_mut(&entry.opened_by) {
            usage.flows -= 1;
            if let State::Asking(held) = &entry.state {
                usage.held_bytes -= bytes_of(held);
            }
            if usage.flows == 0 {
                self.usage.remove(&entry.opened_by);
            }
        }
        Some(entry.state)
    }
}

impl Progress {
    /// Takes note of a packet. Returns whether it ends the connection.
    fn advance(&mut self, is_opener: bool, signal: Signal) -> bool {
        self.is_answered |= !is_opener;
        match signal {
            Signal::Finish if is_opener => self.opener_finished = true,
            Signal::Finish => self.other_finished = true,
            Signal::Open | Signal::Reset | Signal::Other => {}
        }
        let is_over = signal == Signal::Reset || (self.opener_finished && self.other_finished);
        is_over && !mem::replace(&mut self.is_over, true)
    }
}

fn lifetime(protocol: Protocol, progress: Progress, udp_idle: Duration) -> Duration {
    match protocol {
        Protocol::Tcp if progress.is_answered && !progress.is_over => TCP_ESTABLISHED,
        Protocol::Tcp => TCP_TRANSITORY,
        Protocol::Udp => udp_idle,
        Protocol::Icmp => ECHO,
    }
}

fn bytes_of(held: &[Held]) -> usize {
    held.iter().map(|held| held.packet.len()).sum()
}

#[cfg(test)]
mod tests;
