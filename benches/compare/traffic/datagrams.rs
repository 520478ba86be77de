//! Datagrams as fast as a sender can, counted where they arrive.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, recvmsg, sendmmsg, setsockopt, sockopt,
};

use super::{Direction, Size, end_of_input};
use crate::actor::{Report, Say, say};
use crate::clock;
use crate::error::{Context, Result};
use crate::world::SERVER;

/// Datagrams, or trains of segments, of one system call.
const BATCH: usize = 64;

/// Segments of one train, which stays below the largest datagram.
const SEGMENTS: usize = 50;

const LARGEST: usize = 65_535;

/// What the client sends to be sent to, until it is.
const HELLO: &[u8] = b"hello";

/// How often the receiver looks whether it is to go on.
const TICK: Duration = Duration::from_millis(50);

/// Until the client must have greeted.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn serve(direction: Direction, size: Size, seconds: f64) -> Result<()> {
    let socket = UdpSocket::bind((SERVER, 0))?;
    say(&Say::Ready(socket.local_addr()?.port()))?;
    match direction {
        Direction::Up => receive(&socket, size, || Ok(())),
        Direction::Down => {
            socket.set_read_timeout(Some(PATIENCE))?;
            let (_, client) = socket.recv_from(&mut [0; HELLO.len()])?;
            socket.connect(client)?;
            send(&socket, size, seconds)
        }
    }
}

pub(super) fn client(server: SocketAddr, direction: Direction, size: Size, seconds: f64) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    match direction {
        Direction::Up => send(&socket, size, seconds),
        Direction::Down => receive(&socket, size, || {
            socket.send(HELLO).context("greet the server")?;
            Ok(())
        }),
    }
}

fn send(socket: &UdpSocket, size: Size, seconds: f64) -> Result<()> {
    let (data, per_message) = match size {
        Size::Single(bytes) => (vec![0x5a; bytes], 1),
        Size::Segments(bytes) => {
            let length = i32::try_from(bytes).context("the size of a segment")?;
            setsockopt(socket, sockopt::UdpGsoSegment, &length).context("ask for UDP_SEGMENT")?;
            (vec![0x5a; bytes * SEGMENTS], SEGMENTS as u64)
        }
    };
    // A train is as good as a batch.
    let batch = if per_message == 1 { BATCH } else { 1 };
    let messages = vec![[IoSlice::new(&data)]; batch];
    let nobody: Vec<Option<()>> = vec![None; batch];
    let mut headers = MultiHeaders::preallocate(batch, None);
    let (start, length) = (clock::now(), Duration::from_secs_f64(seconds));
    let (mut sent, mut elapsed) = (0, Duration::ZERO);
    while elapsed < length {
        match sendmmsg(socket.as_raw_fd(), &mut headers, &messages, &nobody, [], MsgFlags::empty()) {
            Ok(results) => sent += results.count() as u64 * per_message,
            // The queue of the device is full; an ICMP error about an earlier one.
            Err(Errno::ENOBUFS | Errno::ECONNREFUSED | Errno::EINTR) => {}
            Err(errno) => return Err(format!("send: {errno}").into()),
        }
        elapsed = clock::now().duration_since(start);
    }
    say(&Say::Report(Report { amount: sent, seconds: elapsed.as_secs_f64(), ..Report::default() }))
}

/// Counts until the end of input. `greet` is called until the first datagram is here.
fn receive(socket: &UdpSocket, size: Size, greet: impl Fn() -> Result<()>) -> Result<()> {
    socket.set_read_timeout(Some(TICK))?;
    if let Size::Segments(_) = size {
        setsockopt(socket, sockopt::UdpGroSegment, &true).context("ask for UDP_GRO")?;
    }
    let ended = end_of_input();
    let mut arrival = Arrival::default();
    let mut receiver = Receiver::new(size);
    while !ended.load(Ordering::Relaxed) {
        if arrival.count == 0 {
            greet()?;
        }
        match receiver.receive(socket) {
            Ok(count) => arrival.note(count),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(format!("receive: {errno}").into()),
        }
    }
    say(&Say::Report(Report { amount: arrival.count, seconds: arrival.seconds(), ..Report::default() }))
}

#[derive(Debug, Default)]
struct Arrival {
    count: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Arrival {
    fn note(&mut self, count: u64) {
        let now = clock::now();
        self.count += count;
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn seconds(&self) -> f64 {
        self.first.zip(self.last).map_or(0.0, |(first, last)| last.duration_since(first).as_secs_f64())
    }
}

/// Buffers for one system call.
enum Receiver {
    Singles { headers: MultiHeaders<()>, buffers: Vec<Vec<u8>> },
    Trains { buffer: Vec<u8>, control: Vec<u8> },
}

impl Receiver {
    fn new(size: Size) -> Self {
        match size {
            Size::Single(bytes) => Self::Singles {
                headers: MultiHeaders::preallocate(BATCH, None),
                buffers: vec![vec![0; bytes]; BATCH],
            },
            Size::Segments(_) => Self::Trains { buffer: vec![0; LARGEST], control: cmsg_space!(i32) },
        }
    }

    /// How many datagrams have arrived; at least one.
    fn receive(&mut self, socket: &UdpSocket) -> nix::Result<u64> {
        match self {
            Self::Singles { headers, buffers } => {
                let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
                let flags = MsgFlags::MSG_WAITFORONE;
                recvmmsg(socket.as_raw_fd(), headers, &mut slices, flags, None)
                    .map(|results| results.count() as u64)
            }
            Self::Trains { buffer, control } => {
                let mut slices = [IoSliceMut::new(buffer)];
                let message =
                    recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(control), MsgFlags::empty())?;
                let size = message.cmsgs()?.find_map(|control| {
                    if let ControlMessageOwned::UdpGroSegments(size) = control {
                        usize::try_from(size).ok()
                    } else {
                        None
                    }
                });
                Ok(size.map_or(1, |size| message.bytes.div_ceil(size.max(1)) as u64))
            }
        }
    }
}
