//! Handshakes that a stack begins. Another stack that listens is the server.

use smoltcp::wire::{Ipv6Packet, TcpPacket, TcpSeqNumber};

use crate::tcp::bare;
use crate::tcp::stack::*;

const KEY: [&str; 2] = ["[fd00::100]:80", "[fd99::2]:5000"];

const PLAIN: Capabilities = Capabilities { max_packet: 1500, segmentation: false, checksum: true };

/// Takes everything that is sent.
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

/// The container's end first.
fn key() -> FlowKey {
    let [container, peer] = KEY.map(|address| address.parse().unwrap());
    FlowKey { container, peer }
}

fn socket() -> tcp::Socket<'static> {
    tcp::Socket::new(tcp::SocketBuffer::new(vec![0; 4096]), tcp::SocketBuffer::new(vec![0; 4096]))
}

fn client() -> TcpStack {
    TcpStack::connect(key(), socket(), PLAIN, 1, Instant::ZERO)
}

/// The only packet that is due now.
#[track_caller]
fn only(stack: &mut TcpStack) -> Vec<u8> {
    let mut sent = Sent::default();
    stack.poll_transmit(Instant::ZERO, &mut sent);
    assert_eq!(sent.0.len(), 1);
    sent.0.remove(0)
}

/// What the stack says at once when it takes a packet in.
fn answer(stack: &mut TcpStack, packet: &[u8]) -> Option<Vec<u8>> {
    let mut sent = Sent::default();
    stack.handle_packet(Instant::ZERO, packet, &mut sent);
    sent.0.pop()
}

fn segment(packet: &[u8]) -> TcpPacket<&[u8]> {
    let ip = Ipv6Packet::new_checked(packet).unwrap();
    assert_eq!(std::net::IpAddr::from(ip.src_addr()), key().peer.ip());
    TcpPacket::new_checked(&packet[ip.header_len()..]).unwrap()
}

/// As the packet parser would have it.
fn parsed(packet: &[u8]) -> crate::tcp::Segment {
    let segment = segment(packet);
    crate::tcp::Segment {
        control: crate::tcp::Control::Open,
        sequence: segment.seq_number(),
        acknowledgment: None,
        length: segment.segment_len(),
        payload: 0,
        max_segment_size: None,
        scales_windows: false,
    }
}

#[test]
fn the_handshake_ends_with_our_acknowledgment_and_bytes_pass_both_ways() {
    let mut client = client();
    let swapped = FlowKey { container: key().peer, peer: key().container };
    let mut server = TcpStack::listen(swapped, socket(), PLAIN, 2, Instant::ZERO);
    let syn = only(&mut client);
    assert!(segment(&syn).syn() && !segment(&syn).ack());
    assert!(client.is_connecting() && !client.is_synchronized());
    answer(&mut server, &syn);
    answer(&mut client, &only(&mut server));
    assert!(client.is_synchronized() && !client.is_connecting());
    answer(&mut server, &only(&mut client));
    client.send(|space| {
        space[..5].copy_from_slice(b"hello");
        (5, ())
    });
    answer(&mut server, &only(&mut client));
    server.receive(|bytes| {
        assert_eq!(bytes, b"hello");
        (5, ())
    });
    server.close();
    answer(&mut client, &only(&mut server));
    assert!(client.has_received_end());
}

#[test]
fn a_refusal_is_a_reset() {
    let mut client = client();
    let syn = only(&mut client);
    // `reset_for` answers a packet of its key's source.
    let reset = bare::reset_for(FlowKey { container: key().peer, peer: key().container }, &parsed(&syn));
    assert_eq!(answer(&mut client, &reset), None);
    assert_eq!(client.standing(), Standing::Reset);
}

#[test]
fn a_reset_of_another_connection_is_none() {
    let mut client = client();
    let syn = only(&mut client);
    let mut other = parsed(&syn);
    other.sequence += 7;
    let reset = bare::reset_for(FlowKey { container: key().peer, peer: key().container }, &other);
    answer(&mut client, &reset);
    assert!(client.is_connecting());
}

/// What a container in TIME-WAIT does with a SYN below the sequence numbers it remembers.
#[test]
fn the_acknowledgment_of_an_older_connection_is_reset_and_the_next_syn_is_another() {
    let mut client = client();
    let first = only(&mut client);
    let swapped = FlowKey { container: key().peer, peer: key().container };
    let old = TcpSeqNumber(1_000_000);
    let reset = answer(&mut client, &bare::acknowledgment(swapped, TcpSeqNumber(77), old, 0)).unwrap();
    assert!(segment(&reset).rst());
    assert_eq!(segment(&reset).seq_number(), old);
    assert!(client.is_connecting());
    client.connect_anew(key());
    let second = only(&mut client);
    assert!(segment(&second).syn());
    assert_ne!(segment(&second).seq_number(), segment(&first).seq_number());
}
