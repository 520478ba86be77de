//! The engine of one network: serves its containers on the thread on which it has a seat, and where a container has
//! several queues on further ones.
//!
//! Dropping it resets all connections, closes all links and waits until that is done.

use std::rc::Rc;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nsnet_proto::Channel;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::attach::{self, Ready, SetupError};
use crate::clock::Clock;
use crate::commons::Commons;
use crate::container::{self, Terms};
use crate::context::{Limits, Parts, Questions};
use crate::dialer::Dialer;
use crate::dns;
use crate::leases::{Lease, Member};
use crate::lifetime;
use crate::members::{Isolation, Members};
use crate::neighbours::Neighbours;
use crate::publish::{self, Listening, Published, Scene};
use crate::statistics::Counters;
use crate::threads::{Seat, Seats};

/// How long a drop waits for the network to end. It takes a scheduling round unless a Dialer blocks the thread; then
/// the network is left behind rather than the embedder stalled.
const JOIN: Duration = Duration::from_secs(5);

/// Everything the engine needs to know.
pub(crate) struct Config {
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) limits: Limits,
    pub(crate) dns: dns::Terms,
    pub(crate) link: attach::Terms,
    pub(crate) isolation: Isolation,
}

pub(crate) struct Engine {
    requests: Option<mpsc::UnboundedSender<Message>>,
    /// Disconnects when the network has ended; taken by who waits for it. The mutex makes the engine `Sync`.
    ended: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    seat: Seat,
    /// For the queues behind the first.
    further: Arc<[Seat]>,
}

/// A container side that was given its end of a channel.
pub(crate) struct Request {
    pub(crate) channel: Channel,
    /// What carries the queues behind the first, should they be shuttled.
    pub(crate) further: Vec<Channel>,
    pub(crate) member: Member,
    pub(crate) lease: Lease,
    /// Of this container.
    pub(crate) counters: Arc<Counters>,
    pub(crate) outcome: oneshot::Sender<Result<Ready, SetupError>>,
    /// Resolves when the embedder closes the attachment.
    pub(crate) close: oneshot::Receiver<()>,
}

impl Engine {
    /// Starts on the first of these seats. `counters` are for what concerns no container.
    pub(crate) fn start(config: Config, counters: Arc<Counters>, seats: Seats) -> Self {
        let Seats { first: seat, further } = seats;
        let further: Arc<[Seat]> = further.into();
        let (requests, incoming) = mpsc::unbounded_channel();
        let (alive, ended) = std::sync::mpsc::channel();
        let seats = Arc::clone(&further);
        seat.run(move |commons| async move {
            let _alive: std::sync::mpsc::Sender<()> = alive;
            serve(config, counters, commons, seats, incoming).await;
        });
        Self { requests: Some(requests), ended: Mutex::new(Some(ended)), seat, further }
    }

    /// Hands a container side to the engine. Fails only if the engine has ended.
    pub(crate) fn attach(&self, request: Request) -> Result<(), ShutDown> {
        self.tell(Message::Attach(Box::new(request)))
    }

    /// Ends the engine once everything is delivered that containers have sent, after `grace` at the latest.
    pub(crate) fn finish(mut self, grace: Duration) {
        if self.tell(Message::Finish(grace)).is_ok() {
            self.join(grace.saturating_add(JOIN));
        }
    }

    /// Hands published sockets to the engine. Fails only if it has ended.
    pub(crate) fn publish(&self, listening: Listening) -> Result<(), ShutDown> {
        self.tell(Message::Publish(listening))
    }

    /// Closes published sockets, and waits for that unless the caller is in the way.
    pub(crate) fn unpublish(&self, published: Published) {
        let patience = if self.is_here() { Duration::ZERO } else { JOIN };
        published.withdraw(patience);
    }

    fn tell(&self, message: Message) -> Result<(), ShutDown> {
        self.requests.as_ref().and_then(|requests| requests.send(message).ok()).ok_or(ShutDown)
    }

    /// Waits for the end of the network, which must have been told to end.
    fn join(&mut self, patience: Duration) {
        let Some(ended) = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // A Dialer may hold the last handle to its own network: the engine cannot wait for itself.
        if self.is_here() {
            return;
        }
        if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("a network does not end: a Dialer blocks its thread");
        }
    }

    /// Whether the caller is on one of the engine's threads.
    fn is_here(&self) -> bool {
        self.seat.is_here() || self.further.iter().any(Seat::is_here)
    }
}

/// The engine has ended.
#[derive(Debug)]
pub(crate) struct ShutDown;

enum Message {
    Attach(Box<Request>),
    Publish(Listening),
    Finish(Duration),
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.requests = None;
        self.join(JOIN);
    }
}

/// Serves until the engine is dropped.
async fn serve(
    config: Config,
    counters: Arc<Counters>,
    commons: Rc<Commons>,
    further: Arc<[Seat]>,
    mut requests: mpsc::UnboundedReceiver<Message>,
) {
    let Config { dialer, limits, dns, link, isolation } = config;
    let members: Rc<Members> = Rc::default();
    let neighbours = match isolation {
        Isolation::Isolated => None,
        Isolation::Open => Some(Neighbours::new(Rc::clone(&members), &limits)),
    };
    let scene = Scene {
        members: Rc::clone(&members),
        clock: Clock::start(),
        counters: Arc::clone(&counters),
        commons: Rc::clone(&commons),
    };
    let questions = Questions::new(dialer, limits.dial_timeout);
    let parts = Parts { questions, limits, clock: scene.clock, counters };
    let terms = Rc::new(Terms { parts, link, dns, isolation, members, neighbours });
    // Dropped to end the containers' networks at once, set to end them in good order.
    let (is_finishing, _) = watch::channel(false);
    let mut containers = JoinSet::new();
    let mut ports = JoinSet::new();
    let grace = loop {
        tokio::select! {
            message = requests.recv() => match message {
                Some(Message::Attach(request)) => {
                    let shutdown = is_finishing.subscribe();
                    let (terms, commons, further) = (Rc::clone(&terms), Rc::clone(&commons), Arc::clone(&further));
                    containers.spawn_local(async move {
                        container::host(*request, &terms, commons, &further, shutdown).await;
                    });
                }
                Some(Message::Publish(listening)) => {
                    let shutdown = is_finishing.subscribe();
                    ports.spawn_local(publish::serve(listening, scene.clone(), shutdown));
                }
                Some(Message::Finish(grace)) => break grace,
                None => break Duration::ZERO,
            },
            Some(ended) = containers.join_next() => lifetime::report_panic(ended),
            Some(ended) = ports.join_next() => lifetime::report_panic(ended),
        }
    };
    is_finishing.send_replace(!grace.is_zero());
    let _ = tokio::time::timeout(grace, join_all(&mut containers)).await;
    drop(is_finishing);
    join_all(&mut containers).await;
    ports.shutdown().await;
}

async fn join_all(containers: &mut JoinSet<()>) {
    while let Some(ended) = containers.join_next().await {
        lifetime::report_panic(ended);
    }
}
