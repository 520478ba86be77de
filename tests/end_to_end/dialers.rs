//! What a Dialer is told, and what an embedder can make of it.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nsnet::host::{
    ByteStream, DialError, Dialer, DirectDialer, FilterDialer, Flow, Inbound, Network, Protocol, Publish,
    Stream,
};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::echo::allow_ping_sockets;
use crate::world::{
    AT_ONCE, GATEWAY, HOST, OTHER_SERVER, PATIENCE, SERVER, World, accept, assert_errno, eventually,
    in_both_carriages, output, server, within,
};

in_both_carriages! {
    dialer_is_told_both_ends_of_every_flow,
    dialer_is_told_where_the_gateway_leads,
    wrapper_that_overrides_only_dial_tcp_keeps_the_inner_policy_and_ping,
    resets_pass_through_a_stream_that_wraps_another,
    stream_of_the_embedders_own_is_carried,
    panicking_dialer_ends_its_own_flow_only,
    statistics_count_flows_and_bytes,
}

fn dialer_is_told_both_ends_of_every_flow(world: &World) {
    let (told, flows) = mpsc::channel();
    let container = world.container_of(Network::builder().dialer(telling(told)));
    for address in SERVER {
        let echo = server::tcp_echo(world.listen(address));
        let stream = container.connect(echo).unwrap();
        let flow = flows.recv_timeout(PATIENCE).unwrap();
        assert_eq!(flow.protocol, Protocol::Tcp);
        assert_eq!(flow.source, stream.local_addr().unwrap());
        assert_eq!((flow.destination, flow.target), (echo, echo));

        let echo = server::udp_echo(world.udp(address));
        let socket = container.udp(echo);
        for _ in 0..2 {
            socket.send(b"hello").unwrap();
            socket.recv(&mut [0; 16]).unwrap();
        }
        let flow = flows.recv_timeout(PATIENCE).unwrap();
        assert_eq!(flow.protocol, Protocol::Udp);
        assert_eq!(flow.source, socket.local_addr().unwrap());
        assert_eq!((flow.destination, flow.target), (echo, echo));
        assert_eq!(flows.try_recv(), Err(mpsc::TryRecvError::Empty), "asked once for a flow");
    }
}

fn dialer_is_told_where_the_gateway_leads(world: &World) {
    let (told, flows) = mpsc::channel();
    let container = world.container_of(Network::builder().host_loopback().dialer(telling(told)));
    let local = server::tcp_echo(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    container.connect((GATEWAY[0], local.port()).into()).unwrap();
    let flow = flows.recv_timeout(PATIENCE).unwrap();
    assert_eq!(flow.destination, (GATEWAY[0], local.port()).into());
    assert_eq!(flow.target, local);
}

fn wrapper_that_overrides_only_dial_tcp_keeps_the_inner_policy_and_ping(world: &World) {
    allow_ping_sockets();
    let dialer = Arc::new(Wrapping::new(Policy, Stream::from_byte_stream));
    let container = world.container_of(Network::builder().dialer(Arc::clone(&dialer)));

    let echo = server::tcp_echo(world.listen(SERVER[0]));
    let mut stream = container.connect(echo).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    assert_errno(container.connect(server::tcp_echo(world.listen(OTHER_SERVER))), Errno::EHOSTUNREACH);
    assert_eq!(dialer.dialed.load(Relaxed), 1, "what the policy forbids is not dialed");

    let socket = container.udp(server::udp_echo(world.udp(SERVER[0])));
    socket.send(b"hello").unwrap();
    assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 5);
    let forbidden = container.udp(server::udp_echo(world.udp(OTHER_SERVER)));
    forbidden.send(b"hello").unwrap();
    assert_errno(forbidden.recv(&mut [0; 16]), Errno::EHOSTUNREACH);

    for address in SERVER {
        let options = ["-n", "-c", "1", "-W", "10"];
        let said = output(container.command("ping").args(options).arg(address.to_string()));
        assert!(said.contains(" 1 received"), "{said}");
    }

    let inside = container.listen(HOST[0]);
    let publish = Publish::tcp((HOST[0], 0), inside.local_addr().unwrap().port());
    let published = container.network().publish(publish).unwrap();
    let client = world.in_server(|| TcpStream::connect_timeout(&published.addresses()[0], PATIENCE));
    assert_errno(client.and_then(|mut client| client.read(&mut [0])), Errno::ECONNRESET);
    assert_eq!(container.network().statistics().published.refused, 1);
}

fn resets_pass_through_a_stream_that_wraps_another(world: &World) {
    let container =
        world.container_of(Network::builder().dialer(Wrapping::new(Policy, Stream::from_byte_stream)));
    for address in SERVER {
        let listener = world.listen(address);
        let connect = || (container.connect(listener.local_addr().unwrap()).unwrap(), accept(&listener));
        let (ours, mut theirs) = connect();
        reset(ours);
        within(AT_ONCE, || assert_errno(theirs.read(&mut [0; 1]), Errno::ECONNRESET));
        let (mut ours, theirs) = connect();
        reset(theirs);
        within(AT_ONCE, || assert_errno(ours.read(&mut [0; 1]), Errno::ECONNRESET));
    }
    // What does not say how it is aborted is dropped.
    let plain = world.container_of(Network::builder().dialer(Wrapping::new(Policy, Stream::new)));
    let listener = world.listen(SERVER[0]);
    let ours = plain.connect(listener.local_addr().unwrap()).unwrap();
    let mut theirs = accept(&listener);
    reset(ours);
    within(AT_ONCE, || assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0));
}

fn stream_of_the_embedders_own_is_carried(world: &World) {
    let container = world.container_of(Network::builder().dialer(Echo));
    let mut stream = container.connect((SERVER[0], 7).into()).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, "hello");
}

fn panicking_dialer_ends_its_own_flow_only(world: &World) {
    let fragile = FilterDialer::new(DirectDialer::new(), |flow: &Flow| {
        assert_ne!(flow.destination.port(), 13, "unlucky");
        Ok(())
    });
    let container = world.container_of(Network::builder().dialer(fragile));
    let echo = server::tcp_echo(world.listen(SERVER[0]));
    let mut before = container.connect(echo).unwrap();
    container.connect((SERVER[0], 13).into()).expect_err("nobody has dialed");
    before.write_all(b"still here").unwrap();
    before.read_exact(&mut [0; 10]).unwrap();
    container.connect(echo).unwrap();
}

fn statistics_count_flows_and_bytes(world: &World) {
    const LENGTH: u64 = 1000;
    let container = world.container();
    let tcp = server::tcp_echo(world.listen(SERVER[0]));
    let udp = server::udp_echo(world.udp(SERVER[0]));
    let open: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = container.connect(tcp).unwrap();
            stream.write_all(&[0; 1000]).unwrap();
            stream.read_exact(&mut [0; 1000]).unwrap();
            stream
        })
        .collect();
    assert_errno(container.connect(world.closed(SERVER[0])), Errno::ECONNREFUSED);
    for _ in 0..2 {
        let socket = container.udp(udp);
        socket.send(&[0; 1000]).unwrap();
        socket.recv(&mut [0; 1000]).unwrap();
    }
    // A packet is counted once it is sent, which may be after it was received.
    eventually("all bytes are counted", || container.network().statistics().bytes_to_container > 5 * LENGTH);
    let statistics = container.network().statistics();
    assert_eq!((statistics.tcp.opened, statistics.tcp.active, statistics.tcp.refused), (4, 3, 1));
    assert_eq!((statistics.udp.opened, statistics.udp.active, statistics.udp.refused), (2, 2, 0));
    assert!(statistics.bytes_from_container > 5 * LENGTH, "{statistics:?}");
    assert!(statistics.packets_from_container >= 5, "{statistics:?}");
    assert!(statistics.packets_to_container >= 5, "{statistics:?}");
    drop(open);
    eventually("no connection is left", || container.network().statistics().tcp.active == 0);
    assert_eq!(container.network().statistics().tcp.opened, 4);
}

/// A Dialer that tells of each flow it is asked about.
fn telling(told: mpsc::Sender<Flow>) -> impl Dialer {
    FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        told.send(flow.clone()).unwrap();
        Ok(())
    })
}

/// Answers every connection by itself.
struct Echo;

#[async_trait]
impl Dialer for Echo {
    fn inner(&self) -> &dyn Dialer {
        &DIRECT
    }

    async fn dial_tcp(&self, _flow: &Flow) -> Result<Stream, DialError> {
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let (mut reader, mut writer) = tokio::io::split(far);
            tokio::io::copy(&mut reader, &mut writer).await
        });
        Ok(near.into())
    }
}

static DIRECT: DirectDialer = DirectDialer::new();

/// Keeps everybody from one server, and clients out.
struct Policy;

#[async_trait]
impl Dialer for Policy {
    fn inner(&self) -> &dyn Dialer {
        &DIRECT
    }

    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        if flow.destination.ip() == OTHER_SERVER { Err(DialError::Prohibited) } else { Ok(()) }
    }

    async fn accept(&self, _inbound: &Inbound) -> Result<(), DialError> {
        Err(DialError::Prohibited)
    }
}

/// Wraps the streams of another Dialer, and counts them.
struct Wrapping<D> {
    inner: D,
    wrap: fn(Wrapped) -> Stream,
    dialed: AtomicUsize,
}

impl<D: Dialer> Wrapping<D> {
    fn new(inner: D, wrap: fn(Wrapped) -> Stream) -> Self {
        Self { inner, wrap, dialed: AtomicUsize::new(0) }
    }
}

#[async_trait]
impl<D: Dialer> Dialer for Wrapping<D> {
    fn inner(&self) -> &dyn Dialer {
        &self.inner
    }

    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        self.dialed.fetch_add(1, Relaxed);
        Ok((self.wrap)(Wrapped(self.inner.dial_tcp(flow).await?)))
    }
}

/// A stream as loggers and limiters are.
struct Wrapped(Stream);

impl ByteStream for Wrapped {
    fn abort(self: Box<Self>) {
        self.0.abort();
    }
}

impl AsyncRead for Wrapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wrapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Ends the connection with a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}
