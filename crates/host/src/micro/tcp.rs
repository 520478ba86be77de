//! Micro-benchmarks of TCP: a connection in memory, and finding a connection among others.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::hint::black_box;
use std::net::SocketAddr;
use std::rc::Rc;

use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::TcpSeqNumber;

use super::measured;
use crate::addressing::local::LocalRoutes;
use crate::protocols::tcp::{State, TcpFlow, TupleUse, find_open};
use crate::sys::Pages;
use crate::task::clock::Clock;
use crate::threads::commons::{Commons, RingSocket, Sockets};
use nsnet_stack::flow::FlowKey;
use nsnet_stack::frame::MAX_PACKET;
use nsnet_stack::tcp::Client;
use nsnet_stack::tcp::{Budget, Rings};
use nsnet_stack::tcp::{Capabilities, TcpStack, Transmit};
use nsnet_stack::tcp::{Control, Segment};

/// A link that takes packets up to this MTU only.
pub(crate) const PLAIN: Capabilities = Capabilities { max_packet: 1500, segmentation: false, checksum: true };

/// A link with offload.
pub(crate) const SEGMENTATION: Capabilities =
    Capabilities { max_packet: MAX_PACKET, segmentation: true, checksum: false };

/// An open connection between a stack and a client, each with the rings of a real connection. Only the stack's work is
/// measured.
pub(crate) struct Connection {
    now: Instant,
    stack: TcpStack,
    client: Client,
    to_stack: Wire,
    to_client: Wire,
    /// The memory of the rings, dropped behind the sockets.
    _pages: [Pages; 2],
}

impl Connection {
    pub(crate) fn open(capabilities: Capabilities) -> Self {
        let (key, now) = (key(0), Instant::ZERO);
        let (near, far) = (ring_socket(), ring_socket());
        let mut connection = Self {
            now,
            stack: TcpStack::listen(key, near.socket, capabilities, 1, now),
            client: Client::connect(key, far.socket, capabilities, 2, now),
            to_stack: Wire::default(),
            to_client: Wire::default(),
            _pages: [near.pages, far.pages],
        };
        while connection.client.socket().state() != tcp::State::Established {
            connection.exchange(&mut Side::default(), &mut Side::default());
        }
        connection
    }

    /// Sends bytes from the client to the stack and back, until all have been read.
    pub(crate) fn transfer(&mut self, up: usize, down: usize) {
        let (mut client, mut stack) = (Side::new(up, down), Side::new(down, up));
        while client.unread + stack.unread > 0 {
            if !self.exchange(&mut client, &mut stack) {
                self.advance();
            }
        }
    }

    /// Lets both ends do all they can at this instant. Returns whether they did anything.
    fn exchange(&mut self, client: &mut Side, stack: &mut Side) -> bool {
        let socket = self.client.socket();
        if socket.can_send() {
            client.unsent -= socket.send(|space| take(space, client.unsent)).unwrap_or(0);
        }
        while self.client.poll_transmit(self.now, &mut self.to_stack) {}
        let up = self.to_stack.packets.len();
        measured(|| self.serve(stack));
        let down = self.to_client.packets.len();
        while let Some(packet) = self.to_client.packets.pop_front() {
            self.client.handle_packet(self.now, packet.bytes(), &mut self.to_stack);
            self.to_client.spare.push(packet);
        }
        let socket = self.client.socket();
        while socket.can_recv() {
            client.unread -= socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
        }
        up + down > 0
    }

    /// Does the work of a batch of frames and of the flow's task in turn.
    fn serve(&mut self, side: &mut Side) {
        while let Some(packet) = self.to_stack.packets.pop_front() {
            self.stack.handle_packet(self.now, packet.bytes(), &mut self.to_client);
            self.to_stack.spare.push(packet);
        }
        while self.stack.can_receive() {
            side.unread -= self.stack.receive(|bytes| (bytes.len(), bytes.len()));
        }
        while side.unsent > 0 && self.stack.can_send() {
            side.unsent -= self.stack.send(|space| take(space, side.unsent));
        }
        while self.stack.poll_transmit(self.now, &mut self.to_client) {}
    }

    /// Jumps to the next timer.
    fn advance(&mut self) {
        let timers = [self.client.poll_at(self.now), self.stack.poll_at(self.now)];
        let next = timers.into_iter().flatten().min().expect("a transfer under way has a timer");
        self.now = next.max(self.now + Duration::from_millis(1));
    }
}

/// The work that one end has yet to do.
#[derive(Default)]
struct Side {
    unsent: usize,
    unread: usize,
}

impl Side {
    fn new(unsent: usize, unread: usize) -> Self {
        Self { unsent, unread }
    }
}

/// Fills `space` with as many unsent bytes as fit, of any content.
fn take(space: &mut [u8], unsent: usize) -> (usize, usize) {
    let length = black_box(space).len().min(unsent);
    (length, length)
}

/// Packets on their way, as many as are read from a link at once, in buffers that are reused.
#[derive(Default)]
struct Wire {
    packets: VecDeque<Packet>,
    spare: Vec<Packet>,
}

const BATCH: usize = 64;

struct Packet {
    buffer: Box<[u8]>,
    length: usize,
}

impl Packet {
    fn new() -> Self {
        Self { buffer: vec![0; MAX_PACKET].into(), length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Transmit for Wire {
    fn is_ready(&self) -> bool {
        self.packets.len() < BATCH
    }

    fn transmit<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut packet = self.spare.pop().unwrap_or_else(Packet::new);
        packet.length = length;
        let result = fill(&mut packet.buffer[..length]);
        self.packets.push_back(packet);
        result
    }
}

/// A table of open connections. Its hash is the table's with a key that never changes, and its entries share one flow.
pub(crate) struct Lookup {
    entries: HashMap<FlowKey, TupleUse, BuildHasherDefault<DefaultHasher>>,
    wanted: Vec<FlowKey>,
}

impl Lookup {
    /// How many connections are found in one round.
    pub(crate) const ROUND: usize = 64;

    pub(crate) fn among(flows: usize) -> Self {
        let flow = Rc::new(flow());
        let entry = |id| TupleUse { id, task: None, state: State::Open(Rc::clone(&flow)) };
        let entries = (0u64..).zip(0..flows).map(|(id, number)| (key(number), entry(id))).collect();
        let wanted = (0..Self::ROUND).map(|number| key(number * flows / Self::ROUND)).collect();
        Self { entries, wanted }
    }

    pub(crate) fn run(&self) {
        measured(|| {
            for key in &self.wanted {
                black_box(find_open(&self.entries, black_box(key)).expect("it is there"));
            }
        });
    }
}

/// The key of one flow of many: as a container opens them, from port to port and server to server.
fn key(number: usize) -> FlowKey {
    let port = 32_768 + u16::try_from(number % 16_384).unwrap_or(0);
    let [.., server] = (number % 251).to_be_bytes();
    FlowKey {
        container: SocketAddr::from(([10, 0, 2, 100], port)),
        peer: SocketAddr::from(([10, 99, 0, server], 443)),
    }
}

fn flow() -> TcpFlow {
    let key = key(0);
    let RingSocket { socket, pages } = ring_socket();
    let stack = TcpStack::listen(key, socket, PLAIN, 1, Instant::ZERO);
    let syn = Segment {
        control: Control::Open,
        sequence: TcpSeqNumber(0),
        acknowledgment: None,
        length: 1,
        payload: 0,
        max_segment_size: Some(1460),
        scales_windows: true,
    };
    let rings = Rings::new(pages, TcpSeqNumber(1), Rc::new(Budget::new(8 << 20, 1)));
    let commons = Commons::new(LocalRoutes::new().expect("a netlink socket")).expect("address space");
    TcpFlow::new(key, &syn, stack, rings, Rc::new(commons), Clock::start().now())
}

fn ring_socket() -> RingSocket {
    Sockets::default().take().expect("address space for two rings")
}
