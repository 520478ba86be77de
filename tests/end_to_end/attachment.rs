//! What the embedder holds of a container: why its network has ended, and how it is ended.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nsnet::host::{
    Attachment, DirectDialer, End, FilterDialer, Finished, Flow, Member, Network, Publish, Published,
    SetupError,
};

use crate::world::{
    Carriage, Container, ContainerProcess, Digest, Noise, PATIENCE, SERVER, World, accept, eventually,
    example, in_both_carriages, once, server, within,
};

in_both_carriages! {
    deleted_device_is_told,
    closed_container_is_told_when_its_name_is_free,
    attachment_closes_when_dropped_only_if_told_to,
    ended_network_is_told_to_each_container,
    finished_attachment_has_delivered_and_spares_others,
    connections_that_were_cut_are_counted,
    nothing_to_deliver_needs_no_grace,
    async_end_waits_without_blocking,
    abandoned_end_goes_on_in_the_background,
}

once! {
    killed_shuttle_is_told,
    container_that_never_got_ready_is_told,
    finishing_waits_for_nobody_who_is_not_ready,
    resolv_conf_is_the_same_from_outside,
    dialer_ends_anything_without_waiting,
    network_that_its_dialer_finishes_has_its_grace,
}

fn deleted_device_is_told(world: &World) {
    let container = world.container();
    let attachment = container.attachment();
    assert!(attachment.wait_ended(Duration::ZERO).is_none());
    assert!(container.command("ip").args(["link", "delete", "tun0"]).status().unwrap().success());
    // The same for whoever asks, however often.
    for _ in 0..2 {
        assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::LinkGone)));
        assert!(matches!(resolved(attachment.ended()), End::LinkGone));
    }
    container.close();
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::LinkGone)));
}

fn closed_container_is_told_when_its_name_is_free(world: &World) {
    let network = Arc::new(Network::builder().build().unwrap());
    let member = Member::named("db").ipv4([10, 0, 2, 9].into());
    for _ in 0..3 {
        let container = Container::member(&network, world.carriage(), member.clone());
        let mut stream = echoing(world, &container);
        container.close();
        assert!(matches!(container.attachment().wait_ended(PATIENCE), Some(End::Closed)));
        stream.read_exact(&mut [0]).unwrap_err();
    }
}

fn attachment_closes_when_dropped_only_if_told_to(world: &World) {
    let network = Arc::new(Network::builder().build().unwrap());
    let [mut spared, mut closed] =
        [(); 2].map(|()| Container::member(&network, world.carriage(), Member::new()));
    let [mut lives, mut dies] = [&spared, &closed].map(|container| echoing(world, container));
    drop(spared.take_attachment());
    drop(closed.take_attachment().close_on_drop());
    dies.read_exact(&mut [0]).unwrap_err();
    assert_echoes(&mut lives);
}

fn ended_network_is_told_to_each_container(world: &World) {
    for grace in [None, Some(Duration::ZERO), Some(PATIENCE)] {
        let network = Arc::new(Network::builder().build().unwrap());
        let mut containers = [(); 2].map(|()| Container::member(&network, world.carriage(), Member::new()));
        containers.iter_mut().for_each(Container::drop_network);
        let network = Arc::into_inner(network).unwrap();
        match grace {
            None => drop(network),
            Some(grace) => assert_ne!(network.finish(grace), Finished::Abandoned),
        }
        for container in &containers {
            assert!(matches!(container.attachment().wait_ended(PATIENCE), Some(End::NetworkEnded)));
        }
    }
}

fn finished_attachment_has_delivered_and_spares_others(world: &World) {
    let network = Arc::new(Network::builder().build().unwrap());
    let [mut ended, spared] = [(); 2].map(|()| Container::member(&network, world.carriage(), Member::new()));
    let mut stream = echoing(world, &spared);
    let (sent, reader) = written_but_not_read(world, &ended);
    let finished = within(PATIENCE, || ended.take_attachment().finish(2 * PATIENCE));
    assert_eq!(finished, Finished::Delivered);
    assert_eq!(reader.join().unwrap(), sent);
    assert_echoes(&mut stream);
}

fn connections_that_were_cut_are_counted(world: &World) {
    for queues in [1, 2] {
        let mut container = world.container_of(Network::builder().queues(queues));
        let streams = [(); 3].map(|()| echoing(world, &container));
        let cut = container.take_attachment().finish(Duration::from_millis(100));
        assert_eq!(cut, Finished::Incomplete { connections: 3 });
        streams.into_iter().for_each(|mut stream| drop(stream.read_exact(&mut [0]).unwrap_err()));

        let mut container = world.container_of(Network::builder().queues(queues));
        let _streams = [(); 2].map(|()| echoing(world, &container));
        let cut = container.finish(Duration::from_millis(100));
        assert_eq!(cut, Finished::Incomplete { connections: 2 });
    }
}

fn nothing_to_deliver_needs_no_grace(world: &World) {
    for queues in [1, 2] {
        let mut container = world.container_of(Network::builder().queues(queues));
        drop(echoing(world, &container));
        let active = |container: &Container| container.network().statistics().tcp.active;
        eventually("the connection has ended", || active(&container) == 0);
        assert_eq!(container.take_attachment().finish(Duration::ZERO), Finished::Delivered);
        assert_eq!(container.finish(Duration::ZERO), Finished::Delivered);
    }
}

/// On no runtime at all.
fn async_end_waits_without_blocking(world: &World) {
    let mut container = world.container();
    let stream = echoing(world, &container);
    // As long as the stream is open: a call that blocked would return in the end, and be ready.
    let mut finishing = pin!(container.take_attachment().finish_async(2 * PATIENCE));
    assert!(poll(finishing.as_mut()).is_pending());
    drop(stream);
    assert_eq!(resolved(finishing), Finished::Delivered);

    let mut container = world.container();
    let stream = echoing(world, &container);
    let mut finishing = pin!(container.take_network().finish_async(2 * PATIENCE));
    assert!(poll(finishing.as_mut()).is_pending());
    drop(stream);
    assert_eq!(resolved(finishing), Finished::Delivered);
}

fn abandoned_end_goes_on_in_the_background(world: &World) {
    let mut container = world.container();
    let (sent, reader) = written_but_not_read(world, &container);
    drop(container.take_attachment().close_on_drop().finish_async(PATIENCE));
    assert_eq!(reader.join().unwrap(), sent);

    let mut container = world.container();
    let (sent, reader) = written_but_not_read(world, &container);
    drop(container.take_network().finish_async(PATIENCE));
    assert_eq!(reader.join().unwrap(), sent);
    assert!(matches!(container.attachment().wait_ended(PATIENCE), Some(End::NetworkEnded)));
}

fn killed_shuttle_is_told(_: &World) {
    let network = Network::builder().build().unwrap();
    let mut container = ContainerProcess::spawn(network, Carriage::Shuttled, "sleep 60");
    assert!(container.attachment.wait_ended(Duration::ZERO).is_none());
    container.kill();
    assert!(matches!(container.attachment.wait_ended(PATIENCE), Some(End::LinkGone)));
}

fn container_that_never_got_ready_is_told(_: &World) {
    let network = Network::builder().build().unwrap();
    let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
    drop(fd);
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::SetupFailed)));
    assert!(matches!(attachment.wait_ready(PATIENCE), Err(SetupError::ClosedEarly)));
    assert!(matches!(attachment.wait_ready(PATIENCE), Err(SetupError::AlreadyFailed)));

    let (mut attachment, _fd) = network.attach_fd(Member::new()).unwrap();
    attachment.close();
    assert!(matches!(attachment.wait_ready(PATIENCE), Err(SetupError::Closed)));
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::Closed)));
    assert_eq!(attachment.finish(PATIENCE), Finished::Delivered);

    // A command that ends is noticed although nobody waits for it to get ready.
    let mut command = Command::new("true");
    let attachment = network.attach(&mut command, Member::new()).unwrap();
    command.spawn().unwrap().wait().unwrap();
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::SetupFailed)));
}

fn finishing_waits_for_nobody_who_is_not_ready(_: &World) {
    let network = Network::builder().build().unwrap();
    let (mut attachment, _fd) = network.attach_fd(Member::new()).unwrap();
    let finished = within(PATIENCE, || network.finish(2 * PATIENCE));
    assert_eq!(finished, Finished::Delivered);
    assert!(matches!(attachment.wait_ready(PATIENCE), Err(SetupError::ShutDown)));
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::NetworkEnded)));
}

fn resolv_conf_is_the_same_from_outside(_: &World) {
    let builder = Network::builder().search_domains(["corp.test"]).dns_options(["ndots:2"]);
    let network = builder.build().unwrap();
    let mut command = Command::new(example("rootless-shell"));
    command.args(["cat", "/etc/resolv.conf"]).stdout(Stdio::piped());
    let mut attachment = network.attach(&mut command, Member::new()).unwrap();
    let outside = attachment.resolv_conf();
    let child = command.spawn().unwrap();
    attachment.wait_ready(PATIENCE).unwrap();
    let said = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(said.stdout).unwrap(), outside);
    assert!(outside.contains("nameserver 10.0.2.3\n") && outside.contains("options ndots:2\n"), "{outside}");
}

/// On the thread that would have to do what it waits for.
fn dialer_ends_anything_without_waiting(world: &World) {
    let held = Arc::<Mutex<Option<(Attachment, Published)>>>::default();
    let (told, outcome) = mpsc::channel();
    let theirs = Arc::clone(&held);
    let dialer = FilterDialer::new(DirectDialer::new(), move |_: &Flow| {
        if let Some((attachment, published)) = theirs.lock().unwrap().take() {
            published.close();
            told.send(attachment.finish(Duration::MAX)).unwrap();
        }
        Ok(())
    });
    let mut container = world.container_of(Network::builder().dialer(dialer));
    let published = container.network().publish(Publish::tcp(0, 80)).unwrap();
    let port = published.addresses()[0].port();
    *held.lock().unwrap() = Some((container.take_attachment(), published));
    let address = world.listen(SERVER[0]).local_addr().unwrap();
    // It fails if the network is gone before the answer is there.
    let _ = container.connect(address);
    assert_eq!(outcome.recv_timeout(PATIENCE).unwrap(), Finished::Abandoned);
    eventually("the port is free", || TcpListener::bind(("0.0.0.0", port)).is_ok());
}

/// On the thread that would have to wait, while a connection is open.
fn network_that_its_dialer_finishes_has_its_grace(world: &World) {
    let held = Arc::<Mutex<Option<Network>>>::default();
    let (told, outcome) = mpsc::channel();
    let theirs = Arc::clone(&held);
    let dialer = FilterDialer::new(DirectDialer::new(), move |_: &Flow| {
        if let Some(network) = theirs.lock().unwrap().take() {
            told.send(network.finish(PATIENCE)).unwrap();
        }
        Ok(())
    });
    let mut container = world.container_of(Network::builder().dialer(dialer));
    let attachment = container.take_attachment();
    let mut open = echoing(world, &container);
    *held.lock().unwrap() = Some(container.take_network());
    assert_echoes(&mut echoing(world, &container));
    assert_eq!(outcome.recv_timeout(PATIENCE).unwrap(), Finished::Abandoned);
    assert_echoes(&mut open);
    drop(open);
    assert!(matches!(attachment.wait_ended(PATIENCE), Some(End::NetworkEnded)));
}

/// A connection that is served by an echo.
#[track_caller]
fn echoing(world: &World, container: &Container) -> TcpStream {
    let mut stream = container.connect(server::tcp_echo(world.listen(SERVER[0]))).unwrap();
    assert_echoes(&mut stream);
    stream
}

#[track_caller]
fn assert_echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

/// What a payload has written before it ended, to a server that reads only after a while.
#[track_caller]
fn written_but_not_read(world: &World, container: &Container) -> (Digest, JoinHandle<Digest>) {
    let listener = world.listen(SERVER[0]);
    let stream = container.connect(listener.local_addr().unwrap()).unwrap();
    let theirs = accept(&listener);
    let sent = Noise::new(1).send(stream, 1 << 19).unwrap();
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        Digest::receive(theirs).unwrap()
    });
    (sent, reader)
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// What a future comes to without a runtime.
#[track_caller]
fn resolved<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut output = None;
    eventually("the future resolves", || match poll(future.as_mut()) {
        Poll::Ready(resolved) => {
            output = Some(resolved);
            true
        }
        Poll::Pending => false,
    });
    output.unwrap()
}
