//! What tests say to their servers.

use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Shutdown, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;

use super::noise::{Digest, Noise};
use super::output;

/// Sends `up` bytes to a [`server::exchange`](super::server::exchange) while it sends `down` bytes, ends its half, and
/// compares what arrived.
#[track_caller]
pub(crate) fn exchange(stream: TcpStream, up: u64, down: u64) {
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let sent = Noise::new(2).send(&mut writer, up).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
        sent
    });
    let received = Digest::receive((&stream).take(down)).unwrap();
    let mut reported = Vec::new();
    (&stream).read_to_end(&mut reported).unwrap();
    let sent = sender.join().unwrap();
    assert_eq!(reported, sent.to_bytes(), "what the server received is not what was sent");
    let expected = Noise::new(1).send(io::sink(), down).unwrap();
    assert_eq!(received, expected, "what was received is not what the server sent");
}

/// The next datagram, of any length.
pub(crate) fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// Runs iperf3 for a second, as server and client, with these options of the client. Returns what the client says.
#[track_caller]
pub(crate) fn iperf3(mut server: Command, mut client: Command, address: IpAddr, options: &[&str]) -> String {
    let address = address.to_string();
    let mut server = server
        .args(["-s", "-1", "--forceflush", "-B", &address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("iperf3: {error}; it comes with the Debian package iperf3"));
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("Server listening")), "iperf3 does not listen");
    let said = output(client.args(["-c", &address, "-t", "1"]).args(options));
    lines.for_each(drop);
    assert!(server.wait().unwrap().success(), "the server of iperf3 {options:?}");
    said
}
