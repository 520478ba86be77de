//! What a Dialer is told, and what an embedder can make of it.

use std::io::{Read, Write};
use std::sync::mpsc;

use async_trait::async_trait;
use nsnet::host::{DialError, Dialer, DirectDialer, FilterDialer, Flow, Network, Protocol, Stream};

use crate::world::{GATEWAY, PATIENCE, SERVER, World, assert_errno, eventually, in_both_carriages, server};
use nix::errno::Errno;

in_both_carriages! {
    dialer_is_told_both_ends_of_every_flow,
    dialer_is_told_where_the_gateway_leads,
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
        Ok(Stream::new(near))
    }
}

static DIRECT: DirectDialer = DirectDialer::new();
