use nsnet_proto::vnet;
use nsnet_stack::icmp::HOP_LIMIT;
use nsnet_stack::icmp::echo::{self, Headers, Message as Echo};
use nsnet_stack::tcp;
use nsnet_stack::udp::packet::{self, ChecksumMode};
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpSeqNumber};
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

mod any_frames;
mod ending;
mod frames;
mod packets;
mod several;

use super::*;
use several::Several;

use crate::context::testing::{Answer, Bench, CONTAINER, PEER, settle};

/// A gateway with its link in memory, served by its own tasks.
struct World {
    bench: Bench,
    gateway: Rc<Gateway>,
}

impl World {
    fn new() -> Self {
        Self::of(Bench::new(), Isolation::Isolated, None)
    }

    fn of(bench: Bench, isolation: Isolation, siblings: Option<Siblings>) -> Self {
        let protocols = Protocols::new(Rc::clone(&bench.context), bench.name_server());
        Self { gateway: Gateway::new(protocols, isolation, siblings), bench }
    }

    /// Serves until `test` has ended.
    async fn serve(&self, test: impl Future<Output = ()>) {
        let (end, finish) = (std::pin::pin!(test), future::pending());
        self.gateway.run(end, finish, drop).await;
    }

    /// Sends a packet without offloads, as the container.
    fn send(&self, packet: &[u8]) {
        self.bench.far.send(&[&vnet::Header::default().to_bytes()[..], packet].concat());
    }

    fn discarded(&self) -> crate::DiscardStatistics {
        self.bench.context.counters.read().discarded
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn run(test: impl AsyncFnOnce(&World)) {
    let world = World::new();
    LocalSet::new().block_on(&runtime(), world.serve(test(&world)));
}

fn datagram(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut bytes = vec![0; packet::length(source, payload.len())];
    packet::write(&mut bytes, source, destination, payload, ChecksumMode::Full);
    bytes
}

/// The protocol of each packet that the container has received.
fn protocols(world: &World) -> Vec<IpProtocol> {
    let packets = world.bench.received();
    packets.iter().map(|packet| Ipv4Packet::new_checked(&packet[..]).unwrap().next_header()).collect()
}

#[test]
fn each_packet_goes_to_its_protocol() {
    run(async |world| {
        world.bench.dialer.answer(Answer::Allow);
        world.send(&datagram(CONTAINER, PEER, b"datagram"));
        settle().await;
        assert_eq!(world.bench.dialer.socket().sent().len(), 1);
        // A segment of no connection is answered with RST, and a ping of the gateway by the gateway.
        let key =
            nsnet_stack::flow::FlowKey { container: PEER.parse().unwrap(), peer: CONTAINER.parse().unwrap() };
        world.send(&tcp::acknowledgment(key, TcpSeqNumber(1), TcpSeqNumber(2), 0));
        settle().await;
        assert_eq!(protocols(world), [IpProtocol::Tcp]);
        let (source, destination) = ("10.0.2.100".parse().unwrap(), "10.0.2.2".parse().unwrap());
        let headers =
            Headers { message: Echo::Request, source, destination, hop_limit: HOP_LIMIT, identifier: 7 };
        let mut request = vec![0; echo::length(source, 10)];
        echo::write(&mut request, headers, &[0; 10]);
        world.send(&request);
        settle().await;
        assert_eq!(protocols(world), [IpProtocol::Icmp]);
        assert_eq!(world.discarded(), Default::default());
    });
}

#[test]
fn fragments_are_put_together_or_forgotten() {
    run(async |world| {
        world.bench.dialer.answer(Answer::Allow);
        let whole = datagram(CONTAINER, PEER, &[7; 4000]);
        for identification in [1, 2] {
            let source = CONTAINER.parse::<std::net::SocketAddr>().unwrap().ip();
            let size = nsnet_stack::fragments::size(source, 1500);
            let mut cut = nsnet_stack::fragments::Fragments::new(whole.clone(), size, identification);
            while let Some(length) = cut.next_len() {
                let mut fragment = vec![0; length];
                cut.write_next(&mut fragment);
                cut.advance();
                // The second datagram lacks its end.
                if identification == 1 || cut.next_len().is_some() {
                    world.send(&fragment);
                }
            }
        }
        settle().await;
        let [(_, ref payload)] = world.bench.dialer.socket().sent()[..] else { panic!("one datagram") };
        assert_eq!(payload.len(), 4000);
        tokio::time::sleep(std::time::Duration::from_secs(31)).await;
        assert_eq!(world.discarded().fragments, 2);
    });
}

#[test]
fn what_is_not_carried_is_counted_and_told() {
    run(async |world| {
        world.send(&datagram("10.0.2.77:1", PEER, b"x"));
        world.send(&datagram(CONTAINER, "224.0.0.1:1", b"x"));
        let mut last_hop = datagram(CONTAINER, PEER, b"x");
        let mut header = Ipv4Packet::new_unchecked(&mut last_hop[..]);
        header.set_hop_limit(1);
        header.fill_checksum();
        world.send(&last_hop);
        let mut sctp = datagram(CONTAINER, PEER, b"x");
        let mut header = Ipv4Packet::new_unchecked(&mut sctp[..]);
        header.set_next_header(IpProtocol::Unknown(132));
        header.fill_checksum();
        world.send(&sctp);
        world.send(b"no packet at all");
        settle().await;
        let discarded = world.discarded();
        assert_eq!((discarded.foreign_source, discarded.not_unicast), (1, 1));
        assert_eq!((discarded.hop_limit, discarded.protocol, discarded.malformed), (1, 1, 1));
        assert_eq!(protocols(world), [IpProtocol::Icmp; 2], "time exceeded, protocol unreachable");
        assert!(world.bench.dialer.questions().is_empty());
    });
}

#[test]
fn a_link_that_is_gone_ends_the_gateway_once_all_is_delivered() {
    let world = World::new();
    LocalSet::new().block_on(&runtime(), async {
        world.send(&datagram(CONTAINER, PEER, b"last words"));
        world.bench.far.close();
        world.bench.dialer.answer(Answer::Allow);
        world.serve(future::pending()).await;
        assert_eq!(world.bench.dialer.socket().sent().len(), 1);
    });
}

#[test]
fn a_stray_segment_of_a_foreign_source_is_answered_on_no_queue() {
    let mut network = Several::open();
    LocalSet::new().block_on(&runtime(), async {
        let test = async |worlds: &[World]| {
            let [foreign, nobody] = ["10.0.2.77:1", "10.0.2.55:1"].map(|address| address.parse().unwrap());
            let key = nsnet_stack::flow::FlowKey { container: nobody, peer: foreign };
            worlds[1].send(&tcp::acknowledgment(key, TcpSeqNumber(1), TcpSeqNumber(2), 0));
            settle().await;
            assert!(worlds.iter().all(|world| world.bench.received().is_empty()));
            assert_eq!(worlds[0].discarded().foreign_source, 1);
        };
        network.serve(test).await;
    });
}
