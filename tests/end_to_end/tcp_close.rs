//! How a connection ends: each half by itself, or both at once by a reset.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use socket2::SockRef;

use crate::world::{
    AT_ONCE, Container, Digest, Noise, SERVER, World, accept, assert_errno, eventually, in_both_carriages,
    within,
};

in_both_carriages! {
    answer_still_arrives_after_the_container_has_ended_its_half,
    request_still_arrives_after_the_server_has_ended_its_half,
    both_ends_close_at_the_same_time,
    reset_by_the_server_reaches_the_container,
    reset_by_the_container_reaches_the_server,
    reset_amid_data_is_not_a_clean_end,
    what_was_written_before_the_close_arrives,
    flow_ends_when_both_ends_have_closed,
}

fn answer_still_arrives_after_the_container_has_ended_its_half(world: &World) {
    let container = world.container();
    for address in SERVER {
        let (mut ours, mut theirs) = pair(&container, &world.listen(address));
        ours.write_all(b"question").unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut theirs), b"question");
        theirs.write_all(b"answer").unwrap();
        drop(theirs);
        assert_eq!(read_to_end(&mut ours), b"answer");
    }
}

fn request_still_arrives_after_the_server_has_ended_its_half(world: &World) {
    let container = world.container();
    for address in SERVER {
        let (mut ours, mut theirs) = pair(&container, &world.listen(address));
        theirs.write_all(b"greeting").unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&mut ours), b"greeting");
        let sent = std::thread::spawn(move || Noise::new(1).send(ours, 1 << 20).unwrap());
        assert_eq!(Digest::receive(theirs).unwrap(), sent.join().unwrap());
    }
}

fn both_ends_close_at_the_same_time(world: &World) {
    let container = world.container();
    let (mut ours, mut theirs) = pair(&container, &world.listen(SERVER[0]));
    ours.shutdown(Shutdown::Write).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&mut ours), b"");
    assert_eq!(read_to_end(&mut theirs), b"");
}

fn reset_by_the_server_reaches_the_container(world: &World) {
    let container = world.container();
    for address in SERVER {
        let (mut ours, theirs) = pair(&container, &world.listen(address));
        reset(theirs);
        within(AT_ONCE, || assert_errno(ours.read(&mut [0; 1]), Errno::ECONNRESET));
    }
}

fn reset_by_the_container_reaches_the_server(world: &World) {
    let container = world.container();
    for address in SERVER {
        let (ours, mut theirs) = pair(&container, &world.listen(address));
        reset(ours);
        within(AT_ONCE, || assert_errno(theirs.read(&mut [0; 1]), Errno::ECONNRESET));
    }
}

fn reset_amid_data_is_not_a_clean_end(world: &World) {
    let container = world.container();
    let (ours, mut theirs) = pair(&container, &world.listen(SERVER[0]));
    Noise::new(1).send(&mut theirs, 100_000).unwrap();
    reset(theirs);
    assert_errno(Digest::receive(ours), Errno::ECONNRESET);

    let (mut ours, theirs) = pair(&container, &world.listen(SERVER[0]));
    Noise::new(1).send(&mut ours, 100_000).unwrap();
    reset(ours);
    assert_errno(Digest::receive(theirs), Errno::ECONNRESET);
}

/// More than the buffers on the way hold, so that the close overtakes data that nobody has read yet.
fn what_was_written_before_the_close_arrives(world: &World) {
    const LENGTH: u64 = 4 << 20;
    let container = world.container();
    let (ours, theirs) = pair(&container, &world.listen(SERVER[0]));
    for (from, to) in [(ours.try_clone().unwrap(), theirs.try_clone().unwrap()), (theirs, ours)] {
        let sent = std::thread::spawn(move || {
            let digest = Noise::new(1).send(&from, LENGTH).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
            digest
        });
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(Digest::receive(to).unwrap(), sent.join().unwrap());
    }
}

fn flow_ends_when_both_ends_have_closed(world: &World) {
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let pairs: Vec<_> = (0..10).map(|_| pair(&container, &listener)).collect();
    assert_eq!(container.network().statistics().tcp.active, 10);
    drop(pairs);
    eventually("no flow is left", || container.network().statistics().tcp.active == 0);
}

/// Both ends of a connection: the container's and the server's.
#[track_caller]
fn pair(container: &Container, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let ours = container.connect(listener.local_addr().unwrap()).unwrap();
    (ours, accept(listener))
}

/// Ends the connection with a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

#[track_caller]
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}
