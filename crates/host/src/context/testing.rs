//! A context in memory. The test plays the container, the Dialer and the world.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use nsnet_proto::{Offload, vnet};
use nsnet_stack::frame::Device;
use nsnet_stack::packet::Packet;
use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::{Context, Limits, Parts, Questions};
use crate::addressing::Addressing;
use crate::addressing::host_ports::OpenHost;
use crate::addressing::subnet::{Ipv4Subnet, Ipv6Subnet};
use crate::descriptors;
use crate::dialer::{
    DatagramSocket, Datagrams, DenyDialer, DialError, Dialer, Envelope, Flow, Inbound, Received, Source,
    Stream,
};
use crate::dns;
use crate::link::Link;
use crate::link::memory::FarEnd;
use crate::statistics::Counters;
use crate::task::clock::Clock;
use crate::threads::commons::Commons;

/// The container's address and port of most flows.
pub(crate) const CONTAINER: &str = "10.0.2.100:4000";

/// The address and port that it talks to.
pub(crate) const PEER: &str = "10.99.0.2:80";

/// A context, and the test's ends of it.
pub(crate) struct Bench {
    pub(crate) context: Rc<Context>,
    /// The container's end of the link.
    pub(crate) far: FarEnd,
    pub(crate) dialer: Arc<Script>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let (counters, dialer) = (Arc::default(), Arc::default());
        Self::on(Commons::of_no_host(), limits, addressing(), counters, dialer)
    }

    /// A context in a process that has this many file descriptors for it.
    pub(crate) fn with_descriptors(capacity: usize) -> Self {
        let Self { mut context, far, dialer } = Self::new();
        let alone = Rc::get_mut(&mut context).expect("nobody else has the context yet");
        alone.descriptors = descriptors::testing::share_of(capacity);
        Self { context, far, dialer }
    }

    /// Another queue of this container, on the same thread.
    pub(crate) fn further_queue(&self) -> Self {
        let context = &self.context;
        let (addressing, counters) = (context.addressing.clone(), Arc::clone(&context.counters));
        Self::on(Rc::clone(&context.commons), context.limits, addressing, counters, Arc::clone(&self.dialer))
    }

    /// Another container of the same network and thread, with these addresses.
    pub(crate) fn neighbour(&self, [v4, v6]: [&str; 2]) -> Self {
        let mut addressing = self.context.addressing.clone();
        addressing.v4 = addressing.v4.map(|subnet| subnet.with_container(v4.parse().unwrap()));
        addressing.v6 = addressing.v6.map(|subnet| subnet.with_container(v6.parse().unwrap()));
        let (commons, dialer) = (Rc::clone(&self.context.commons), Arc::clone(&self.dialer));
        Self::on(commons, self.context.limits, addressing, Arc::default(), dialer)
    }

    fn on(
        commons: Rc<Commons>,
        limits: Limits,
        addressing: Addressing,
        counters: Arc<Counters>,
        dialer: Arc<Script>,
    ) -> Self {
        let device = Device { mtu: 1500, offload: Offload::NONE };
        let (link, far) = Link::in_memory(device, Arc::clone(&counters), Rc::clone(&commons));
        let questions = Questions::new(Arc::clone(&dialer) as Arc<dyn Dialer>, limits.dial_timeout);
        let descriptors = descriptors::testing::plenty();
        let parts = Parts { questions, limits, clock: Clock::start(), counters, descriptors };
        let context = Context::new(link, addressing, parts, commons);
        Self { context, far, dialer }
    }

    /// A name server that knows no names and asks no server.
    pub(crate) fn name_server(&self) -> dns::NameServer {
        let terms = dns::Terms {
            upstreams: dns::Upstreams::Fixed(Vec::new()),
            hosts: Arc::default(),
            resolver: None,
            containers: None,
        };
        terms.server(dns::Places::new(1, 1), descriptors::testing::plenty())
    }

    /// The packets that the container has received since the last call.
    pub(crate) fn received(&self) -> Vec<Vec<u8>> {
        let packet = |frame: Vec<u8>| vnet::Header::split(&frame).unwrap().1.to_vec();
        std::iter::from_fn(|| self.far.receive()).map(packet).collect()
    }
}

fn addressing() -> Addressing {
    Addressing {
        v4: Some(Ipv4Subnet::default().into()),
        v6: Some(Ipv6Subnet::default().into()),
        host: OpenHost::default(),
    }
}

/// Runs a test whose tasks stay on its thread.
pub(crate) async fn locally(test: impl AsyncFnOnce()) {
    LocalSet::new().run_until(test()).await;
}

/// Lets every ready task run.
pub(crate) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Reads a packet that the test has built.
#[track_caller]
pub(crate) fn parsed(bytes: &[u8]) -> Packet<'_> {
    Packet::parse(&vnet::Header::default(), bytes).unwrap()
}

/// A Dialer that answers when and as the test says.
#[derive(Default)]
pub(crate) struct Script {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    /// The questions so far, in the words of [`Flow`] and [`Inbound`].
    questions: Vec<String>,
    /// The far ends of the streams that were dialled.
    streams: VecDeque<DuplexStream>,
    /// The sockets that were bound.
    sockets: Vec<Arc<Socket>>,
}

/// The answer to a question.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Allow,
    Refuse(DialError),
    Panic,
}

impl Script {
    /// Answers the next question that has no answer yet.
    pub(crate) fn answer(&self, answer: Answer) {
        self.state.lock().unwrap().answers.push_back(answer);
        self.changed.notify_waiters();
    }

    /// The questions so far.
    pub(crate) fn questions(&self) -> Vec<String> {
        self.state.lock().unwrap().questions.clone()
    }

    /// The far end of the next stream that was dialled.
    #[track_caller]
    pub(crate) fn stream(&self) -> DuplexStream {
        self.state.lock().unwrap().streams.pop_front().expect("a stream was dialled")
    }

    /// The far ends of the streams that were dialled since the last call.
    pub(crate) fn streams(&self) -> Vec<DuplexStream> {
        self.state.lock().unwrap().streams.drain(..).collect()
    }

    /// The only socket that was bound.
    #[track_caller]
    pub(crate) fn socket(&self) -> Arc<Socket> {
        let [ref socket] = self.state.lock().unwrap().sockets[..] else { panic!("one socket was bound") };
        Arc::clone(socket)
    }

    async fn decide(&self, question: String) -> Result<(), DialError> {
        self.state.lock().unwrap().questions.push(question);
        loop {
            let changed = self.changed.notified();
            let answer = self.state.lock().unwrap().answers.pop_front();
            match answer {
                Some(Answer::Allow) => return Ok(()),
                Some(Answer::Refuse(error)) => return Err(error),
                Some(Answer::Panic) => panic!("as the test wants"),
                None => changed.await,
            }
        }
    }
}

#[async_trait]
impl Dialer for Script {
    fn inner(&self) -> &dyn Dialer {
        &DenyDialer
    }

    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        self.decide(flow.to_string()).await
    }

    async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
        self.decide(inbound.to_string()).await
    }

    async fn dial_tcp(&self, _: &Flow) -> Result<Stream, DialError> {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.state.lock().unwrap().streams.push_back(far);
        Ok(Stream::new(near))
    }

    async fn bind_udp(&self, _: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        let socket = Arc::<Socket>::default();
        self.state.lock().unwrap().sockets.push(Arc::clone(&socket));
        Ok(Box::new(Handle(socket)))
    }

    async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.bind_udp(source).await
    }
}

/// An upstream socket in memory.
#[derive(Default)]
pub(crate) struct Socket {
    state: Mutex<SocketState>,
    changed: Notify,
}

#[derive(Default)]
struct SocketState {
    sent: Vec<(SocketAddr, Bytes)>,
    incoming: VecDeque<(SocketAddr, Bytes)>,
    /// Reports that it is readable even when it is empty.
    lies: bool,
    /// Panics when it is given something to send.
    is_broken: bool,
    attempts: usize,
}

impl Socket {
    /// The datagrams that the container has sent since the last call, with their destinations.
    pub(crate) fn sent(&self) -> Vec<(SocketAddr, Bytes)> {
        std::mem::take(&mut self.state.lock().unwrap().sent)
    }

    /// Sends a datagram as a peer.
    pub(crate) fn send(&self, source: &str, datagram: &'static [u8]) {
        let datagram = (source.parse().unwrap(), Bytes::from_static(datagram));
        self.state.lock().unwrap().incoming.push_back(datagram);
        self.changed.notify_waiters();
    }

    /// From now on reports that it is readable, and is empty.
    pub(crate) fn lie(&self) {
        self.state.lock().unwrap().lies = true;
        self.changed.notify_waiters();
    }

    /// Panics from now on when it is given something to send.
    pub(crate) fn break_down(&self) {
        self.state.lock().unwrap().is_broken = true;
    }

    /// The number of attempts to receive datagrams.
    pub(crate) fn attempts(&self) -> usize {
        self.state.lock().unwrap().attempts
    }
}

struct Handle(Arc<Socket>);

#[async_trait]
impl DatagramSocket for Handle {
    async fn readable(&self) -> io::Result<()> {
        loop {
            let changed = self.0.changed.notified();
            {
                let state = self.0.state.lock().unwrap();
                if state.lies || !state.incoming.is_empty() {
                    return Ok(());
                }
            }
            changed.await;
        }
    }

    fn try_receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut state = self.0.state.lock().unwrap();
        state.attempts += 1;
        let (source, datagram) = state.incoming.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        buffer[..datagram.len()].copy_from_slice(&datagram);
        Ok(Received::datagram(datagram.len(), source))
    }

    fn try_send(&self, datagrams: Datagrams<'_>, envelope: &Envelope) -> io::Result<()> {
        let is_broken = self.0.state.lock().unwrap().is_broken;
        assert!(!is_broken, "as the test wants it");
        let copies = datagrams.iter().map(|bytes| (envelope.destination, Bytes::copy_from_slice(bytes)));
        self.0.state.lock().unwrap().sent.extend(copies);
        Ok(())
    }
}
