//! Everything that the protocols of one container share: the link, the time, the Dialer, the routing of addresses.
//!
//! The context knows no protocol. A table is made of a context and nothing else. So a test can make one with a link in
//! memory, a clock that the test moves, and a Dialer of its own (`testing.rs`).

mod answers;
mod question;
mod routing;
mod tasks;
#[cfg(test)]
pub(crate) mod testing;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nsnet_stack::icmp::Limit;
use tokio::sync::Notify;

pub(crate) use question::Questions;
pub(crate) use tasks::Tasks;

use crate::addressing::Addressing;
use crate::descriptors::ContainerShare;
use crate::link::Link;
use crate::statistics::Counters;
use crate::task::clock::Clock;
use crate::threads::commons::Commons;
use crate::threads::turns::Lane;

/// Limits on a container's use of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) tcp_flows: usize,
    /// Bytes of memory in the rings of TCP connections, beyond the guaranteed size of each.
    pub(crate) ring_memory: usize,
    pub(crate) udp_mappings: usize,
    pub(crate) echo_mappings: usize,
    pub(crate) udp_peers: usize,
    pub(crate) udp_idle_timeout: Duration,
    pub(crate) dial_timeout: Duration,
    /// Units of DNS messages under way, each of up to 1 KiB.
    pub(crate) dns_queries: usize,
    pub(crate) dns_connections: usize,
    /// Clients of each published UDP port.
    pub(crate) published_udp_clients: usize,
    /// Flows that one container address may have open to others.
    pub(crate) flows_between_containers: usize,
}

/// The parts that are the same for every queue of a container.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) questions: Questions,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    pub(crate) descriptors: Arc<ContainerShare>,
}

/// The context of one container, or of one queue of it.
pub(crate) struct Context {
    pub(crate) link: Link,
    pub(crate) addressing: Addressing,
    pub(crate) questions: Questions,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<Counters>,
    /// The file descriptors that the container may have.
    pub(crate) descriptors: Arc<ContainerShare>,
    pub(crate) commons: Rc<Commons>,
    pub(crate) tasks: Tasks,
    /// The container's part in the line of its thread.
    pub(crate) lane: Rc<Lane>,
    /// Notified when a flow has delivered its last bytes or has ended.
    pub(crate) progress: Notify,
    /// Limits the ICMP errors that the gateway originates.
    errors: RefCell<Limit>,
    /// When the last log line about a host that cannot connect was written.
    warned: Cell<Option<Instant>>,
}

impl Context {
    pub(crate) fn new(link: Link, addressing: Addressing, parts: Parts, commons: Rc<Commons>) -> Rc<Self> {
        let Parts { questions, limits, clock, counters, descriptors } = parts;
        Rc::new(Self {
            link,
            addressing,
            questions,
            limits,
            clock,
            counters,
            lane: commons.turns().lane(),
            descriptors,
            commons,
            tasks: Tasks::default(),
            progress: Notify::new(),
            errors: RefCell::default(),
            warned: Cell::new(None),
        })
    }
}
