mod windows;

use std::net::SocketAddr;
use std::time::Duration;

use nsnet_proto::vnet;
use nsnet_stack::packet::{Packet, Transport};
use nsnet_stack::tcp::{Capabilities, Client, Transmit};
use smoltcp::socket::tcp as smoltcp_tcp;
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, Ipv4Packet, TcpPacket};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::context::Limits;
use crate::context::testing::{Answer, Bench, CONTAINER, PEER, locally, parsed, settle};
use crate::dialer::DialError;

const LINK: Capabilities = Capabilities { max_packet: 1500, segmentation: false, checksum: true };

/// A table, and a container that opens connections with a stack of its own.
struct World {
    bench: Bench,
    table: Rc<Table>,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        Self::of(Bench::with(limits))
    }

    fn of(bench: Bench) -> Self {
        let table = Table::new(Rc::clone(&bench.context), Rc::new(bench.name_server()));
        Self { bench, table }
    }

    /// An open connection of the container, and the far end of its stream.
    async fn connected(&self) -> (Container<'_>, DuplexStream) {
        self.bench.dialer.answer(Answer::Allow);
        let mut client = self.client(4000);
        settle().await;
        client.exchange();
        (client, self.bench.dialer.stream())
    }

    /// A client of the container on this port that has sent its SYN.
    fn client(&self, port: u16) -> Container<'_> {
        let mut container: SocketAddr = CONTAINER.parse().unwrap();
        container.set_port(port);
        let key = FlowKey { container, peer: PEER.parse().unwrap() };
        let buffer = || smoltcp_tcp::SocketBuffer::new(vec![0; 64 << 10]);
        let socket = smoltcp_tcp::Socket::new(buffer(), buffer());
        let now = self.bench.context.clock.smoltcp(self.bench.context.clock.now());
        let mut client = Container { world: self, key, client: Client::connect(key, socket, LINK, 7, now) };
        client.exchange();
        client
    }
}

/// One connection of the container.
struct Container<'w> {
    world: &'w World,
    key: FlowKey,
    client: Client,
}

impl Container<'_> {
    /// Lets packets travel until neither end has anything to send.
    fn exchange(&mut self) {
        loop {
            let up = self.send();
            let down = self.receive();
            if !up && !down {
                return;
            }
        }
    }

    fn send(&mut self) -> bool {
        let mut sent = Sent::default();
        let context = &self.world.bench.context;
        while self.client.poll_transmit(context.clock.smoltcp(context.clock.now()), &mut sent) {}
        let any = !sent.0.is_empty();
        for bytes in sent.0 {
            self.deliver(&bytes);
        }
        any
    }

    fn deliver(&self, bytes: &[u8]) {
        let Transport::Tcp(segment) = parsed(bytes).transport else { panic!("not TCP") };
        if !self.world.table.handle(self.key, &segment, bytes) {
            self.world.table.answer_stray(self.key, &segment);
        }
    }

    fn receive(&mut self) -> bool {
        let received = self.world.bench.received();
        let context = &self.world.bench.context;
        for packet in &received {
            self.client.handle_packet(
                context.clock.smoltcp(context.clock.now()),
                packet,
                &mut Sent::default(),
            );
        }
        !received.is_empty()
    }

    fn state(&mut self) -> smoltcp_tcp::State {
        self.client.socket().state()
    }
}

/// A link that takes every packet.
#[derive(Default)]
struct Sent(Vec<Vec<u8>>);

impl Transmit for Sent {
    fn is_ready(&self) -> bool {
        true
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.0.push(packet);
        result
    }
}

/// The code of the ICMP destination-unreachable message in a packet.
#[track_caller]
fn unreachable_code(packet: &[u8]) -> u8 {
    let ip = Ipv4Packet::new_checked(packet).unwrap();
    let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
    message.msg_code()
}

#[tokio::test(start_paused = true)]
async fn connected_means_connected_upstream() {
    locally(async || {
        let world = World::new();
        let mut client = world.client(4000);
        settle().await;
        assert_eq!(world.bench.dialer.questions(), ["tcp 10.0.2.100:4000 -> 10.99.0.2:80"]);
        client.exchange();
        assert_eq!(client.state(), smoltcp_tcp::State::SynSent, "the SYN is held");
        world.bench.dialer.answer(Answer::Allow);
        settle().await;
        client.exchange();
        assert_eq!(client.state(), smoltcp_tcp::State::Established);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bytes_and_ends_travel_both_ways() {
    locally(async || {
        let world = World::new();
        let (mut client, mut stream) = world.connected().await;
        client.client.socket().send_slice(b"question").unwrap();
        client.client.socket().close();
        client.exchange();
        let mut question = String::new();
        stream.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        settle().await;
        client.exchange();
        let mut answer = [0; 16];
        let length = client.client.socket().recv_slice(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"answer");
        // The last acknowledgment may be delayed.
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.exchange();
        settle().await;
        assert!(world.table.tuples.borrow().is_empty(), "the container has the TIME-WAIT");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failures_look_as_on_a_real_network() {
    locally(async || {
        for (error, code) in [
            (DialError::HostUnreachable, 1),
            (DialError::NetworkUnreachable, 0),
            (DialError::Prohibited, 13),
            (DialError::other("no more of them"), 1),
        ] {
            let world = World::new();
            let _client = world.client(4000);
            world.bench.dialer.answer(Answer::Refuse(error));
            settle().await;
            let [ref packet] = world.bench.received()[..] else { panic!("one answer") };
            assert_eq!(unreachable_code(packet), code);
            assert!(world.table.tuples.borrow().is_empty());
        }
        let world = World::new();
        let mut client = world.client(4000);
        world.bench.dialer.answer(Answer::Refuse(DialError::Refused));
        settle().await;
        client.exchange();
        assert_eq!(client.state(), smoltcp_tcp::State::Closed, "RST");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dialer_that_panics_has_answered() {
    locally(async || {
        let world = World::new();
        let mut client = world.client(4000);
        world.bench.dialer.answer(Answer::Panic);
        settle().await;
        let [ref packet] = world.bench.received()[..] else { panic!("one answer") };
        assert_eq!(unreachable_code(packet), 1);
        assert!(world.table.tuples.borrow().is_empty());
        client.exchange();
        assert_eq!(world.bench.context.counters.read().tcp.refused, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dialer_that_never_answers_is_given_up_in_silence() {
    locally(async || {
        let world = World::new();
        let _client = world.client(4000);
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert_eq!(world.table.tuples.borrow().len(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(world.table.tuples.borrow().is_empty());
        assert!(world.bench.received().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_syn_is_absorbed_and_a_reset_takes_it_back() {
    locally(async || {
        let world = World::new();
        let mut client = world.client(4000);
        settle().await;
        // smoltcp repeats its SYN after a second.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert!(client.send());
        }
        settle().await;
        assert_eq!(world.bench.dialer.questions().len(), 1);
        let Some(sequence) = world.table.held_syn(&client.key) else { panic!("it is held") };
        let reset = Segment {
            control: Control::Reset,
            sequence: sequence + 1,
            acknowledgment: None,
            length: 0,
            payload: 0,
            max_segment_size: None,
            scales_windows: false,
        };
        assert!(world.table.handle(client.key, &reset, &[]));
        assert!(world.table.tuples.borrow().is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_syn_beyond_the_limit_is_dropped() {
    locally(async || {
        let world = World::with(Limits { tcp_flows: 2, ..Limits::default() });
        let _clients: Vec<_> = (4000..4003).map(|port| world.client(port)).collect();
        settle().await;
        assert_eq!(world.bench.dialer.questions().len(), 2);
        assert!(world.bench.received().is_empty());
        assert_eq!(world.bench.context.counters.read().tcp.overflowed, 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_segment_of_no_connection_is_answered_with_reset() {
    locally(async || {
        let world = World::new();
        let key = FlowKey { container: CONTAINER.parse().unwrap(), peer: PEER.parse().unwrap() };
        let reversed = FlowKey { container: key.peer, peer: key.container };
        let bytes = tcp::acknowledgment(reversed, TcpSeqNumber(5), TcpSeqNumber(9), 0);
        let Transport::Tcp(segment) = parsed(&bytes).transport else { panic!("not TCP") };
        assert!(!world.table.handle(key, &segment, &bytes), "nobody's");
        world.table.answer_stray(key, &segment);
        let [ref answer] = world.bench.received()[..] else { panic!("one answer") };
        let packet = Packet::parse(&vnet::Header::default(), answer).unwrap();
        let reset = TcpPacket::new_checked(&packet.bytes[packet.ip_header_len..]).unwrap();
        assert!(reset.rst());
        assert_eq!(reset.seq_number(), TcpSeqNumber(9));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_link_holds_one_frame_and_goes_on() {
    locally(async || {
        let world = World::new();
        let (mut client, mut stream) = world.connected().await;
        world.bench.far.set_full(true);
        stream.write_all(&[7; 20_000]).await.unwrap();
        settle().await;
        assert!(world.bench.received().is_empty());
        world.bench.far.set_full(false);
        let mut arrived = 0;
        while arrived < 20_000 {
            settle().await;
            client.exchange();
            let mut buffer = [0; 20_000];
            arrived += client.client.socket().recv_slice(&mut buffer).unwrap_or(0);
        }
        assert_eq!(arrived, 20_000);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_falls_silent_in_the_middle_is_reset() {
    locally(async || {
        let world = World::new();
        let (_client, mut stream) = world.connected().await;
        stream.write_all(b"anybody?").await.unwrap();
        // RFC 5382, 5: five minutes without an acknowledgment.
        tokio::time::sleep(Duration::from_secs(310)).await;
        settle().await;
        assert!(world.table.tuples.borrow().is_empty());
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "the stream has ended");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_descriptor_is_dropped_and_an_end_makes_room() {
    locally(async || {
        let world = World::of(Bench::with_descriptors(2));
        let clients = [4000, 4001, 4002].map(|port| world.client(port));
        settle().await;
        let counted = || world.bench.context.counters.read().tcp;
        assert_eq!((counted().opened, counted().overflowed), (2, 1));
        world.bench.dialer.answer(Answer::Refuse(DialError::Refused));
        settle().await;
        drop(clients);
        world.client(4003);
        assert_eq!((counted().opened, counted().overflowed), (3, 1));
    })
    .await;
}
