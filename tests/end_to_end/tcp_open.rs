//! How a connection opens, and what the container sees when it does not.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use nix::errno::Errno;
use nsnet::host::{DenyDialer, DialError, Dialer, DirectDialer, FilterDialer, Flow, Network, Stream};
use socket2::{Domain, Socket, Type};

use crate::world::{
    ABSENT, AT_ONCE, Container, GATEWAY, HOST, NOWHERE, PATIENCE, SERVER, SILENT, World, accept,
    assert_errno, errno, eventually, in_both_carriages, resident_memory, server, timed, within,
};

in_both_carriages! {
    connection_opens_and_echoes_over_ipv4_and_ipv6,
    connection_opens_only_after_the_dial,
    refused_dial_is_refused_at_once,
    forbidden_destination_fails_at_once,
    deny_dialer_refuses_everything,
    absent_host_is_unreachable,
    missing_route_is_an_unreachable_network,
    dial_errors_are_seen_as_on_a_real_network,
    timed_out_dial_is_silence,
    addresses_of_the_host_are_refused,
    host_loopback_is_reached_when_asked_for,
    tuple_in_time_wait_opens_again_at_once,
    connects_to_a_silent_address_do_not_pile_up,
}

fn connection_opens_and_echoes_over_ipv4_and_ipv6(world: &World) {
    let container = world.container();
    for address in SERVER {
        let mut stream = container.connect(server::tcp_echo(world.listen(address))).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut reply = [0; 5];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"hello");
    }
}

/// The container must not be told "connected" before the world is.
fn connection_opens_only_after_the_dial(world: &World) {
    let delay = Duration::from_millis(300);
    let container = world.container_of(Network::builder().dialer(Slow { delay }));
    let address = server::tcp_echo(world.listen(SERVER[0]));
    let (took, stream) = timed(|| container.connect(address));
    stream.unwrap();
    assert!(took >= delay, "connected after {took:?}");
}

fn refused_dial_is_refused_at_once(world: &World) {
    let container = world.container();
    for address in SERVER {
        let closed = world.closed(address);
        within(AT_ONCE, || assert_errno(container.connect(closed), Errno::ECONNREFUSED));
    }
}

fn forbidden_destination_fails_at_once(world: &World) {
    let listeners = SERVER.map(|address| world.listen(address));
    let forbidden = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    let filter = FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        if forbidden.contains(&flow.destination) { Err(DialError::Prohibited) } else { Ok(()) }
    });
    let container = world.container_of(Network::builder().dialer(filter));
    within(AT_ONCE, || assert_errno(container.connect(forbidden[0]), Errno::EHOSTUNREACH));
    within(AT_ONCE, || assert_errno(container.connect(forbidden[1]), Errno::EACCES));
    for (listener, address) in listeners.iter().zip(SERVER) {
        assert_not_reached(listener);
        container.connect(server::tcp_echo(world.listen(address))).unwrap();
    }
}

fn deny_dialer_refuses_everything(world: &World) {
    let container = world.container_of(Network::builder().dialer(DenyDialer));
    for address in SERVER {
        let listener = world.listen(address);
        within(AT_ONCE, || container.connect(listener.local_addr().unwrap())).expect_err("it is denied");
        assert_not_reached(&listener);
    }
}

/// The kernel asks three times for the neighbour's hardware address, a second apart.
fn absent_host_is_unreachable(world: &World) {
    let container = world.container();
    for address in ABSENT {
        assert_errno(container.connect((address, 80).into()), Errno::EHOSTUNREACH);
    }
}

fn missing_route_is_an_unreachable_network(world: &World) {
    let container = world.container();
    for address in NOWHERE {
        within(AT_ONCE, || assert_errno(container.connect((address, 80).into()), Errno::ENETUNREACH));
    }
}

fn dial_errors_are_seen_as_on_a_real_network(world: &World) {
    let container = world.container_of(Network::builder().dialer(Fails));
    for (port, errors) in [
        (1, [Errno::ECONNREFUSED, Errno::ECONNREFUSED]),
        (2, [Errno::EHOSTUNREACH, Errno::EHOSTUNREACH]),
        (3, [Errno::ENETUNREACH, Errno::ENETUNREACH]),
        (4, [Errno::EHOSTUNREACH, Errno::EACCES]),
    ] {
        for (address, expected) in SERVER.into_iter().zip(errors) {
            within(AT_ONCE, || assert_errno(container.connect((address, port).into()), expected));
        }
    }
}

fn timed_out_dial_is_silence(world: &World) {
    let container = world.container_of(Network::builder().dialer(Fails));
    for address in SERVER {
        // Long enough for a second SYN.
        let limit = Duration::from_millis(1500);
        let error = container.connect_within((address, 5).into(), limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}

fn addresses_of_the_host_are_refused(world: &World) {
    let container = world.container();
    let at_loopback = [IpAddr::from([127, 0, 0, 1]), "::1".parse().unwrap()];
    for (listens, dialed) in HOST.into_iter().zip(HOST).chain(at_loopback.into_iter().zip(GATEWAY)) {
        let listener = TcpListener::bind((listens, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        within(AT_ONCE, || container.connect((dialed, port).into())).expect_err("it is the host's");
        assert_not_reached(&listener);
    }
}

fn host_loopback_is_reached_when_asked_for(world: &World) {
    let container = world.container_of(Network::builder().host_loopback());
    for (listens, dialed) in [("127.0.0.1", GATEWAY[0]), ("::1", GATEWAY[1])] {
        let listener = TcpListener::bind((listens, 0)).unwrap();
        let port = server::tcp_echo(listener).port();
        let mut stream = container.connect((dialed, port).into()).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    // The other addresses of the host stay its own.
    let listener = TcpListener::bind((HOST[0], 0)).unwrap();
    within(AT_ONCE, || container.connect(listener.local_addr().unwrap())).expect_err("it is the host's");
    assert_not_reached(&listener);
}

/// The server closes first, so that the end of the connection that waits is on the host.
fn tuple_in_time_wait_opens_again_at_once(world: &World) {
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let to = listener.local_addr().unwrap();
    thread::spawn(move || {
        loop {
            accept(&listener).write_all(b"bye").unwrap();
        }
    });
    let mut port = 0;
    for _ in 0..5 {
        let mut stream = within(AT_ONCE, || connect_from(&container, port, to)).unwrap();
        port = stream.local_addr().unwrap().as_socket().unwrap().port();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, "bye");
    }
}

fn connects_to_a_silent_address_do_not_pile_up(world: &World) {
    let dial_timeout = Duration::from_secs(2);
    let container = world.container_of(Network::builder().dial_timeout(dial_timeout));
    let before = resident_memory();
    container.inside(|| {
        for _ in 0..5000 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let result = socket.connect(&SocketAddr::from((SILENT, 80)).into());
            assert_errno(result, Errno::EINPROGRESS);
        }
    });
    let grown = resident_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    eventually("the dials are given up", || container.network().statistics().tcp.active == 0);
    container.connect(server::tcp_echo(world.listen(SERVER[0]))).unwrap();
}

/// A connection from a local port that may have been used just before; 0 is any. As long as the container's own
/// end of the old connection waits for its last acknowledgement, its kernel says `EADDRNOTAVAIL`.
fn connect_from(container: &Container, port: u16, to: SocketAddr) -> io::Result<Socket> {
    loop {
        let socket = container.inside(|| Socket::new(Domain::for_address(to), Type::STREAM, None))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into())?;
        match socket.connect_timeout(&to.into(), PATIENCE) {
            Err(error) if errno(&error) == Errno::EADDRNOTAVAIL => thread::yield_now(),
            result => return result.map(|()| socket),
        }
    }
}

/// Nothing has come to `listener`.
#[track_caller]
fn assert_not_reached(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    assert_errno(listener.accept(), Errno::EWOULDBLOCK);
}

/// Dials after a while.
struct Slow {
    delay: Duration,
}

#[async_trait]
impl Dialer for Slow {
    fn inner(&self) -> &dyn Dialer {
        &DIRECT
    }

    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        tokio::time::sleep(self.delay).await;
        DIRECT.dial_tcp(flow).await
    }
}

static DIRECT: DirectDialer = DirectDialer::new();

/// Fails in the way that the port asks for.
struct Fails;

#[async_trait]
impl Dialer for Fails {
    fn inner(&self) -> &dyn Dialer {
        &DIRECT
    }

    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        Err(match flow.destination.port() {
            1 => DialError::Refused,
            2 => DialError::HostUnreachable,
            3 => DialError::NetworkUnreachable,
            4 => DialError::Prohibited,
            _ => DialError::TimedOut,
        })
    }
}
