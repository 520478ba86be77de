//! The servers that tests talk to. Each takes a socket that is bound already, so that it can be reached from
//! the moment the call returns, and runs on threads that end with the process.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::noise::{Digest, Noise};

/// Sends back what it is sent, until it is sent an end.
pub(crate) fn tcp_echo(listener: TcpListener) -> SocketAddr {
    each(listener, |mut stream| io::copy(&mut stream.try_clone()?, &mut stream).map(drop))
}

/// Sends the first `length` bytes of [`Noise`] with seed 1 while it reads to the end, then the digest of what
/// it has read.
pub(crate) fn exchange(listener: TcpListener, length: u64) -> SocketAddr {
    each(listener, move |mut stream| {
        let reader = stream.try_clone()?;
        let received = thread::spawn(move || Digest::receive(reader));
        Noise::new(1).send(&mut stream, length)?;
        stream.write_all(&received.join().unwrap()?.to_bytes())
    })
}

/// Sends `length` bytes as fast as they are taken. The counter says how many were.
pub(crate) fn source(listener: TcpListener, length: u64) -> (SocketAddr, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let address = each(listener, move |mut stream| {
        let chunk = [0; 64 * 1024];
        while let left @ 1.. = length.saturating_sub(counter.load(Ordering::Relaxed)) {
            let size = usize::try_from(left).unwrap().min(chunk.len());
            counter.fetch_add(stream.write(&chunk[..size])? as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    (address, sent)
}

/// Answers each HTTP request with `body`.
pub(crate) fn http(listener: TcpListener, body: &'static str) -> SocketAddr {
    each(listener, move |mut stream| {
        for line in BufReader::new(stream.try_clone()?).lines() {
            if line?.is_empty() {
                break;
            }
        }
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    })
}

/// Sends back each datagram to where it came from.
pub(crate) fn udp_echo(socket: UdpSocket) -> SocketAddr {
    datagrams(socket, |datagram, _| Some(datagram.to_vec()))
}

/// Answers each datagram with the address it came from.
pub(crate) fn udp_mirror(socket: UdpSocket) -> SocketAddr {
    datagrams(socket, |_, from| Some(from.to_string().into_bytes()))
}

/// Answers each DNS query with one A record that holds `answer`, over UDP and TCP.
pub(crate) fn dns(sockets: (UdpSocket, TcpListener), answer: Ipv4Addr) -> SocketAddr {
    let (udp, tcp) = sockets;
    each(tcp, move |mut stream| {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query)?;
            let Some(reply) = dns_reply(&query, answer) else { return Ok(()) };
            let mut message = u16::try_from(reply.len()).unwrap().to_be_bytes().to_vec();
            message.extend(reply);
            stream.write_all(&message)?;
        }
    });
    datagrams(udp, move |query, _| dns_reply(query, answer))
}

/// A query for the A record of `name`, RFC 1035 section 4.1.
pub(crate) fn dns_query(id: u16, name: &str) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The header and the question of the query, and one answer record. What else the query holds, as the OPT
/// record of dig(1), is left out.
fn dns_reply(query: &[u8], answer: Ipv4Addr) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = query.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let mut reply = query.get(..HEADER + name + 5)?.to_vec();
    reply[2..HEADER].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    // Name: that of the question; A, IN, 60 s, 4 bytes.
    reply.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    reply.extend(answer.octets());
    Some(reply)
}

fn each(
    listener: TcpListener,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            // A client that goes away is its test's business.
            thread::spawn(move || stream.and_then(|stream| serve(stream)));
        }
    });
    address
}

fn datagrams(
    socket: UdpSocket,
    reply: impl Fn(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static,
) -> SocketAddr {
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        loop {
            // An error is one that an earlier reply has met.
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            if let Some(reply) = reply(&buffer[..length], from) {
                let _ = socket.send_to(&reply, from);
            }
        }
    });
    address
}
