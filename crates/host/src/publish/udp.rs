//! A published UDP port: datagrams of its clients go into the container.

use std::io;
use std::rc::Rc;

use nsnet_stack::flow::FlowKey;
use nsnet_stack::icmp;
use nsnet_stack::udp::Datagrams;

use super::{Scene, Target};
use crate::dialer::Received;
use crate::link::Sent;
use crate::protocols::Protocols;
use crate::protocols::clients::{Answers, Arrival, Client, PublishedPort, Socket};
use crate::protocols::udp::{Backlog, send_all};

/// The most receive calls before other tasks get their turn.
const BATCH: usize = 64;

/// Delivers datagrams as they arrive. Ends only if the socket fails.
pub(super) async fn serve(socket: Socket, target: Target, scene: Scene) {
    let socket = Rc::new(socket);
    let port = Rc::new(PublishedPort::new(Rc::clone(&socket) as Rc<dyn Answers>, target.port));
    if let Err(error) = deliver(&socket, &port, &target, &scene).await {
        tracing::error!(port = socket.port(), %error, "a published UDP port failed");
    }
}

async fn deliver(
    socket: &Socket,
    port: &Rc<PublishedPort>,
    target: &Target,
    scene: &Scene,
) -> io::Result<()> {
    loop {
        socket.readable().await?;
        for _ in 0..BATCH {
            match deliver_next(socket, port, target, scene) {
                Ok(None) => {}
                Ok(Some(blocked)) => blocked.clear().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The error is about an earlier datagram, or the host lacks memory. The next datagram may arrive.
                Err(error) => tracing::debug!(port = socket.port(), %error, "datagrams are lost"),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// A container whose link is full, and the datagrams that wait for it.
struct Blocked {
    protocols: Rc<Protocols>,
    client: Rc<Client>,
    backlog: Backlog<()>,
}

impl Blocked {
    async fn clear(self) {
        let (link, client) = (&self.protocols.context.link, &self.client);
        // Fails only if the link is gone, and the datagrams with it.
        let _ = self.backlog.clear(link, |(), frame| send_one(&self.protocols, client.key(), frame)).await;
    }
}

/// Takes the next datagrams from the socket and sends them on.
fn deliver_next(
    socket: &Socket,
    port: &Rc<PublishedPort>,
    target: &Target,
    scene: &Scene,
) -> io::Result<Option<Blocked>> {
    let mut buffer = scene.commons.received();
    let arrival = socket.try_receive(&mut buffer)?;
    let Some(protocols) = scene.members.find(target.member.as_deref()) else { return Ok(None) };
    match arrival {
        Arrival::Datagrams { length, size, client, local } => {
            let datagrams = Datagrams::of_size(size, buffer.get(..length).unwrap_or_default());
            let Some(client) = protocols.clients.hear(port, client, local, datagrams) else {
                return Ok(None);
            };
            Ok(send(protocols, client, datagrams))
        }
        Arrival::Other(Received::Undelivered { destination, sender, hop_limit, error, length }) => {
            if let Some(client) = protocols.clients.get(port, destination) {
                let (key, start) = (client.key(), buffer.get(..length).unwrap_or_default());
                // An error that the client itself reports comes from the address under which the container sees the
                // client.
                let sender = sender.map(|sender| match sender == destination.ip() {
                    true => key.peer.ip(),
                    false => sender,
                });
                let quoted = icmp::quote_datagram(key.container, key.peer, start);
                protocols.context.relay(key, sender, hop_limit, error, &quoted);
            }
            Ok(None)
        }
        Arrival::Other(Received::Datagrams { .. }) => Ok(None),
    }
}

fn send(protocols: Rc<Protocols>, client: Rc<Client>, datagrams: Datagrams<'_>) -> Option<Blocked> {
    let key = client.key();
    let frames = protocols.context.link.frames(key.peer, datagrams).map(|frame| ((), frame));
    let backlog = send_all(frames, protocols.clients.budget(), |(), frame| send_one(&protocols, key, frame))?;
    Some(Blocked { protocols, client, backlog })
}

fn send_one(protocols: &Protocols, key: FlowKey, frame: Datagrams<'_>) -> Sent {
    protocols.context.link.send_datagrams(key.peer, key.container, frame)
}
