//! A published UDP port, shared by its clients.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use nsnet_stack::udp::Datagrams;

use super::client::Client;
use super::socket::Local;

/// How long new clients start with the other address family after the container has refused datagrams in one. It may
/// report only few such errors per second (`icmp_ratelimit`, icmp(7)).
const REFUSED: Duration = Duration::from_secs(10);

/// The socket by which a port's answers leave.
pub(crate) trait Answers {
    /// The port of the host.
    fn port(&self) -> u16;

    /// Sends datagrams to a client, from the address that `local` names.
    ///
    /// # Errors
    /// The kernel's error. The datagrams are lost.
    fn send(&self, datagrams: Datagrams<'_>, client: SocketAddr, local: &Local) -> io::Result<()>;
}

pub(crate) struct PublishedPort {
    pub(super) answers: Rc<dyn Answers>,
    /// The port in the container.
    pub(super) target: u16,
    /// The number of its clients, in all containers together.
    pub(super) clients: Cell<usize>,
    /// The clients that may have to make room for others, the oldest first. Some may be gone.
    pub(super) passing: RefCell<VecDeque<Weak<Client>>>,
    refused: Cell<Option<Refused>>,
}

/// The last refusal of datagrams by the container.
#[derive(Clone, Copy)]
struct Refused {
    is_ipv4: bool,
    at: Instant,
}

impl PublishedPort {
    pub(crate) fn new(answers: Rc<dyn Answers>, target: u16) -> Self {
        let (clients, passing, refused) = Default::default();
        Self { answers, target, clients, passing, refused }
    }

    /// Records that nothing listens at this address of the container.
    pub(super) fn refused(&self, container: IpAddr, at: Instant) {
        self.refused.set(Some(Refused { is_ipv4: container.is_ipv4(), at }));
    }

    /// Whether this address of the container has just refused datagrams.
    pub(super) fn has_refused(&self, container: IpAddr, now: Instant) -> bool {
        self.refused.get().is_some_and(|Refused { is_ipv4, at }| {
            is_ipv4 == container.is_ipv4() && now.saturating_duration_since(at) < REFUSED
        })
    }
}
