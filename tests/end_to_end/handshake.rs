//! Attaching, and all that can go wrong with it. Whatever the container side does, the host side says what it
//! was, and soon.

use std::fs::{self, File};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nsnet::container::TunDevice;
use nsnet::host::{Attachment, Member, Network};
use nsnet_proto::{Carriage, Channel, Failure, Offload, Ready, Report, Setup};

use crate::world::{
    self, Container, Namespace, Noise, PATIENCE, SERVER, World, eventually, in_both_carriages, once, server,
    within,
};

in_both_carriages! {
    attached_container_is_ready,
    containers_of_one_network_share_it,
    device_that_is_down_is_not_ready,
}

once! {
    command_of_an_async_runtime_is_attached,
    command_that_closes_its_fds_is_noticed,
    command_that_exits_without_a_word_is_noticed,
    command_that_cannot_be_started_is_noticed,
    silence_ends_with_the_timeout,
    failure_inside_is_told_in_its_own_words,
    garbage_is_not_taken_for_a_container,
    another_version_is_named,
    fd_that_is_no_tun_device_is_not_adopted,
    hand_over_without_a_device_is_refused,
    queues_that_were_not_offered_are_refused,
    queues_without_their_devices_are_refused,
    failed_attachments_leak_no_fd,
    frames_of_garbage_harm_nobody,
    frames_with_descriptors_are_refused,
}

/// Longer than any of this takes, shorter than the timeout that it must not wait for.
const SOON: Duration = Duration::from_secs(5);

fn attached_container_is_ready(world: &World) {
    let container = world.container();
    let expected = match world.carriage() {
        world::Carriage::HandedOver => Carriage::HandedOver,
        world::Carriage::Shuttled => Carriage::Shuttled,
    };
    assert_eq!(container.ready().carriage, expected);
}

fn containers_of_one_network_share_it(world: &World) {
    let network = std::sync::Arc::new(Network::builder().build().unwrap());
    let containers = [(); 2].map(|()| Container::new(network.clone(), world.carriage()));
    for container in &containers {
        assert_echoes(world, container);
    }
    assert_eq!(network.statistics().tcp.opened, 2);
}

fn device_that_is_down_is_not_ready(world: &World) {
    let network = Network::builder().build().unwrap();
    let (attachment, fd) = network.attach_fd(Member::new()).unwrap();
    let carriage = world.carriage();
    Namespace::new().run(move || {
        let device = TunDevice::from_fd(fd).unwrap();
        match carriage {
            world::Carriage::HandedOver => drop(device.hand_over().unwrap_err()),
            world::Carriage::Shuttled => drop(device.shuttle().unwrap_err()),
        }
    });
    let error = ends_soon(attachment);
    assert!(error.contains("the interface tun0 is down; call TunDevice::configure before"), "{error}");
}

fn command_of_an_async_runtime_is_attached(_: &World) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let network = Network::builder().build().unwrap();
        // Started with a network attached, it is the container side.
        let mut command = tokio::process::Command::new(world::example("rootless-shell"));
        command.args(["sh", "-c", "exit 7"]);
        let mut attachment = network.attach(command.as_std_mut(), Member::new()).unwrap();
        let mut child = command.spawn().unwrap();
        attachment.ready().await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(7));
    });
}

fn command_that_closes_its_fds_is_noticed(_: &World) {
    let close_all =
        r#"for fd in /proc/self/fd/*; do fd=${fd##*/}; [ "$fd" -le 2 ] || eval "exec $fd>&-"; done"#;
    let error = error_of_command(Command::new("bash").arg("-c").arg(format!("{close_all}; exec sleep 60")));
    assert!(error.contains("closed"), "{error}");
}

fn command_that_exits_without_a_word_is_noticed(_: &World) {
    let error = error_of_command(&mut Command::new("true"));
    assert!(error.contains("closed"), "{error}");
}

fn command_that_cannot_be_started_is_noticed(_: &World) {
    let network = Network::builder().build().unwrap();
    let mut command = Command::new("/nonexistent");
    let mut attachment = network.attach(&mut command, Member::new()).unwrap();
    command.spawn().unwrap_err();
    let error = within(SOON, || attachment.wait_ready(PATIENCE)).unwrap_err().to_string();
    assert!(error.contains("closed"), "{error}");
}

fn silence_ends_with_the_timeout(_: &World) {
    let network = Network::builder().build().unwrap();
    let (mut attachment, _fd) = network.attach_fd(Member::new()).unwrap();
    let error = within(SOON, || attachment.wait_ready(Duration::from_millis(300))).unwrap_err().to_string();
    assert!(error.contains("300ms"), "{error}");
}

fn failure_inside_is_told_in_its_own_words(_: &World) {
    let error = error_after(|channel| {
        let mut failure = Failure::new("feed the cat", "Permission denied");
        failure.errno = Some(13);
        failure.remedy = "ask the cat".into();
        channel.send(&Report::Failed(failure), &[]).unwrap();
        channel.into_fd()
    });
    for part in ["feed the cat", "Permission denied", "ask the cat"] {
        assert!(error.contains(part), "{error}");
    }
}

fn garbage_is_not_taken_for_a_container(_: &World) {
    let error = error_after(|channel| write(channel, b"GET / HTTP/1.1\r\n\r\n"));
    assert!(error.contains("not one of nsnet's"), "{error}");
}

fn another_version_is_named(_: &World) {
    let error = error_after(|channel| write(channel, b"nsnt\x07\x00anything"));
    assert!(error.contains("version 7"), "{error}");
}

fn fd_that_is_no_tun_device_is_not_adopted(_: &World) {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let impostors: [OwnedFd; 4] = [
        File::open("/dev/null").unwrap().into(),
        File::open("/proc/self/exe").unwrap().into(),
        pipe.into(),
        Channel::pair().unwrap().0.into_fd(),
    ];
    for impostor in impostors {
        let error = error_after(|channel| send_ready(channel, &[impostor.as_fd()]));
        assert!(error.contains("TUN"), "{error}");
    }
    // The driver's file without a device on it.
    let unattached = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let error = error_after(|channel| send_ready(channel, &[unattached.as_fd()]));
    assert!(error.contains("TUN"), "{error}");
}

fn hand_over_without_a_device_is_refused(_: &World) {
    let error = error_after(|channel| send_ready(channel, &[]));
    assert!(error.contains("0 file descriptors where 1 was expected"), "{error}");
}

fn queues_that_were_not_offered_are_refused(_: &World) {
    for carriage in [Carriage::HandedOver, Carriage::Shuttled] {
        for queues in [0, 2, u16::MAX] {
            let error = error_after(|channel| {
                let ready = Ready::new(carriage, Offload::NONE, queues);
                channel.send(&Report::Ready(ready), &[]).unwrap();
                channel.into_fd()
            });
            assert!(error.contains(&format!("{queues} queues where up to 1")), "{error}");
        }
    }
}

/// However many fds come, and whatever they are.
fn queues_without_their_devices_are_refused(_: &World) {
    let null = File::open("/dev/null").unwrap();
    let error_of = |carriage, fds: &[BorrowedFd<'_>]| {
        let network = Network::builder().queues(2).build().unwrap();
        let (attachment, fd) = network.attach_fd(Member::new()).unwrap();
        let channel = Channel::from_fd(fd).unwrap();
        let queues = channel.receive::<Setup>().unwrap().0.queues;
        channel.send(&Report::Ready(Ready::new(carriage, Offload::NONE, queues)), fds).unwrap();
        (ends_soon(attachment), usize::from(queues))
    };
    for count in [0, 3, 16] {
        let (error, queues) = error_of(Carriage::HandedOver, &vec![null.as_fd(); count]);
        assert!(error.contains(&format!("{count} file descriptors where {queues} was")), "{error}");
    }
    let (error, _) = error_of(Carriage::Shuttled, &[null.as_fd()]);
    assert!(error.contains("1 file descriptors where 0 was"), "{error}");
    let queues = std::thread::available_parallelism().unwrap().get().min(2);
    let (error, _) = error_of(Carriage::HandedOver, &vec![null.as_fd(); queues]);
    assert!(error.contains("TUN"), "{error}");
}

fn failed_attachments_leak_no_fd(_: &World) {
    let network = Network::builder().build().unwrap();
    let fail = || {
        let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
        let null = File::open("/dev/null").unwrap();
        drop(send_ready(Channel::from_fd(fd).unwrap(), &[null.as_fd()]));
        attachment.wait_ready(PATIENCE).unwrap_err();
    };
    // The first may open what stays.
    fail();
    let before = open_fds();
    (0..10).for_each(|_| fail());
    eventually("all fds are closed", || open_fds() <= before);
}

fn frames_of_garbage_harm_nobody(world: &World) {
    let network = std::sync::Arc::new(Network::builder().build().unwrap());
    let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
    let channel = Channel::from_fd(fd).unwrap();
    let ready = Ready::new(Carriage::Shuttled, Offload::NONE, 1);
    channel.send(&Report::Ready(ready), &[]).unwrap();
    attachment.wait_ready(PATIENCE).unwrap();
    let mut socket = File::from(channel.into_fd());
    let mut drain = socket.try_clone().unwrap();
    thread::spawn(move || while drain.read(&mut [0; 65_536]).is_ok_and(|length| length > 0) {});

    let mut noise = Noise::new(1);
    for length in 1..2000 {
        let mut frame = noise.bytes(length);
        // Half of them pass for a complete packet, as far as the first check.
        if length > 12 && length % 2 == 0 {
            frame[..10].fill(0);
            frame[10] = if length % 4 == 0 { 0x45 } else { 0x60 };
        }
        socket.write_all(&frame).unwrap();
    }
    eventually("all frames are counted", || network.statistics().packets_from_container >= 1999);
    let container = Container::new(network, world.carriage());
    assert_echoes(world, &container);
}

/// What `wait_ready` says about a command.
#[track_caller]
fn error_of_command(command: &mut Command) -> String {
    let network = Network::builder().build().unwrap();
    let attachment = network.attach(command, Member::new()).unwrap();
    let mut child = command.spawn().unwrap();
    let error = ends_soon(attachment);
    child.kill().unwrap();
    child.wait().unwrap();
    error
}

/// What `wait_ready` says about a container side that does as `misbehave` and keeps open what that returns.
#[track_caller]
fn error_after(misbehave: impl FnOnce(Channel) -> OwnedFd) -> String {
    let network = Network::builder().build().unwrap();
    let (attachment, fd) = network.attach_fd(Member::new()).unwrap();
    let channel = Channel::from_fd(fd).unwrap();
    channel.receive::<Setup>().unwrap();
    let _open = misbehave(channel);
    ends_soon(attachment)
}

#[track_caller]
fn ends_soon(mut attachment: Attachment) -> String {
    within(SOON, || attachment.wait_ready(PATIENCE)).unwrap_err().to_string()
}

fn send_ready(channel: Channel, fds: &[BorrowedFd<'_>]) -> OwnedFd {
    let ready = Ready::new(Carriage::HandedOver, Offload::NONE, 1);
    channel.send(&Report::Ready(ready), fds).unwrap();
    channel.into_fd()
}

fn write(channel: Channel, bytes: &[u8]) -> OwnedFd {
    let mut socket = File::from(channel.into_fd());
    socket.write_all(bytes).unwrap();
    socket.into()
}

#[track_caller]
fn assert_echoes(world: &World, container: &Container) {
    let mut stream = container.connect(server::tcp_echo(world.listen(SERVER[0]))).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
}

fn open_fds() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The kernel closes descriptors that nobody receives, which may take long, on the thread that reads the frame.
fn frames_with_descriptors_are_refused(_: &World) {
    let network = Network::builder().queues(2).build().unwrap();
    let (mut attachment, fd) = network.attach_fd(Member::new()).unwrap();
    let channel = Channel::from_fd(fd).unwrap();
    let (setup, further) = channel.receive::<Setup>().unwrap();
    let send = |queue: &OwnedFd, descriptors: &[RawFd]| {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(queue.as_raw_fd(), &[IoSlice::new(&[0; 64])], control, MsgFlags::empty(), None)
    };
    let null = File::open("/dev/null").unwrap();
    /// Known since Linux 6.16. An older kernel takes the descriptors along.
    const SO_PASSRIGHTS: i32 = 83;
    let is_known = world::knows_option(&channel, nix::libc::SOL_SOCKET, SO_PASSRIGHTS);
    let expected = if is_known { Err(Errno::EPERM) } else { Ok(64) };
    for queue in &further {
        assert_eq!(send(queue, &[null.as_raw_fd()]), expected, "before it is ready");
    }
    let ready = Ready::new(Carriage::Shuttled, Offload::NONE, setup.queues);
    channel.send(&Report::Ready(ready), &[]).unwrap();
    attachment.wait_ready(PATIENCE).unwrap();
    for queue in further.into_iter().chain([channel.into_fd()]) {
        assert_eq!(send(&queue, &[null.as_raw_fd()]), expected);
        assert_eq!(send(&queue, &[]), Ok(64));
    }
}
