//! Frames on whatever queue: a container side of hand-made packets, which sends them where no kernel would.

use std::fs::File;
use std::io::{Read, Write};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use nsnet::host::{Attachment, Member, Network};
use nsnet_proto::vnet::HEADER_LEN;
use nsnet_proto::{Carriage, Channel, Offload, Ready, Report, Setup};

use crate::world::packets::{TCP, UDP};
use crate::world::{OTHER_SERVER, PATIENCE, SERVER, World, accept, assert_errno, eventually, once, packets};

once! {
    segment_finds_its_flow_from_any_queue,
    stray_segment_is_answered_on_its_own_queue,
    datagrams_of_any_queue_leave_from_one_port,
    one_queue_that_closes_ends_the_others,
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The container's address and a port of its.
const SOURCE: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 2, 100), 4000);

fn segment_finds_its_flow_from_any_queue(world: &World) {
    let listener = world.listen(SERVER[0]);
    let to = listener.local_addr().unwrap();
    for syn_on in 0..2 {
        let mut container = FrameContainer::new();
        container.send(syn_on, TCP, to, &segment(to, 1000, 0, SYN, b""));
        let answer = container.receive(syn_on, TCP);
        assert_eq!(answer.flags(), SYN | ACK);
        let mut served = accept(&listener);
        let expected = answer.sequence() + 1;
        for (number, queue) in [1 - syn_on, syn_on, 1 - syn_on].into_iter().enumerate() {
            let sequence = 1001 + 4 * u32::try_from(number).unwrap();
            container.send(queue, TCP, to, &segment(to, sequence, expected, ACK, b"data"));
            served.read_exact(&mut [0; 4]).unwrap();
        }
        served.write_all(b"answer").unwrap();
        // Where the flow is at home, and nothing but it: no reset from the other.
        let data = loop {
            let packet = container.receive(syn_on, TCP);
            assert_eq!(packet.flags() & (RST | ACK), ACK);
            if packet.bytes.ends_with(b"answer") {
                break packet;
            }
        };
        assert_eq!(data.sequence(), expected);
        // A reset finds it as well.
        container.send(1 - syn_on, TCP, to, &segment(to, 1013, 0, RST, b""));
        assert_errno(served.read(&mut [0; 1]), Errno::ECONNRESET);
    }
}

fn stray_segment_is_answered_on_its_own_queue(world: &World) {
    let to = world.closed(SERVER[0]);
    let mut container = FrameContainer::new();
    for queue in [1, 0, 1] {
        container.send(queue, TCP, to, &segment(to, 1000, 77, ACK, b"stray"));
        let answer = container.receive(queue, TCP);
        assert_eq!((answer.flags() & RST, answer.sequence()), (RST, 77));
    }
    assert_eq!(container.network.statistics().tcp.opened, 0);
}

fn datagrams_of_any_queue_leave_from_one_port(world: &World) {
    let peers = [world.udp(SERVER[0]), world.udp(OTHER_SERVER)];
    let mut container = FrameContainer::new();
    let seen = [0, 1].map(|queue| {
        let to = peers[queue].local_addr().unwrap();
        container.send(queue, UDP, to, &packets::datagram(SOURCE.1, to, b"question"));
        let (_, from) = peers[queue].recv_from(&mut [0; 16]).unwrap();
        peers[queue].send_to(b"answer", from).unwrap();
        // Where every answer is written, so that the kernel learns of it.
        assert!(container.receive(0, UDP).bytes.ends_with(b"answer"));
        from
    });
    assert_eq!(seen[0], seen[1]);
}

fn one_queue_that_closes_ends_the_others(world: &World) {
    let listener = world.listen(SERVER[0]);
    let to = listener.local_addr().unwrap();
    for closed in 0..2 {
        let mut container = FrameContainer::new();
        container.send(1 - closed, TCP, to, &segment(to, 1000, 0, SYN, b""));
        container.receive(1 - closed, TCP);
        let mut served = accept(&listener);
        let others = container.close(closed);
        assert_errno(served.read(&mut [0; 1]), Errno::ECONNRESET);
        eventually("no flow is left", || container.network.statistics().tcp.active == 0);
        for mut other in others {
            let end = || matches!(other.read(&mut [0; 2048]), Ok(0) | Err(_));
            eventually("the other link is closed", end);
        }
    }
}

/// A container side whose device is the test. Where there is one core, both queues are the same.
struct FrameContainer {
    queues: Vec<File>,
    granted: usize,
    network: Network,
    _attachment: Attachment,
}

impl FrameContainer {
    #[track_caller]
    fn new() -> Self {
        let network = Network::builder().queues(2).build().unwrap();
        let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
        let channel = Channel::from_fd(fd).unwrap();
        let (setup, further) = channel.receive::<Setup>().unwrap();
        assert_eq!(further.len() + 1, usize::from(setup.queues));
        let ready = Ready::new(Carriage::Shuttled, Offload::NONE, setup.queues);
        channel.send(&Report::Ready(ready), &[]).unwrap();
        assert_eq!(attachment.wait_ready(PATIENCE).unwrap().queues, setup.queues);
        let first = File::from(channel.into_fd());
        let second = further.into_iter().next().map_or_else(|| first.try_clone().unwrap(), File::from);
        let granted = setup.queues.into();
        Self { queues: vec![first, second], granted, network, _attachment: attachment }
    }

    /// Sends a packet of the container; its transport's checksum need not be right.
    fn send(&mut self, queue: usize, protocol: u8, to: SocketAddr, payload: &[u8]) {
        let frame = packets::frame(protocol, SOURCE.0, to, payload);
        assert_eq!(self.queues[queue].write(&frame).unwrap(), frame.len());
    }

    /// The next packet to the container on this queue, which must be of this protocol.
    #[track_caller]
    fn receive(&mut self, queue: usize, protocol: u8) -> Packet {
        let mut frame = vec![0; 70_000];
        let length = self.queues[queue].read(&mut frame).unwrap();
        let packet = Packet { bytes: frame[HEADER_LEN..length].to_vec() };
        assert_eq!(packet.bytes[9], protocol);
        packet
    }

    /// Closes a queue. What is left are the others, and none where there is but one.
    fn close(&mut self, queue: usize) -> Vec<File> {
        let mut others = mem::take(&mut self.queues);
        drop(others.remove(queue));
        others.truncate(self.granted - 1);
        others
    }
}

/// An IPv4 packet without options.
struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    fn sequence(&self) -> u32 {
        u32::from_be_bytes(self.bytes[24..28].try_into().unwrap())
    }

    fn flags(&self) -> u8 {
        self.bytes[33] & (SYN | RST | ACK)
    }
}

/// RFC 9293, 3.1, without options.
fn segment(to: SocketAddr, sequence: u32, acknowledgment: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [SOURCE.1.to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgment.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    segment
}
