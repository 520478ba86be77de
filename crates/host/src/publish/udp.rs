//! A published UDP port: what comes from its clients goes into the container.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use super::Target;
use super::client::Client;
use super::datagrams::{Arrival, Socket};
use crate::commons::Commons;
use crate::container::Terms;
use crate::dialer::{Datagrams, Received};
use crate::gateway::Gateway;
use crate::link::Sent;

/// Receipts before other tasks get their turn.
const BATCH: usize = 64;

/// How long a container that has refused datagrams in one address family gets those of new clients in the other first:
/// it may tell of few such errors in a second (`icmp_ratelimit`, icmp(7)).
const REFUSED: Duration = Duration::from_secs(10);

pub(super) struct Port {
    pub(super) socket: Socket,
    /// The port in the container.
    pub(super) target: u16,
    /// How many clients it has, in all containers together.
    pub(super) clients: Cell<usize>,
    /// Those of them that may have to make room for others, the oldest first; and some that are gone.
    pub(super) passing: RefCell<VecDeque<Weak<Client>>>,
    refused: Cell<Option<Refused>>,
}

/// Where and when the container has last refused datagrams.
#[derive(Clone, Copy)]
struct Refused {
    is_ipv4: bool,
    at: Instant,
}

impl Port {
    fn new(socket: Socket, target: u16) -> Self {
        let (clients, passing, refused) = Default::default();
        Self { socket, target, clients, passing, refused }
    }

    /// Notes that nobody listens at this address of the container.
    pub(super) fn refused(&self, container: IpAddr, at: Instant) {
        self.refused.set(Some(Refused { is_ipv4: container.is_ipv4(), at }));
    }

    /// Whether it has just turned out that nobody listens at this address of the container.
    pub(super) fn has_refused(&self, container: IpAddr, now: Instant) -> bool {
        self.refused.get().is_some_and(|Refused { is_ipv4, at }| {
            is_ipv4 == container.is_ipv4() && now.saturating_duration_since(at) < REFUSED
        })
    }
}

/// Delivers what comes in. Ends only if the socket fails.
pub(super) async fn serve(socket: Socket, target: Target, terms: Rc<Terms>, commons: Rc<Commons>) {
    let port = Rc::new(Port::new(socket, target.port));
    if let Err(error) = deliver(&port, &target, &terms, &commons).await {
        tracing::error!(port = port.socket.port(), %error, "a published UDP port failed");
    }
}

async fn deliver(port: &Rc<Port>, target: &Target, terms: &Terms, commons: &Commons) -> io::Result<()> {
    loop {
        port.socket.readable().await?;
        for _ in 0..BATCH {
            match deliver_next(port, target, terms, commons) {
                Ok(None) => {}
                Ok(Some(blocked)) => blocked.clear().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Of an earlier datagram, or the host's want of memory: the next one may fare better.
                Err(error) => tracing::debug!(port = port.socket.port(), %error, "datagrams are lost"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// A link that is full, and what waits for it.
struct Blocked {
    gateway: Rc<Gateway>,
    client: Rc<Client>,
    frame: crate::link::HeldFrame,
    /// Size and bytes of the frames that follow.
    rest: Vec<(usize, Box<[u8]>)>,
}

impl Blocked {
    async fn clear(self) {
        let link = &self.gateway.link;
        let mut sent = Sent::Held(self.frame);
        let mut rest = self.rest.iter();
        loop {
            while let Sent::Held(frame) = sent {
                if link.writable().await.is_err() {
                    return;
                }
                sent = link.resend(frame);
            }
            let Some((size, bytes)) = rest.next() else { return };
            let key = self.client.key();
            sent = link.send_datagrams(key.peer, key.container, Datagrams::of_size(*size, bytes));
        }
    }
}

/// Takes the next of what the socket holds and sends it on.
fn deliver_next(
    port: &Rc<Port>,
    target: &Target,
    terms: &Terms,
    commons: &Commons,
) -> io::Result<Option<Blocked>> {
    let mut buffer = commons.received();
    let arrival = port.socket.try_receive(&mut buffer)?;
    let Some(gateway) = terms.members.find(target.member.as_deref()) else { return Ok(None) };
    match arrival {
        Arrival::Datagrams { length, size, client, local } => {
            let datagrams = Datagrams::of_size(size, buffer.get(..length).unwrap_or_default());
            let Some(client) = gateway.clients.hear(&gateway, port, client, local, datagrams) else {
                return Ok(None);
            };
            Ok(send(&gateway, client, datagrams))
        }
        Arrival::Other(Received::Undelivered { destination, sender, hop_limit, error, length }) => {
            if let Some(client) = gateway.clients.get(port, destination) {
                let (key, start) = (client.key(), buffer.get(..length).unwrap_or_default());
                // The client's own word comes from where it is seen.
                let sender = sender.map(|sender| match sender == destination.ip() {
                    true => key.peer.ip(),
                    false => sender,
                });
                let quoted = nsnet_stack::icmp::quote_datagram(key.container, key.peer, start);
                gateway.relay(key, sender, hop_limit, error, &quoted);
            }
            Ok(None)
        }
        Arrival::Other(Received::Datagrams { .. }) => Ok(None),
    }
}

fn send(gateway: &Rc<Gateway>, client: Rc<Client>, datagrams: Datagrams<'_>) -> Option<Blocked> {
    let key = client.key();
    let mut frames = gateway.link.frames(key.peer, datagrams);
    while let Some(frame) = frames.next() {
        if let Sent::Held(frame) = gateway.link.send_datagrams(key.peer, key.container, frame) {
            let rest = frames.map(|frame| (frame.size(), frame.bytes().into())).collect();
            return Some(Blocked { gateway: Rc::clone(gateway), client, frame, rest });
        }
    }
    None
}
