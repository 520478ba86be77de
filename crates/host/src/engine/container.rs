//! One container from its handshake to its end, with a gateway for each queue of its device.
//!
//! The first gateway runs on the network's own thread, the others on further threads. They end together. A container
//! with one queue has the first gateway only.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use nsnet_proto::{Carriage, Ready};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::addressing::Addressing;
use crate::attach::{
    self, Attached, End, Ending, Finished, JOIN, LinkOrigin, NewContainer, Offer, SetupError,
};
use crate::context::{Context, Limits, Parts, Questions};
use crate::descriptors::NetworkShare;
use crate::dns;
use crate::gateway::Gateway;
use crate::gateway::members::{Isolation, Members, Presence};
use crate::gateway::neighbours::Neighbours;
use crate::gateway::queues::Siblings;
use crate::link::{Link, LinkEnd};
use crate::protocols::Protocols;
use crate::statistics::Counters;
use crate::task::clock::Clock;
use crate::task::lifetime;
use crate::threads::commons::Commons;
use crate::threads::{Seat, closing};

/// The parts that are the same for every container of a network.
pub(crate) struct NetworkTerms {
    pub(crate) questions: Questions,
    pub(crate) limits: Limits,
    pub(crate) clock: Clock,
    pub(crate) descriptors: Arc<NetworkShare>,
    pub(crate) link: Offer,
    pub(crate) dns: dns::Terms,
    pub(crate) isolation: Isolation,
    pub(crate) members: Rc<Members>,
    /// `None` if containers are isolated.
    pub(crate) neighbours: Option<Rc<Neighbours>>,
}

impl NetworkTerms {
    /// The parts of a container whose link has this many file descriptors.
    fn parts(&self, counters: Arc<Counters>, link: usize) -> Parts {
        Parts {
            questions: self.questions.clone(),
            limits: self.limits,
            clock: self.clock,
            counters,
            descriptors: self.descriptors.container(link),
        }
    }
}

/// Serves one container from its start to its end. `further` are seats for the queues behind the first. `network` is
/// set for an end in good order, and closed for an immediate one.
pub(crate) async fn host(
    container: NewContainer,
    terms: &NetworkTerms,
    commons: Rc<Commons>,
    further: &[Seat],
    network: watch::Receiver<bool>,
) -> Finished {
    let NewContainer { origin, member, lease, counters, mut attached } = container;
    let parts = terms.parts(counters, origin.descriptors());
    let ending = Ending::new(network);
    let is_adopted = matches!(origin, LinkOrigin::Device { .. });
    let opening = async {
        let (ports, ready) = open(origin, terms, ending.begun()).await?;
        let is_finishing = ending.watch();
        let gateways =
            Gateways::open(ports, terms, parts, lease.addressing(), &commons, further, &is_finishing).await;
        Ok((gateways.map_err(SetupError::Host)?, ready))
    };
    let opened = tokio::select! {
        biased;
        opened = opening => opened,
        () = ending.at_once(&attached) => Err(ending.refusal()),
    };
    let has_device = matches!(&opened, Ok((_, ready)) if ready.carriage == Carriage::HandedOver);
    let served = match opened {
        Ok((gateways, ready)) => {
            let Ready { carriage, offload, queues, .. } = ready;
            tracing::info!(?carriage, ?offload, queues, "container attached");
            attached.set_up(Ok(ready));
            let presence = terms.members.enter(member, &gateways.first.protocols);
            let stay = terms.neighbours.as_ref().map(|neighbours| {
                gateways.first.meet(Rc::clone(neighbours));
                neighbours.admit(&gateways.first.protocols)
            });
            let served = gateways.run(&ending, &attached, presence).await;
            if let Some(stay) = stay {
                stay.end().await;
            }
            Ok(served)
        }
        Err(error) => Err(error),
    };
    if has_device {
        // Whoever learns of the end may look for the device. It is deleted on another thread, which serves all.
        let _ = tokio::time::timeout(JOIN, closing::devices_are_closed()).await;
    }
    // Released first: code that learns of the end may attach the next container of this name.
    drop(lease);
    let (end, finished) = match served {
        Ok((failure, finished)) => (failure.or_else(|| ending.asked()), finished),
        Err(error) => {
            tracing::debug!(%error, "the container did not get ready");
            let end = ending.asked().unwrap_or_else(|| failure(&error, is_adopted));
            attached.set_up(Err(error));
            (Some(end), Finished::Delivered)
        }
    };
    attached.finished(end, finished);
    finished
}

/// The end of a container that did not become ready. An adopted one was reported ready, so the end is the only place
/// for the error.
fn failure(error: &SetupError, is_adopted: bool) -> End {
    if is_adopted { End::failed(io::Error::other(error.to_string())) } else { End::SetupFailed }
}

/// The link ends of a container, and what it was granted. `given_up` resolves when the container is to end before it is
/// ready.
async fn open(
    origin: LinkOrigin,
    terms: &NetworkTerms,
    given_up: impl Future<Output = SetupError>,
) -> Result<(Vec<LinkEnd>, Ready), SetupError> {
    match origin {
        LinkOrigin::ContainerSide { channel, further } => {
            attach::handshake(channel, further, &terms.link, given_up).await
        }
        LinkOrigin::Device { port, ready } => Ok((vec![port], ready)),
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
    ended: JoinSet<Ended>,
}

/// The end of a gateway behind the first.
enum Ended {
    AsTold(Finished),
    Failed,
}

impl Gateways {
    async fn open(
        ports: Vec<LinkEnd>,
        terms: &NetworkTerms,
        parts: Parts,
        addressing: Addressing,
        commons: &Rc<Commons>,
        further: &[Seat],
        is_finishing: &watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let parts = Parts { limits: share(parts.limits, ports.len()), ..parts };
        let queues = ports.len();
        let places = dns::Places::new(parts.limits.dns_queries, parts.limits.dns_connections);
        let mut siblings = Siblings::new(queues).into_iter();
        let mut queue = |port: LinkEnd| Queue {
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
            others.start(seat, queue(port), ending.clone(), is_finishing.clone()).await?;
        }
        Ok(Self { first, others: Some(others) })
    }

    /// Serves until the end, and returns the failure that caused it, if one did. The container can no longer be found
    /// once its first gateway is closed.
    async fn run(self, ending: &Ending, attached: &Attached, presence: Presence) -> (Option<End>, Finished) {
        let end = pin!(ending.at_once(attached));
        let finish = lifetime::finishing(ending.watch());
        let failure = Cell::new(None);
        let lost = |result: io::Result<()>| match result {
            // What the container has sent is still being delivered.
            Ok(()) => attached.ended(End::LinkGone),
            Err(error) => failure.set(failure.take().or_else(|| Some(End::failed(error)))),
        };
        let Some(Others { end: end_others, mut ended }) = self.others else {
            let finished = self.first.run(end, finish, lost).await;
            return (failure.take(), finished);
        };
        let mut end_others = Some(end_others);
        let end_of_all = async {
            tokio::select! {
                () = end => {}
                // Only a fault ends one of them before it is told to end.
                _ = ended.join_next() => lost(Err(io::Error::other("the thread of a queue has failed"))),
            }
            end_others.take();
        };
        let mut finished = self.first.run(pin!(end_of_all), finish, lost).await;
        drop(presence);
        drop(end_others);
        while let Some(other) = ended.join_next().await {
            finished = finished.and(match other {
                Ok(Ended::AsTold(finished)) => finished,
                Ok(Ended::Failed) | Err(_) => Finished::Incomplete { connections: 0 },
            });
        }
        (failure.take(), finished)
    }
}

impl Others {
    /// Starts a gateway on another thread. Returns once that has taken its link over.
    async fn start(
        &mut self,
        seat: &Seat,
        queue: Queue,
        ending: watch::Receiver<()>,
        is_finishing: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let (started, has_started) = oneshot::channel();
        let (finished, has_finished) = oneshot::channel();
        seat.run(move |commons| async move {
            match queue.open(commons) {
                Ok(gateway) => {
                    let _ = started.send(Ok(()));
                    let _ = finished.send(serve(&gateway, ending, is_finishing).await);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        self.ended.spawn_local(async {
            has_finished.await.map_or_else(
                |_| {
                    tracing::error!("the gateway of one of a container's queues failed");
                    Ended::Failed
                },
                Ended::AsTold,
            )
        });
        has_started.await.unwrap_or_else(|_| Err(io::Error::other("the thread of a queue has ended")))
    }
}

/// The parts of a gateway, to be sent to its thread.
struct Queue {
    port: LinkEnd,
    /// `None` if the device has one queue only.
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
        let descriptors = Arc::clone(&self.parts.descriptors);
        let context = Context::new(link, self.addressing, self.parts, commons);
        let protocols = Protocols::new(context, self.dns.server(self.places, descriptors));
        Ok(Gateway::new(protocols, self.isolation, self.sibling))
    }
}

/// Runs a gateway behind the first until the container ends.
async fn serve(
    gateway: &Rc<Gateway>,
    mut ending: watch::Receiver<()>,
    is_finishing: watch::Receiver<bool>,
) -> Finished {
    let end = async {
        // Always fails, because nothing is sent.
        let _ = ending.changed().await;
    };
    // The gateway of the first queue learns of it, and tells the embedder.
    let lost = drop;
    gateway.run(pin!(end), lifetime::finishing(is_finishing), lost).await
}

/// The limits of one of this many queues. Limits that are not for the first queue only are divided, rounded up.
fn share(limits: Limits, queues: usize) -> Limits {
    Limits {
        tcp_flows: limits.tcp_flows.div_ceil(queues),
        ring_memory: limits.ring_memory.div_ceil(queues),
        ..limits
    }
}
