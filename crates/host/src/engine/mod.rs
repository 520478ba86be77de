//! The engine of one network. It serves the containers on the thread on which the network has a seat, and further
//! queues of a container on further threads.
//!
//! Dropping it resets all connections, closes all links, and waits until that is done.

mod container;

use std::iter;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::attach::{Finished, JOIN, NewContainer, Offer};
use crate::context::{Limits, Questions};
use crate::descriptors::NetworkShare;
use crate::dialer::Dialer;
use crate::dns;
use crate::gateway::members::{Isolation, Members};
use crate::gateway::neighbours::Neighbours;
use crate::publish::{self, Listening, Scene};
use crate::statistics::Counters;
use crate::task::block_on;
use crate::task::clock::Clock;
use crate::task::lifetime;
use crate::threads::commons::Commons;
use crate::threads::{self, Seat, Seats};
use container::NetworkTerms;

/// How often a drop waits for another [`JOIN`] while the network's threads are at work. There may be much to clear up.
const CLEARING_ROUNDS: usize = 11;

/// Everything the engine needs to know.
pub(crate) struct Config {
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) limits: Limits,
    pub(crate) dns: dns::Terms,
    pub(crate) link: Offer,
    pub(crate) isolation: Isolation,
    pub(crate) descriptors: Arc<NetworkShare>,
}

pub(crate) struct Engine {
    requests: Option<mpsc::UnboundedSender<Instruction>>,
    /// Resolves when the network has ended. Taken by the call that waits for it.
    over: Option<oneshot::Receiver<Finished>>,
    seat: Seat,
    /// Seats for the queues behind the first.
    further: Arc<[Seat]>,
}

impl Engine {
    /// Starts on the first of these seats. `counters` are for traffic that belongs to no container.
    pub(crate) fn start(config: Config, counters: Arc<Counters>, seats: Seats) -> Self {
        let Seats { first: seat, further } = seats;
        let further: Arc<[Seat]> = further.into();
        let (requests, incoming) = mpsc::unbounded_channel();
        let (over_in, over) = oneshot::channel();
        let seats = Arc::clone(&further);
        seat.run(move |commons| async move {
            let finished = serve(config, counters, commons, seats, incoming).await;
            // Nobody need wait for it.
            let _ = over_in.send(finished);
        });
        Self { requests: Some(requests), over: Some(over), seat, further }
    }

    /// Hands a container to the engine. Fails only if the engine has ended.
    pub(crate) fn attach(&self, container: NewContainer) -> Result<(), ShutDown> {
        self.tell(Instruction::Attach(Box::new(container)))
    }

    /// Ends the engine once everything that containers have sent is delivered, after `grace` at the latest. Waits for
    /// that.
    pub(crate) fn finish(mut self, grace: Duration) -> Finished {
        // An engine thread does not wait, and the network still has its grace.
        if threads::is_engine_thread() {
            drop(self.begin_to_finish(grace));
            return Finished::Abandoned;
        }
        match self.tell(Instruction::Finish { grace, keep: None }) {
            Ok(()) => self.join(grace.saturating_add(JOIN)),
            Err(ShutDown) => Finished::Abandoned,
        }
    }

    /// Like [`finish`](Self::finish), without waiting. Returns a receiver that waits, unless the engine has ended
    /// already.
    pub(crate) fn begin_to_finish(mut self, grace: Duration) -> Option<oneshot::Receiver<Finished>> {
        // The engine's task keeps the threads. Without this receiver, dropping does not wait.
        let over = self.over.take();
        let keep = Some((self.seat.clone(), Arc::clone(&self.further)));
        self.tell(Instruction::Finish { grace, keep }).ok().and(over)
    }

    /// Hands published sockets to the engine. Fails only if it has ended.
    pub(crate) fn publish(&self, listening: Listening) -> Result<(), ShutDown> {
        self.tell(Instruction::Publish(listening))
    }

    fn tell(&self, message: Instruction) -> Result<(), ShutDown> {
        self.requests.as_ref().and_then(|requests| requests.send(message).ok()).ok_or(ShutDown)
    }

    /// Waits for the end of the network, which must have been ordered.
    fn join(&mut self, patience: Duration) -> Finished {
        let Some(mut over) = self.over.take() else { return Finished::Abandoned };
        // A Dialer may hold the last handle to its own network. The engine cannot wait for itself.
        if threads::is_engine_thread() {
            return Finished::Abandoned;
        }
        for patience in iter::once(patience).chain([JOIN; CLEARING_ROUNDS]) {
            let mut signs: Vec<_> = self.further.iter().chain([&self.seat]).map(Seat::sign_of_life).collect();
            if let Some(finished) = block_on(&mut over, patience) {
                return finished.unwrap_or(Finished::Abandoned);
            }
            if signs.iter_mut().any(|sign| sign.try_recv().is_err()) {
                tracing::error!(
                    "a network does not end, and its thread does not answer: does a Dialer block it?"
                );
                return Finished::Abandoned;
            }
        }
        tracing::error!("a network is still clearing up after its containers, and goes on in the background");
        Finished::Abandoned
    }
}

/// The engine has ended.
#[derive(Debug)]
pub(crate) struct ShutDown;

enum Instruction {
    Attach(Box<NewContainer>),
    Publish(Listening),
    Finish {
        grace: Duration,
        /// Seats to keep until the end.
        keep: Option<(Seat, Arc<[Seat]>)>,
    },
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.requests = None;
        self.join(JOIN);
    }
}

/// Serves until the engine is dropped or finished.
async fn serve(
    config: Config,
    counters: Arc<Counters>,
    commons: Rc<Commons>,
    further: Arc<[Seat]>,
    mut requests: mpsc::UnboundedReceiver<Instruction>,
) -> Finished {
    let Config { dialer, limits, dns, link, isolation, descriptors } = config;
    let members: Rc<Members> = Rc::default();
    let neighbours = match isolation {
        Isolation::Isolated => None,
        Isolation::Open => Some(Neighbours::new(Rc::clone(&members), &limits)),
    };
    let scene = Scene {
        members: Rc::clone(&members),
        clock: Clock::start(),
        counters,
        commons: Rc::clone(&commons),
        descriptors: Arc::clone(&descriptors),
    };
    let questions = Questions::new(dialer, limits.dial_timeout);
    let clock = scene.clock;
    let terms =
        NetworkTerms { questions, limits, clock, descriptors, link, dns, isolation, members, neighbours };
    let terms = Rc::new(terms);
    // Dropped for an immediate end of the containers' networks, set for one in good order.
    let (is_finishing, _) = watch::channel(false);
    let mut containers = JoinSet::new();
    let mut ports = JoinSet::new();
    let (grace, _keep) = loop {
        tokio::select! {
            message = requests.recv() => match message {
                Some(Instruction::Attach(container)) => {
                    let shutdown = is_finishing.subscribe();
                    let (terms, commons, further) = (Rc::clone(&terms), Rc::clone(&commons), Arc::clone(&further));
                    containers.spawn_local(async move {
                        container::host(*container, &terms, commons, &further, shutdown).await
                    });
                }
                Some(Instruction::Publish(listening)) => {
                    let shutdown = is_finishing.subscribe();
                    ports.spawn_local(publish::serve(listening, scene.clone(), shutdown));
                }
                Some(Instruction::Finish { grace, keep }) => break (grace, keep),
                None => break (Duration::ZERO, None),
            },
            Some(ended) = containers.join_next() => lifetime::report_panic(ended.map(drop)),
            Some(ended) = ports.join_next() => lifetime::report_panic(ended),
        }
    };
    is_finishing.send_replace(!grace.is_zero());
    let mut finished = Finished::Delivered;
    let _ = tokio::time::timeout(grace, join_all(&mut containers, &mut finished)).await;
    drop(is_finishing);
    join_all(&mut containers, &mut finished).await;
    ports.shutdown().await;
    finished
}

/// Waits for all containers, and records how they have ended.
async fn join_all(containers: &mut JoinSet<Finished>, finished: &mut Finished) {
    while let Some(ended) = containers.join_next().await {
        let outcome = ended.as_ref().copied().unwrap_or(Finished::Incomplete { connections: 0 });
        *finished = finished.and(outcome);
        lifetime::report_panic(ended.map(drop));
    }
}
