//! What other containers notice of a container's end: nothing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nsnet::host::{End, Member, Network};

use crate::world::{
    Container, PATIENCE, SERVER, World, accept, eventually, in_both_carriages, server, within,
};

in_both_carriages! {
    neighbours_are_served_while_many_connections_end,
}

/// By the embedder's order, and because the device is deleted.
fn neighbours_are_served_while_many_connections_end(world: &World) {
    const CONNECTIONS: usize = 1000;
    let network = Arc::new(Network::builder().build().unwrap());
    let [closed, deleted, spared] =
        [(); 3].map(|()| Container::member(&network, world.carriage(), Member::new()));
    let mut spared_stream = spared.connect(server::tcp_echo(world.listen(SERVER[0]))).unwrap();
    let mut streams = [&closed, &deleted].map(|container| open(world, container, CONNECTIONS));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let served = scope.spawn(|| {
            let mut answers = 0;
            while !is_over.load(Ordering::Relaxed) {
                within(PATIENCE, || {
                    spared_stream.write_all(b"hello").unwrap();
                    spared_stream.read_exact(&mut [0; 5]).unwrap();
                });
                answers += 1;
            }
            answers
        });
        closed.close();
        assert!(deleted.command("ip").args(["link", "delete", "tun0"]).status().unwrap().success());
        assert!(matches!(closed.attachment().wait_ended(PATIENCE), Some(End::Closed)));
        assert!(matches!(deleted.attachment().wait_ended(PATIENCE), Some(End::LinkGone)));
        for container in [&closed, &deleted] {
            eventually("its connections are gone", || container.statistics().tcp.active == 0);
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(served.join().unwrap() > 0);
    });
    for (_, theirs) in streams.iter_mut().flatten() {
        theirs.read_exact(&mut [0]).unwrap_err();
    }
    for (ours, _) in &mut streams[0] {
        ours.read_exact(&mut [0]).unwrap_err();
    }
}

/// Connections of a container, with their other ends.
fn open(world: &World, container: &Container, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = world.listen(SERVER[0]);
    let address = listener.local_addr().unwrap();
    (0..count).map(|_| (container.connect(address).unwrap(), accept(&listener))).collect()
}
