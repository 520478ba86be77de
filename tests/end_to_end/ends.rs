//! What other containers notice of a container's end: nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nsnet::host::{End, Member, Network};

use crate::world::{
    Container, PATIENCE, SERVER, World, accept, eventually, in_both_carriages, once, server, within,
};

in_both_carriages! {
    neighbours_are_served_while_many_connections_end,
}

once! {
    devices_are_deleted_on_a_thread_that_ends,
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

/// Each of them is gone when its end is told. In the end no thread is left.
fn devices_are_deleted_on_a_thread_that_ends(world: &World) {
    const CONTAINERS: usize = 20;
    let network = Arc::new(Network::builder().build().unwrap());
    let spared = Container::member(&network, world.carriage(), Member::new());
    let mut stream = spared.connect(server::tcp_echo(world.listen(SERVER[0]))).unwrap();
    let containers: Vec<_> =
        (0..CONTAINERS).map(|_| Container::member(&network, world.carriage(), Member::new())).collect();
    containers.iter().for_each(Container::close);
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    for container in &containers {
        assert!(matches!(container.attachment().wait_ended(PATIENCE), Some(End::Closed)));
        assert!(!container.command("ip").args(["link", "show", "tun0"]).status().unwrap().success());
    }
    drop((containers, spared, network));
    eventually("no thread is left", || threads_of_the_library().is_empty());
}

/// The names of the threads that the library has started in this process.
fn threads_of_the_library() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.unwrap().path().join("comm"));
    tasks.filter_map(|task| name(task).ok()).filter(|name| name.starts_with("nsnet")).collect()
}

/// Connections of a container, with their other ends.
fn open(world: &World, container: &Container, count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = world.listen(SERVER[0]);
    let address = listener.local_addr().unwrap();
    (0..count).map(|_| (container.connect(address).unwrap(), accept(&listener))).collect()
}
