//! A stack and a client in memory, with a virtual clock and a wire that loses, duplicates and reorders.

use std::collections::VecDeque;
use std::net::SocketAddr;

use proptest::prelude::*;
use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::client::Client;
use super::*;

/// What the wire does to packets, in per cent.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    loss: u64,
    duplication: u64,
    reordering: u64,
}

#[derive(Default)]
struct Wire {
    packets: VecDeque<Vec<u8>>,
    faults: Faults,
    random: u64,
    longest: usize,
}

impl Wire {
    fn chance(&mut self, percent: u64) -> bool {
        // xorshift64*, good enough to place faults and reproducible.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % 100 < percent
    }
}

impl Transmit for Wire {
    fn is_ready(&self) -> bool {
        self.packets.len() < 256
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = vec![0; length];
        let result = fill(&mut packet);
        self.longest = self.longest.max(length);
        if !self.chance(self.faults.loss) {
            if self.chance(self.faults.duplication) {
                self.packets.push_back(packet.clone());
            }
            if self.chance(self.faults.reordering) {
                self.packets.push_front(packet);
            } else {
                self.packets.push_back(packet);
            }
        }
        result
    }
}

struct World {
    now: Instant,
    client: Client,
    stack: Option<TcpStack>,
    key: FlowKey,
    to_stack: Wire,
    to_client: Wire,
    capabilities: Capabilities,
    seed: u64,
}

const PLAIN: Capabilities = Capabilities { max_packet: 1500, segmentation: false, checksum: true };

fn socket(ring: usize) -> tcp::Socket<'static> {
    tcp::Socket::new(tcp::SocketBuffer::new(vec![0; ring]), tcp::SocketBuffer::new(vec![0; ring]))
}

impl World {
    fn new() -> Self {
        Self::with("10.0.2.100:4000", "10.99.0.2:80", PLAIN, Faults::default(), 1)
    }

    fn with(source: &str, destination: &str, capabilities: Capabilities, faults: Faults, seed: u64) -> Self {
        let key = FlowKey {
            container: source.parse::<SocketAddr>().unwrap(),
            peer: destination.parse::<SocketAddr>().unwrap(),
        };
        let client = Client::connect(key, socket(64 << 10), PLAIN, seed ^ 0x5555, Instant::ZERO);
        let wire = |random| Wire { faults, random, ..Wire::default() };
        Self {
            now: Instant::ZERO,
            client,
            stack: None,
            key,
            to_stack: wire(seed | 1),
            to_client: wire(seed.rotate_left(32) | 1),
            capabilities,
            seed,
        }
    }

    fn connected() -> Self {
        let mut world = Self::new();
        world.settle();
        assert_eq!(world.client().state(), tcp::State::Established);
        world
    }

    fn client(&mut self) -> &mut tcp::Socket<'static> {
        self.client.socket()
    }

    #[track_caller]
    fn stack(&mut self) -> &mut TcpStack {
        self.stack.as_mut().unwrap()
    }

    /// Delivers and sends once; returns whether anything happened.
    fn step(&mut self) -> bool {
        let now = self.now;
        let mut busy = self.client.poll_transmit(now, &mut self.to_stack);
        if let Some(packet) = self.to_stack.packets.pop_front() {
            busy = true;
            let stack = self.stack.get_or_insert_with(|| {
                TcpStack::listen(self.key, socket(64 << 10), self.capabilities, self.seed, now)
            });
            stack.handle_packet(now, &packet, &mut self.to_client);
        }
        if let Some(stack) = &mut self.stack {
            busy |= stack.poll_transmit(now, &mut self.to_client);
        }
        if let Some(packet) = self.to_client.packets.pop_front() {
            busy = true;
            self.client.handle_packet(now, &packet, &mut self.to_stack);
        }
        busy
    }

    /// Runs until nothing moves at this instant.
    fn settle(&mut self) {
        while self.step() {}
    }

    /// Jumps to the next timer. Returns whether there was one.
    fn advance(&mut self) -> bool {
        let client = self.client.poll_at(self.now);
        let stack = self.stack.as_mut().and_then(|stack| stack.poll_at(self.now));
        let Some(next) = [client, stack].into_iter().flatten().min() else { return false };
        self.now = next.max(self.now + Duration::from_millis(1));
        true
    }

    /// Sends `up` and `down` at the same time, closes both ends, and returns what arrived.
    fn exchange(&mut self, up: &[u8], down: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut unsent_up, mut unsent_down) = (up, down);
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        for _ in 0..200_000 {
            let client = self.client.socket();
            if client.can_send() {
                unsent_up = &unsent_up[client.send_slice(unsent_up).unwrap()..];
                if unsent_up.is_empty() {
                    client.close();
                }
            }
            while client.can_recv() {
                client
                    .recv(|bytes| {
                        got_down.extend_from_slice(bytes);
                        (bytes.len(), ())
                    })
                    .unwrap();
            }
            let client_done = client.state() == tcp::State::Closed || client.state() == tcp::State::TimeWait;
            if let Some(stack) = &mut self.stack {
                while stack.can_receive() {
                    stack.receive(|bytes| {
                        got_up.extend_from_slice(bytes);
                        (bytes.len(), ())
                    });
                }
                if stack.can_send() {
                    let sent = stack.send(|space| {
                        let length = space.len().min(unsent_down.len());
                        space[..length].copy_from_slice(&unsent_down[..length]);
                        (length, length)
                    });
                    unsent_down = &unsent_down[sent..];
                    if unsent_down.is_empty() {
                        stack.close();
                    }
                }
                let stack_done = matches!(stack.standing(), Standing::TimeWait | Standing::Closed);
                if client_done && stack_done {
                    break;
                }
            }
            if !self.step() && !self.advance() {
                break;
            }
        }
        (got_up, got_down)
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..=u8::MAX).cycle().zip(0..length).map(|(byte, at)| byte ^ (at >> 8).to_le_bytes()[0] ^ seed).collect()
}

#[test]
fn nothing_is_said_before_the_syn_is_fed() {
    let mut world = World::new();
    let mut stack = TcpStack::listen(world.key, socket(4096), PLAIN, 7, Instant::ZERO);
    assert!(!stack.poll_transmit(Instant::ZERO, &mut world.to_client));
    assert_eq!(stack.standing(), Standing::Alive);
}

#[test]
fn another_seed_gives_another_sequence_number() {
    let sequence = |seed| {
        let mut world = World::with("10.0.2.100:4000", "10.99.0.2:80", PLAIN, Faults::default(), 1);
        world.seed = seed;
        while world.to_client.packets.is_empty() {
            assert!(world.step_without_delivery());
        }
        let packet = world.to_client.packets.pop_front().unwrap();
        TcpPacket::new_checked(&packet[20..]).unwrap().seq_number()
    };
    let numbers: Vec<TcpSeqNumber> = (1..20).map(sequence).collect();
    for (at, number) in numbers.iter().enumerate() {
        assert!(!numbers[..at].contains(number));
    }
}

#[test]
fn a_client_that_resets_its_handshake_is_noticed() {
    let mut world = World::new();
    while world.stack.is_none() {
        world.step_without_delivery();
    }
    world.client().abort();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Reset);
}

#[test]
fn a_syn_that_is_not_taken_in_leaves_it_listening() {
    let mut world = World::new();
    let mut stack = TcpStack::listen(world.key, socket(4096), PLAIN, 7, Instant::ZERO);
    stack.handle_packet(Instant::ZERO, &[0x45; 40], &mut world.to_client);
    assert!(stack.is_listening());
    assert!(stack.awaits_container());
    assert!(!stack.is_receive_finished());
}

#[test]
fn a_client_that_never_acknowledges_is_waited_for() {
    let mut world = World::new();
    while world.to_client.packets.is_empty() {
        world.step_without_delivery();
    }
    assert!(world.stack().awaits_container());
}

impl World {
    /// Like `step`, but what the stack sends stays on the wire.
    fn step_without_delivery(&mut self) -> bool {
        let kept = std::mem::take(&mut self.to_client.packets);
        let busy = self.step_up();
        self.to_client.packets.extend(kept);
        busy
    }

    fn step_up(&mut self) -> bool {
        let now = self.now;
        self.client.poll_transmit(now, &mut self.to_stack);
        let Some(packet) = self.to_stack.packets.pop_front() else { return false };
        let stack = self.stack.get_or_insert_with(|| {
            TcpStack::listen(self.key, socket(64 << 10), self.capabilities, self.seed, now)
        });
        stack.handle_packet(now, &packet, &mut self.to_client);
        stack.poll_transmit(now, &mut self.to_client);
        true
    }
}

#[test]
fn bytes_arrive_in_both_directions() {
    for (source, destination) in [("10.0.2.100:4000", "10.99.0.2:80"), ("[fd00::100]:4000", "[fd99::2]:80")] {
        let mut world = World::with(source, destination, PLAIN, Faults::default(), 3);
        let (up, down) = (pattern(300_000, 1), pattern(200_000, 2));
        assert_eq!(world.exchange(&up, &down), (up, down));
    }
}

#[test]
fn an_idle_connection_has_no_timer() {
    let mut world = World::connected();
    assert_eq!(world.stack().poll_at(Instant::ZERO), None);
    assert!(!world.stack().awaits_container());
}

#[test]
fn with_segmentation_a_packet_is_larger_than_the_mss() {
    for (source, destination) in [("10.0.2.100:4000", "10.99.0.2:80"), ("[fd00::100]:4000", "[fd99::2]:80")] {
        let capabilities = Capabilities { max_packet: 65535, segmentation: true, checksum: false };
        let mut world = World::with(source, destination, capabilities, Faults::default(), 3);
        world.settle();
        let data = pattern(32 << 10, 5);
        world.stack().send(|space| {
            space[..data.len()].copy_from_slice(&data);
            (data.len(), ())
        });
        let (stack, now) = (world.stack.as_mut().unwrap(), world.now);
        stack.poll_transmit(now, &mut world.to_client);
        assert!(world.to_client.longest > 16 << 10, "{}", world.to_client.longest);
    }
}

#[test]
fn the_receive_window_bounds_what_is_taken_in() {
    let mut world = World::connected();
    for _ in 0..200 {
        let data = pattern(8192, 9);
        if world.client().can_send() {
            world.client().send_slice(&data).unwrap();
        }
        world.settle();
        if !world.advance() {
            break;
        }
    }
    assert!(world.stack().socket().recv_queue() <= 64 << 10);
    assert!(world.client().send_queue() > 0);
}

#[test]
fn the_clients_fin_leaves_the_other_direction_open() {
    let mut world = World::connected();
    world.client().close();
    world.settle();
    assert!(world.stack().is_receive_finished());
    assert!(world.stack().can_send());
    world.stack().send(|space| {
        space[..4].copy_from_slice(b"late");
        (4, ())
    });
    world.settle();
    assert_eq!(world.client().recv(|bytes| (bytes.len(), bytes.to_vec())).unwrap(), b"late");
}

#[test]
fn our_fin_leaves_the_other_direction_open() {
    let mut world = World::connected();
    world.stack().close();
    world.settle();
    assert!(!world.client().may_recv());
    assert!(world.stack().awaits_container());
    world.client().send_slice(b"late").unwrap();
    world.settle();
    assert_eq!(world.stack().receive(|bytes| (bytes.len(), bytes.to_vec())), b"late");
}

#[test]
fn who_closes_first_rests() {
    let mut world = World::connected();
    world.stack().close();
    world.settle();
    world.client().close();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::TimeWait);

    let mut world = World::connected();
    world.client().close();
    world.settle();
    world.stack().close();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Closed);
}

#[test]
fn what_was_received_outlives_the_connection() {
    let mut world = World::connected();
    world.client().send_slice(b"still there").unwrap();
    world.client().close();
    world.settle();
    world.stack().close();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Closed);
    assert!(!world.stack().is_receive_finished());
    assert_eq!(world.stack().receive(|bytes| (bytes.len(), bytes.to_vec())), b"still there");
    assert!(world.stack().is_receive_finished());
}

#[test]
fn the_clients_reset_is_not_an_end() {
    let mut world = World::connected();
    world.client().abort();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Reset);
}

#[test]
fn our_reset_reaches_the_client() {
    let mut world = World::connected();
    world.stack().abort();
    world.settle();
    assert_eq!(world.stack().standing(), Standing::Closed);
    assert_eq!(world.client().state(), tcp::State::Closed);
}

#[test]
fn a_socket_serves_again() {
    let mut world = World::connected();
    world.client().send_slice(b"old").unwrap();
    world.settle();
    let used = world.stack.take().unwrap().take_socket();
    let fresh = World::new();
    let mut stack = TcpStack::listen(fresh.key, used, PLAIN, 11, Instant::ZERO);
    assert!(!stack.can_receive());
    assert!(!stack.poll_transmit(Instant::ZERO, &mut Wire::default()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_in_order_over_a_bad_wire(
        seed in 1u64..,
        loss in 0u64..15, duplication in 0u64..20, reordering in 0u64..30,
        up in 0usize..60_000, down in 0usize..60_000,
    ) {
        let faults = Faults { loss, duplication, reordering };
        let mut world = World::with("10.0.2.100:4000", "10.99.0.2:80", PLAIN, faults, seed);
        let (up, down) = (pattern(up, 1), pattern(down, 2));
        let (got_up, got_down) = world.exchange(&up, &down);
        prop_assert_eq!(got_up.len(), up.len());
        prop_assert_eq!(got_down.len(), down.len());
        prop_assert!(got_up == up && got_down == down);
    }

    #[test]
    fn any_packet_is_survived(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20),
        flags in any::<u8>(), offset in 5u8..8,
    ) {
        let mut world = World::connected();
        for mut bytes in packets {
            // Steer some of the noise past the outer checks.
            if bytes.len() >= 40 {
                bytes[0] = 0x45;
                let length = u16::try_from(bytes.len()).unwrap();
                bytes[2..4].copy_from_slice(&length.to_be_bytes());
                bytes[6..8].fill(0);
                bytes[9] = 6;
                bytes[12..16].copy_from_slice(&[10, 0, 2, 100]);
                bytes[16..20].copy_from_slice(&[10, 99, 0, 2]);
                bytes[20..24].copy_from_slice(&[0x0f, 0xa0, 0, 80]);
                bytes[32] = offset << 4;
                bytes[33] = flags;
            }
            let now = world.now;
            let stack = world.stack.as_mut().unwrap();
            stack.handle_packet(now, &bytes, &mut world.to_client);
            stack.poll_transmit(now, &mut world.to_client);
        }
    }
}
