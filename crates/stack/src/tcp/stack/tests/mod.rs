//! A stack and a client in memory, with a virtual clock and a wire that loses, duplicates and reorders.

mod accept;
mod connect;
mod transfer;
mod close;

use std::collections::VecDeque;
use std::net::SocketAddr;

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
