//! The engine of one network: its containers from handshake to end, on the thread on which it has a seat.
//!
//! Dropping it resets all connections, closes all links and waits until that is done.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nsnet_proto::{Channel, Offload};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use crate::addressing::Addressing;
use crate::attach::{self, Ready, SetupError};
use crate::clock::Clock;
use crate::commons::Commons;
use crate::dialer::Dialer;
use crate::dns::{Forwarder, Servers};
use crate::gateway::{Gateway, Limits, Parts};
use crate::statistics::Counters;
use crate::threads::Seat;

/// How long a drop waits for the network to end. It takes a scheduling round unless a Dialer blocks the thread; then
/// the network is left behind rather than the embedder stalled.
const JOIN: Duration = Duration::from_secs(5);

/// Everything the engine needs to know.
pub(crate) struct Config {
    pub(crate) addressing: Addressing,
    pub(crate) dialer: Arc<dyn Dialer>,
    pub(crate) limits: Limits,
    pub(crate) dns: DnsSource,
    pub(crate) mtu: u16,
    pub(crate) offload: Offload,
}

/// Where DNS queries are forwarded to.
#[derive(Debug, Clone)]
pub(crate) enum DnsSource {
    System,
    File(PathBuf),
    Fixed(Vec<SocketAddr>),
}

impl DnsSource {
    fn servers(self) -> Servers {
        match self {
            Self::System => Servers::system(),
            Self::File(path) => Servers::from_file(&path),
            Self::Fixed(servers) => Servers::fixed(servers),
        }
    }
}

pub(crate) struct Engine {
    requests: Option<mpsc::UnboundedSender<Message>>,
    /// Disconnects when the network has ended; taken by who waits for it. The mutex makes the engine `Sync`.
    ended: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
    seat: Seat,
}

/// A container side that was given its end of a channel.
pub(crate) struct Request {
    pub(crate) channel: Channel,
    pub(crate) outcome: oneshot::Sender<Result<Ready, SetupError>>,
    /// Resolves when the embedder closes the attachment.
    pub(crate) close: oneshot::Receiver<()>,
}

impl Engine {
    pub(crate) fn start(config: Config, counters: Arc<Counters>) -> io::Result<Self> {
        let seat = Seat::take()?;
        let (requests, incoming) = mpsc::unbounded_channel();
        let (alive, ended) = std::sync::mpsc::channel();
        seat.run(move |commons| async move {
            let _alive: std::sync::mpsc::Sender<()> = alive;
            serve(config, counters, commons, incoming).await;
        });
        Ok(Self { requests: Some(requests), ended: Mutex::new(Some(ended)), seat })
    }

    /// Hands a container side to the engine. Fails only if the engine has ended.
    pub(crate) fn attach(&self, request: Request) -> Result<(), ShutDown> {
        self.tell(Message::Attach(request))
    }

    /// Ends the engine once everything is delivered that containers have sent, after `grace` at the latest.
    pub(crate) fn finish(mut self, grace: Duration) {
        if self.tell(Message::Finish(grace)).is_ok() {
            self.join(grace.saturating_add(JOIN));
        }
    }

    fn tell(&self, message: Message) -> Result<(), ShutDown> {
        self.requests.as_ref().and_then(|requests| requests.send(message).ok()).ok_or(ShutDown)
    }

    /// Waits for the end of the network, which must have been told to end.
    fn join(&mut self, patience: Duration) {
        let Some(ended) = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner).take() else { return };
        // A Dialer may hold the last handle to its own network: the engine cannot wait for itself.
        if self.seat.is_here() {
            return;
        }
        if ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("a network does not end: a Dialer blocks its thread");
        }
    }
}

/// The engine has ended.
#[derive(Debug)]
pub(crate) struct ShutDown;

enum Message {
    Attach(Request),
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
    mut requests: mpsc::UnboundedReceiver<Message>,
) {
    let parts = Parts {
        addressing: config.addressing,
        dialer: config.dialer,
        limits: config.limits,
        clock: Clock::start(),
        counters,
        commons,
    };
    let terms = Terms { mtu: config.mtu, offload: config.offload, dns: config.dns };
    // Dropped to end the containers' networks at once, set to end them in good order.
    let (is_finishing, _) = watch::channel(false);
    let mut containers = JoinSet::new();
    let grace = loop {
        tokio::select! {
            message = requests.recv() => match message {
                Some(Message::Attach(request)) => {
                    let shutdown = is_finishing.subscribe();
                    containers.spawn_local(host(request, parts.clone(), terms.clone(), shutdown));
                }
                Some(Message::Finish(grace)) => break grace,
                None => break Duration::ZERO,
            },
            Some(ended) = containers.join_next() => report_panic(ended),
        }
    };
    is_finishing.send_replace(!grace.is_zero());
    let _ = tokio::time::timeout(grace, join_all(&mut containers)).await;
    drop(is_finishing);
    join_all(&mut containers).await;
}

async fn join_all(containers: &mut JoinSet<()>) {
    while let Some(ended) = containers.join_next().await {
        report_panic(ended);
    }
}

/// What is the same for every container and not the gateway's business.
#[derive(Clone)]
struct Terms {
    mtu: u16,
    offload: Offload,
    dns: DnsSource,
}

/// Takes one container from its handshake to its end.
async fn host(request: Request, parts: Parts, terms: Terms, shutdown: watch::Receiver<bool>) {
    let Request { channel, outcome, close } = request;
    let (mut dropped, mut finishing) = (shutdown.clone(), shutdown);
    let end = async {
        tokio::select! {
            // Never true: this waits for the sender to be dropped.
            _ = dropped.wait_for(|_| false) => {}
            () = requested(close) => {}
        }
    };
    tokio::pin!(end);
    let finish = async {
        // Fails when the sender is dropped, and then the end has come anyway.
        let _ = finishing.wait_for(|is_finishing| *is_finishing).await;
    };
    let handshake = tokio::select! {
        handshake = attach::handshake(
            channel, terms.mtu, terms.offload, Arc::clone(&parts.counters), Rc::clone(&parts.commons)
        ) => handshake,
        () = &mut end => return,
    };
    match handshake {
        Ok((link, ready)) => {
            let gateway = Gateway::new(link, Forwarder::new(terms.dns.servers()), parts);
            tracing::info!(carriage = ?ready.carriage, offload = ?ready.offload, "container attached");
            // Nobody need wait for the news.
            let _ = outcome.send(Ok(ready));
            gateway.run(end, finish).await;
        }
        Err(error) => {
            tracing::debug!(%error, "the container side did not get ready");
            let _ = outcome.send(Err(error));
        }
    }
}

/// Waits for a request to close; an attachment that is merely dropped makes none.
async fn requested(close: oneshot::Receiver<()>) {
    if close.await.is_err() {
        std::future::pending().await
    }
}

fn report_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a container's gateway failed");
    }
}
