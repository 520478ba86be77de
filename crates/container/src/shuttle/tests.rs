use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc::channel;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::send;
use nsnet_proto::vnet::{Checksum, Header};
use nsnet_proto::{Channel, Offload};

use super::*;
use crate::Namespaces;
use crate::testing::{
    configured, datagram_goes_out_and_back, ends, ends_with, inside, ip, setup, setup_of_queues,
};

const NAMESPACES: Namespaces = Namespaces::new().user().network();
/// A grace that no test waits for.
const LONG: Duration = Duration::from_secs(60);

#[track_caller]
fn shuttled(offload: Offload) -> (OwnedFd, Shuttle) {
    let (host, device) = configured(offload);
    let shuttle = device.shuttle().unwrap();
    (frames_after_ready(host, shuttle.ready()), shuttle)
}

#[track_caller]
fn frames_after_ready(host: Channel, expected: Ready) -> OwnedFd {
    let (report, fds) = host.receive::<Report>().unwrap();
    assert_eq!((report, fds.len()), (Report::Ready(expected), 0));
    host.into_fd()
}

fn receive_frame(host: &OwnedFd) -> Vec<u8> {
    let mut frame = vec![0; FRAME_MAX];
    let len = recv(host.as_raw_fd(), &mut frame, MsgFlags::empty()).unwrap();
    frame.truncate(len);
    frame
}

fn send_frame(host: &OwnedFd, frame: &[u8]) {
    send(host.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL).unwrap();
}

fn datagram(host: &OwnedFd) -> Vec<u8> {
    datagram_goes_out_and_back(|| receive_frame(host), |frame| send_frame(host, frame))
}

/// Sends more than the socketpair holds. The rest fits into the device's queue and waits there.
#[track_caller]
fn hundred_large_datagrams_on_the_way() -> (OwnedFd, Shuttle) {
    let (host, device) = configured(Offload::NONE);
    assert!(ip("link set tun0 mtu 65535").0.success());
    let shuttle = device.shuttle().unwrap();
    let host = frames_after_ready(host, shuttle.ready());
    let socket = std::net::UdpSocket::bind("10.99.2.100:0").unwrap();
    for number in 0..100u8 {
        socket.send_to(&[number; 65507], "10.99.2.2:9").unwrap();
    }
    (host, shuttle)
}

/// How many of these datagrams arrive, in order, until there are `wanted` or the shuttle ends.
#[track_caller]
fn large_datagrams(host: &OwnedFd, wanted: usize) -> usize {
    let mut count = 0;
    while count < wanted {
        let frame = receive_frame(host);
        if frame.is_empty() {
            break;
        }
        if frame[vnet::HEADER_LEN] == 0x45 {
            assert_eq!((frame.len(), frame.last().copied()), (FRAME_MAX, u8::try_from(count).ok()));
            count += 1;
        }
    }
    count
}

/// A connection within the namespace.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// How much of `grace` is left when the shuttle has finished.
#[track_caller]
fn left_after_finish(shuttle: Shuttle, grace: Duration) -> Duration {
    let deadline = Deadline::after(grace);
    shuttle.finish(grace).unwrap();
    deadline.left()
}

/// Fails instead of hanging.
#[track_caller]
fn wait(shuttle: Shuttle) -> Result<(), Error> {
    let (done, ended) = channel();
    thread::spawn(move || done.send(shuttle.wait()));
    ended.recv_timeout(Duration::from_secs(10)).unwrap()
}

/// Looks until `condition` holds, for conditions that nobody announces.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Deadline::after(Duration::from_secs(10));
    while !condition() {
        assert!(deadline.left() > Duration::ZERO, "{what}: not within ten seconds");
        thread::yield_now();
    }
}

#[test]
fn device_that_is_down_is_refused_and_the_host_told() {
    if inside(NAMESPACES, module_path!(), "device_that_is_down_is_refused_and_the_host_told") {
        let (host, fd) = ends(&setup(Offload::NONE));
        let error = TunDevice::from_fd(fd).unwrap().shuttle().unwrap_err().to_string();
        assert!(error.contains("tun0 is down; call TunDevice::configure before"), "{error}");
        let Report::Failed(failure) = host.receive::<Report>().unwrap().0 else {
            panic!("reported as ready")
        };
        assert_eq!(failure.cause, "the interface tun0 is down");
    }
}

#[test]
fn plain_device_gets_a_header_on_the_socketpair() {
    if inside(NAMESPACES, module_path!(), "plain_device_gets_a_header_on_the_socketpair") {
        let (host, shuttle) = shuttled(Offload::NONE);
        assert_eq!(shuttle.ready(), Ready::new(Carriage::Shuttled, Offload::NONE, 1));
        let frame = datagram(&host);
        assert_eq!(Header::split(&frame).unwrap().0, Header::default());
    }
}

#[test]
fn vnet_devices_header_travels_both_ways() {
    if inside(NAMESPACES, module_path!(), "vnet_devices_header_travels_both_ways") {
        let (host, shuttle) = shuttled(Offload::ALL);
        assert!(shuttle.ready().offload.checksum);
        let frame = datagram(&host);
        let (header, _) = Header::split(&frame).unwrap();
        assert_eq!(header.checksum, Checksum::Partial { start: 20, offset: 6 });
    }
}

#[test]
fn many_large_frames_queue_without_loss() {
    if !inside(NAMESPACES, module_path!(), "many_large_frames_queue_without_loss") {
        return;
    }
    let (host, _shuttle) = hundred_large_datagrams_on_the_way();
    assert_eq!(large_datagrams(&host, 100), 100);
}

#[test]
fn what_the_device_has_queued_still_arrives_after_the_stop() {
    if !inside(NAMESPACES, module_path!(), "what_the_device_has_queued_still_arrives_after_the_stop") {
        return;
    }
    let (host, shuttle) = hundred_large_datagrams_on_the_way();
    shuttle.stop();
    // The next read of the device must find the rest there. The interface must not be gone.
    assert_eq!(large_datagrams(&host, usize::MAX), 100);
    wait(shuttle).unwrap();
    assert!(!ip("link show tun0").0.success());
}

#[test]
fn last_datagram_before_the_stop_arrives() {
    if !inside(NAMESPACES, module_path!(), "last_datagram_before_the_stop_arrives") {
        return;
    }
    for _ in 0..20 {
        let (host, shuttle) = shuttled(Offload::ALL);
        let socket = std::net::UdpSocket::bind("10.99.2.100:0").unwrap();
        socket.send_to(b"last words", "10.99.2.2:9").unwrap();
        drop(shuttle);
        let frames: Vec<_> =
            std::iter::from_fn(|| Some(receive_frame(&host)).filter(|frame| !frame.is_empty())).collect();
        assert!(frames.iter().any(|frame| frame.ends_with(b"last words")));
    }
}

/// The host's ends of a shuttle of two queues.
#[track_caller]
fn two_queues() -> ([OwnedFd; 2], Shuttle) {
    let (host, mut further, fd) = ends_with(&setup_of_queues(2, Offload::ALL));
    let mut device = TunDevice::from_fd(fd).unwrap();
    device.configure().unwrap();
    let shuttle = device.shuttle().unwrap();
    assert_eq!(shuttle.ready().queues, 2);
    ([frames_after_ready(host, shuttle.ready()), further.pop().unwrap().into_fd()], shuttle)
}

/// Sends datagrams from 64 ports, which the kernel spreads over the queues.
fn send_from_many_ports() {
    for number in 0..64u8 {
        let socket = std::net::UdpSocket::bind("10.99.2.100:0").unwrap();
        socket.send_to(&[b'#', number], "10.99.2.2:9").unwrap();
    }
}

/// The numbers of the datagrams that arrive until the shuttle ends.
fn numbers_until_the_end(host: &OwnedFd) -> Vec<u8> {
    std::iter::from_fn(|| Some(receive_frame(host)).filter(|frame| !frame.is_empty()))
        .filter_map(|frame| match frame[..] {
            [.., b'#', number] if frame[vnet::HEADER_LEN] == 0x45 => Some(number),
            _ => None,
        })
        .collect()
}

#[test]
fn each_queue_has_its_share_and_is_drained_before_the_end() {
    if !inside(NAMESPACES, module_path!(), "each_queue_has_its_share_and_is_drained_before_the_end") {
        return;
    }
    let (hosts, shuttle) = two_queues();
    send_from_many_ports();
    drop(shuttle);
    let shares = hosts.each_ref().map(numbers_until_the_end);
    assert!(shares.iter().all(|share| !share.is_empty()), "{shares:?}");
    let mut all = shares.concat();
    all.sort_unstable();
    assert_eq!(all, (0..64).collect::<Vec<u8>>());
    assert!(!ip("link show tun0").0.success());
}

#[test]
fn any_queue_takes_frames_for_the_container() {
    if inside(NAMESPACES, module_path!(), "any_queue_takes_frames_for_the_container") {
        let (hosts, _shuttle) = two_queues();
        let any = || {
            let mut fds = hosts.each_ref().map(|host| PollFd::new(host.as_fd(), PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::NONE).unwrap();
            receive_frame(&hosts[usize::from(fds[0].any() != Some(true))])
        };
        for host in &hosts {
            datagram_goes_out_and_back(any, |frame| send_frame(host, frame));
        }
    }
}

#[test]
fn one_queue_that_ends_leaves_the_interface_to_the_other() {
    if inside(NAMESPACES, module_path!(), "one_queue_that_ends_leaves_the_interface_to_the_other") {
        let ([first, second], shuttle) = two_queues();
        drop(second);
        // Its threads have ended, but its fd is still open, so the flows of the first queue do not move.
        eventually("the second queue has ended", || shuttle.has_ended());
        assert!(ip("link show tun0").0.success());
        drop(first);
        wait(shuttle).unwrap();
        assert!(!ip("link show tun0").0.success());
    }
}

#[test]
fn absurd_frames_are_dropped_and_the_next_arrives() {
    if inside(NAMESPACES, module_path!(), "absurd_frames_are_dropped_and_the_next_arrives") {
        let (host, _shuttle) = shuttled(Offload::ALL);
        send_frame(&host, &[0; 3]);
        send_frame(&host, &[0; vnet::HEADER_LEN]);
        send_frame(&host, &[0xff; 100]);
        send_frame(&host, &vec![0; FRAME_MAX + 1]);
        datagram(&host);
    }
}

#[test]
fn device_that_is_down_drops_frames_and_recovers() {
    if inside(NAMESPACES, module_path!(), "device_that_is_down_drops_frames_and_recovers") {
        let (host, _shuttle) = shuttled(Offload::NONE);
        let frame = datagram(&host);
        assert!(ip("link set tun0 down").0.success());
        send_frame(&host, &frame);
        assert!(ip("link set tun0 up").0.success());
        datagram(&host);
    }
}

#[test]
fn host_closing_ends_the_shuttle_and_the_interface() {
    if inside(NAMESPACES, module_path!(), "host_closing_ends_the_shuttle_and_the_interface") {
        let (host, shuttle) = shuttled(Offload::NONE);
        drop(host);
        wait(shuttle).unwrap();
        assert!(!ip("link show tun0").0.success());
    }
}

#[test]
fn stopping_shows_the_host_an_end_and_takes_the_interface() {
    if inside(NAMESPACES, module_path!(), "stopping_shows_the_host_an_end_and_takes_the_interface") {
        let (host, shuttle) = shuttled(Offload::NONE);
        shuttle.stop();
        wait(shuttle).unwrap();
        assert!(!ip("link show tun0").0.success());
        while !receive_frame(&host).is_empty() {}
    }
}

#[test]
fn dropping_stops_even_while_the_host_does_not_read() {
    if !inside(NAMESPACES, module_path!(), "dropping_stops_even_while_the_host_does_not_read") {
        return;
    }
    let (_host, shuttle) = shuttled(Offload::NONE);
    let socket = std::net::UdpSocket::bind("10.99.2.100:0").unwrap();
    for _ in 0..4000 {
        socket.send_to(&[0; 1400], "10.99.2.2:9").unwrap();
    }
    let (done, ended) = channel();
    thread::spawn(move || {
        drop(shuttle);
        done.send(())
    });
    ended.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(!ip("link show tun0").0.success());
}

#[test]
fn deleted_interface_is_an_error_and_ends_the_conversation() {
    if inside(NAMESPACES, module_path!(), "deleted_interface_is_an_error_and_ends_the_conversation") {
        let (host, shuttle) = shuttled(Offload::NONE);
        assert!(ip("link delete tun0").0.success());
        let error = wait(shuttle).unwrap_err();
        assert!(error.to_string().contains("TUN device"), "{error}");
        while !receive_frame(&host).is_empty() {}
    }
}
#[test]
fn finish_returns_at_once_when_nothing_is_left_to_deliver() {
    if inside(NAMESPACES, module_path!(), "finish_returns_at_once_when_nothing_is_left_to_deliver") {
        let (_host, shuttle) = shuttled(Offload::NONE);
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(left_after_finish(shuttle, LONG) > LONG / 2);
        assert!(!ip("link show tun0").0.success());
    }
}

#[test]
fn finish_waits_for_an_open_connection_until_grace_is_over() {
    if inside(NAMESPACES, module_path!(), "finish_waits_for_an_open_connection_until_grace_is_over") {
        let (_host, shuttle) = shuttled(Offload::NONE);
        let _open = connection();
        assert_eq!(left_after_finish(shuttle, Duration::from_millis(100)), Duration::ZERO);
        assert!(!ip("link show tun0").0.success());
    }
}

#[test]
fn finish_waits_for_a_connection_attempt_until_grace_is_over() {
    if inside(NAMESPACES, module_path!(), "finish_waits_for_a_connection_attempt_until_grace_is_over") {
        let (_host, shuttle) = shuttled(Offload::NONE);
        thread::spawn(|| TcpStream::connect("[fd00::2]:9"));
        eventually("a connection attempt is under way", || unacknowledged::any().unwrap());
        assert_eq!(left_after_finish(shuttle, Duration::from_millis(100)), Duration::ZERO);
    }
}

#[test]
fn finish_ends_as_soon_as_the_last_connection_does() {
    if inside(NAMESPACES, module_path!(), "finish_ends_as_soon_as_the_last_connection_does") {
        let (host, shuttle) = shuttled(Offload::NONE);
        let open = connection();
        let closing = thread::spawn(move || {
            // Copied on meanwhile.
            datagram(&host);
            drop(open);
            host
        });
        assert!(left_after_finish(shuttle, LONG) > LONG / 2);
        closing.join().unwrap();
    }
}

#[test]
fn finish_does_not_wait_once_the_host_is_gone() {
    if inside(NAMESPACES, module_path!(), "finish_does_not_wait_once_the_host_is_gone") {
        let (host, shuttle) = shuttled(Offload::NONE);
        let _open = connection();
        drop(host);
        assert!(left_after_finish(shuttle, LONG) > LONG / 2);
    }
}

#[test]
fn socket_errors_cost_a_frame_or_the_conversation() {
    assert_eq!(socket_trouble(Errno::ENOBUFS), Trouble::FrameLost);
    assert_eq!(socket_trouble(Errno::ENOMEM), Trouble::FrameLost);
    assert_eq!(socket_trouble(Errno::EPIPE), Trouble::HostGone);
    assert_eq!(socket_trouble(Errno::ECONNRESET), Trouble::HostGone);
    assert_eq!(socket_trouble(Errno::EINTR), Trouble::Interrupted);
    assert_eq!(socket_trouble(Errno::ENOTCONN), Trouble::Fatal);
}
