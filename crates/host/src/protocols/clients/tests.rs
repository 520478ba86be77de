use std::net::{Ipv4Addr, SocketAddr};

use nix::libc;
use nsnet_stack::packet::Transport;

use super::*;
use crate::context::Limits;
use crate::context::testing::{Answer, Bench, locally, parsed, settle};
use crate::dialer::DialError;
use crate::dialer::receive::PacketInfo;

/// A published port in memory, with the answers and their receivers.
#[derive(Default)]
struct Answered(RefCell<Vec<(SocketAddr, Vec<u8>)>>);

impl Answers for Answered {
    fn port(&self) -> u16 {
        8080
    }

    fn send(&self, datagrams: Datagrams<'_>, client: SocketAddr, _: &Local) -> std::io::Result<()> {
        let answers = datagrams.iter().map(|bytes| (client, bytes.to_vec()));
        self.0.borrow_mut().extend(answers);
        Ok(())
    }
}

struct World {
    bench: Bench,
    clients: Rc<Clients>,
    answered: Rc<Answered>,
    port: Rc<PublishedPort>,
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let bench = Bench::with(limits);
        let clients = Clients::new(Rc::clone(&bench.context));
        let answered = Rc::<Answered>::default();
        let port = Rc::new(PublishedPort::new(Rc::clone(&answered) as Rc<dyn Answers>, 80));
        Self { bench, clients, answered, port }
    }

    /// Writes as a client. Returns whether the datagram may go into the container at once.
    fn hear(&self, client: &str, payload: &[u8]) -> bool {
        let datagrams = Datagrams::one(payload);
        self.clients.hear(&self.port, client.parse().unwrap(), local(), datagrams).is_some()
    }

    /// Answers as the container, to the client's address inside.
    fn answer(&self, client: &str, payload: &[u8]) -> bool {
        let key = FlowKey { container: "10.0.2.100:80".parse().unwrap(), peer: client.parse().unwrap() };
        let known = self.clients.answer(key, Datagrams::one(payload));
        self.clients.flush();
        known
    }

    /// The payloads that the container has received.
    fn received(&self) -> Vec<Vec<u8>> {
        let read = |bytes: &Vec<u8>| {
            let Transport::Udp(datagrams) = parsed(bytes).transport else { panic!("not UDP") };
            datagrams.bytes().to_vec()
        };
        self.bench.received().iter().map(read).collect()
    }

    fn answered(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        self.answered.0.take()
    }
}

/// The host's address 10.99.0.1.
fn local() -> Local {
    let address = libc::in_addr { s_addr: u32::from(Ipv4Addr::new(10, 99, 0, 1)).to_be() };
    let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
    Local::of_received(PacketInfo::V4(info), CLIENT.parse().unwrap())
}

const CLIENT: &str = "10.99.0.7:5000";

#[tokio::test(start_paused = true)]
async fn a_client_waits_for_the_decision_and_is_answered() {
    locally(async || {
        let world = World::new();
        assert!(!world.hear(CLIENT, b"question"));
        settle().await;
        assert_eq!(world.bench.dialer.questions(), ["udp 10.99.0.7:5000 -> 10.0.2.100:80"]);
        assert!(!world.answer(CLIENT, b"too early"));
        world.bench.dialer.answer(Answer::Allow);
        settle().await;
        assert_eq!(world.received(), [b"question"]);
        assert!(world.answer(CLIENT, b"answer"));
        assert_eq!(world.answered(), [(CLIENT.parse().unwrap(), b"answer".to_vec())]);
        assert!(world.hear(CLIENT, b"again"), "it is known");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_refused_or_faulty_is_forgotten() {
    locally(async || {
        for answer in [Answer::Refuse(DialError::Prohibited), Answer::Panic] {
            let world = World::new();
            world.hear(CLIENT, b"question");
            world.bench.dialer.answer(answer);
            settle().await;
            assert!(world.received().is_empty());
            assert_eq!(world.port.clients.get(), 0);
            assert!(!world.hear(CLIENT, b"question"), "it is asked about anew");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_never_answered_is_forgotten_after_half_a_minute() {
    locally(async || {
        let world = World::new();
        world.bench.dialer.answer(Answer::Allow);
        world.hear(CLIENT, b"question");
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert_eq!(world.port.clients.get(), 1);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(world.port.clients.get(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_is_answered_is_remembered_for_the_idle_timeout() {
    locally(async || {
        let world = World::new();
        world.bench.dialer.answer(Answer::Allow);
        world.hear(CLIENT, b"question");
        settle().await;
        assert!(world.answer(CLIENT, b"answer"));
        tokio::time::sleep(Duration::from_secs(170)).await;
        assert_eq!(world.port.clients.get(), 1);
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(world.port.clients.get(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_full_port_forgets_passers_by_and_keeps_who_came_back() {
    locally(async || {
        let world = World::with(Limits { published_udp_clients: 2, ..Limits::default() });
        for client in [CLIENT, "10.99.0.8:5000"] {
            world.bench.dialer.answer(Answer::Allow);
            world.hear(client, b"question");
            settle().await;
            assert!(world.answer(client, b"answer"));
        }
        world.hear(CLIENT, b"thanks");
        world.bench.dialer.answer(Answer::Allow);
        world.hear("10.99.0.9:5000", b"question");
        settle().await;
        assert!(world.clients.get(&world.port, CLIENT.parse().unwrap()).is_some());
        assert!(world.clients.get(&world.port, "10.99.0.8:5000".parse().unwrap()).is_none());
        assert!(world.clients.get(&world.port, "10.99.0.9:5000".parse().unwrap()).is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_datagram_refused_inside_goes_by_the_other_family() {
    locally(async || {
        let world = World::new();
        world.bench.dialer.answer(Answer::Allow);
        world.hear(CLIENT, b"question");
        settle().await;
        assert_eq!(world.received(), [b"question"]);
        let client = world.clients.get(&world.port, CLIENT.parse().unwrap()).unwrap();
        world.clients.refuse(client.key());
        let key = client.key();
        assert!(key.container.is_ipv6(), "{key:?}");
        assert_eq!(world.received(), [b"question"]);
        world.clients.refuse(key);
        assert!(world.received().is_empty(), "there is no third way");
    })
    .await;
}
