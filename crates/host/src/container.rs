//! One container from its handshake to its end: a gateway for each queue of its device.
//!
//! The first gateway runs on the network's own thread, the others on further ones, and they end together. A container
//! of one queue has the first gateway and nothing else.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::addressing::Addressing;
use crate::attach::{self, Ready, SetupError};
use crate::commons::Commons;
use crate::context::{Context, Limits, Parts};
use crate::dns;
use crate::engine::Request;
use crate::gateway::Gateway;
use crate::lifetime;
use crate::link::{Link, Port};
use crate::members::{Isolation, Members, Presence};
use crate::neighbours::Neighbours;
use crate::protocols::Protocols;
use crate::queues::Siblings;
use crate::threads::Seat;

/// What is the same for every container of a network.
pub(crate) struct Terms {
    /// The counters in here are for what concerns no container.
    pub(crate) parts: Parts,
    pub(crate) link: attach::Terms,
    pub(crate) dns: dns::Terms,
    pub(crate) isolation: Isolation,
    pub(crate) members: Rc<Members>,
    /// Unless containers are isolated.
    pub(crate) neighbours: Option<Rc<Neighbours>>,
}

/// Takes one container from its handshake to its end. `further` are seats for the queues behind the first; `shutdown`
/// is set to end in good order, and closed to end at once.
pub(crate) async fn host(
    request: Request,
    terms: &Terms,
    commons: Rc<Commons>,
    further: &[Seat],
    shutdown: watch::Receiver<bool>,
) {
    let Request { channel, further: channels, member, lease, counters, outcome, close } = request;
    let parts = Parts { counters, ..terms.parts.clone() };
    let mut dropped = shutdown.clone();
    let end = async {
        tokio::select! {
            // Never true: this waits for the sender to be dropped.
            _ = dropped.wait_for(|_| false) => {}
            () = lifetime::requested(close) => {}
        }
    };
    tokio::pin!(end);
    let opening = async {
        let (ports, ready) = attach::handshake(channel, channels, &terms.link).await?;
        let gateways =
            Gateways::open(ports, terms, parts, lease.addressing(), &commons, further, &shutdown).await;
        Ok((gateways.map_err(SetupError::Host)?, ready))
    };
    let opened: Result<(Gateways, Ready), SetupError> = tokio::select! {
        opened = opening => opened,
        () = &mut end => return,
    };
    match opened {
        Ok((gateways, ready)) => {
            let Ready { carriage, offload, queues, .. } = ready;
            tracing::info!(?carriage, ?offload, queues, "container attached");
            // Nobody need wait for the news.
            let _ = outcome.send(Ok(ready));
            let presence = terms.members.enter(member, &gateways.first.protocols);
            let _stay = terms.neighbours.as_ref().map(|neighbours| {
                gateways.first.meet(Rc::clone(neighbours));
                neighbours.admit(&gateways.first.protocols)
            });
            gateways.run(end, shutdown, presence).await;
        }
        Err(error) => {
            tracing::debug!(%error, "the container side did not get ready");
            let _ = outcome.send(Err(error));
        }
    }
}

/// The gateways of one container.
struct Gateways {
    first: Rc<Gateway>,
    others: Option<Others>,
}

/// The gateways of the queues behind the first.
struct Others {
    /// Dropped to end them.
    end: watch::Sender<()>,
    /// Waits for each of them.
    ended: JoinSet<()>,
}

impl Gateways {
    async fn open(
        ports: Vec<Port>,
        terms: &Terms,
        parts: Parts,
        addressing: Addressing,
        commons: &Rc<Commons>,
        further: &[Seat],
        shutdown: &watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let parts = Parts { limits: share(parts.limits, ports.len()), ..parts };
        let queues = ports.len();
        let places = dns::Places::new(parts.limits.dns_queries, parts.limits.dns_connections);
        let mut siblings = Siblings::new(queues).into_iter();
        let mut queue = |port: Port| Queue {
            port,
            sibling: siblings.next().filter(|_| queues > 1),
            addressing: addressing.clone(),
            isolation: terms.isolation,
            parts: parts.clone(),
            dns: terms.dns.clone(),
            places: places.clone(),
        };
        let mut ports = ports.into_iter();
        let first = queue(ports.next().ok_or(io::ErrorKind::InvalidInput)?).open(Rc::clone(commons))?;
        if queues == 1 {
            return Ok(Self { first, others: None });
        }
        let (end, ending) = watch::channel(());
        let mut others = Others { end, ended: JoinSet::new() };
        for (port, seat) in ports.zip(further) {
            others.start(seat, queue(port), ending.clone(), shutdown.clone()).await?;
        }
        Ok(Self { first, others: Some(others) })
    }

    /// Serves until the end. The container is not to be found any more as soon as its first gateway is closed.
    async fn run(
        self,
        mut end: Pin<&mut impl Future<Output = ()>>,
        shutdown: watch::Receiver<bool>,
        presence: Presence,
    ) {
        let finish = lifetime::finishing(shutdown);
        let Some(Others { end: end_others, mut ended }) = self.others else {
            return self.first.run(end, finish).await;
        };
        let mut end_others = Some(end_others);
        let end_of_all = async {
            tokio::select! {
                () = &mut end => {}
                _ = ended.join_next() => {}
            }
            end_others.take();
        };
        self.first.run(pin!(end_of_all), finish).await;
        drop(presence);
        drop(end_others);
        while ended.join_next().await.is_some() {}
    }
}

impl Others {
    /// Starts a gateway on another thread. Returns once it has taken its link over.
    async fn start(
        &mut self,
        seat: &Seat,
        queue: Queue,
        ending: watch::Receiver<()>,
        shutdown: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (started, has_started) = oneshot::channel();
        let (alive, has_ended) = oneshot::channel();
        seat.run(move |commons| async move {
            match queue.open(commons) {
                Ok(gateway) => {
                    let _ = started.send(Ok(()));
                    serve(&gateway, ending, shutdown).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
            let _ = alive.send(());
        });
        self.ended.spawn_local(async {
            if has_ended.await.is_err() {
                tracing::error!("the gateway of one of a container's queues failed");
            }
        });
        has_started.await.unwrap_or_else(|_| Err(io::Error::other("the thread of a queue has ended")))
    }
}

/// What a gateway is made of, to be carried to its thread.
struct Queue {
    port: Port,
    /// None if the device has one queue only.
    sibling: Option<Siblings>,
    addressing: Addressing,
    isolation: Isolation,
    parts: Parts,
    dns: dns::Terms,
    places: dns::Places,
}

impl Queue {
    fn open(self, commons: Rc<Commons>) -> io::Result<Rc<Gateway>> {
        let link = Link::new(self.port, Arc::clone(&self.parts.counters), Rc::clone(&commons))?;
        let context = Context::new(link, self.addressing, self.parts, commons);
        let protocols = Protocols::new(context, self.dns.server(self.places));
        Ok(Gateway::new(protocols, self.isolation, self.sibling))
    }
}

/// Runs a gateway behind the first until the container ends.
async fn serve(gateway: &Rc<Gateway>, mut ending: watch::Receiver<()>, shutdown: watch::Receiver<bool>) {
    let end = async {
        // Only ever fails: nothing is sent.
        let _ = ending.changed().await;
    };
    gateway.run(pin!(end), lifetime::finishing(shutdown)).await;
}

/// The limits of one of so many queues: what is not on the first queue only is divided, rounded up.
fn share(limits: Limits, queues: usize) -> Limits {
    Limits {
        tcp_flows: limits.tcp_flows.div_ceil(queues),
        ring_memory: limits.ring_memory.div_ceil(queues),
        ..limits
    }
}
