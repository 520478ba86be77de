//! Tests that need namespaces of their own. The test binary starts itself again inside them, with the one test to run.
//! If the kernel refuses, the test fails.

use std::env;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nsnet_proto::vnet::HEADER_LEN;
use nsnet_proto::{Channel, InterfaceAddress, NamespaceId, Offload, Setup};

use crate::{Namespaces, TunDevice, sys};

const INSIDE: &str = "NSNET_TEST_INSIDE";

/// Whether this is the inner run of `test`. In the outer run, makes the inner
/// one happen in new namespaces and checks that it has passed.
#[track_caller]
pub(crate) fn inside(namespaces: Namespaces, module: &str, test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = again(module, test);
    namespaces.enter_on_exec(&mut command);
    let output = command.output().map_err(|error| namespaces.explain(error)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "inside: {:?}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    false
}

/// Runs `body` as the only thread of a process, because the harness has threads of its own. For inner runs only:
/// nothing else may be going on in the process.
#[track_caller]
pub(crate) fn alone(body: impl FnOnce()) {
    assert!(env::var_os(INSIDE).is_some());
    let status = sys::run_forked(body);
    assert!(status.success(), "the forked child: {status:?}");
}

/// A command that runs the inner part of `test`.
pub(crate) fn again(module: &str, test: &str) -> Command {
    let (_crate, module) = module.split_once("::").unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([&format!("{module}::{test}"), "--exact", "--nocapture", "--test-threads=1"]);
    command.env(INSIDE, "1").stdin(Stdio::null());
    command
}

/// A setup as hosts send it by default.
pub(crate) fn setup(offload: Offload) -> Setup {
    let address = |address: &str, prefix_len, gateway: &str| {
        InterfaceAddress::new(address.parse().unwrap(), prefix_len, gateway.parse().unwrap())
    };
    let mut setup = Setup::new("tun0", 1500, NamespaceId { device: 0, inode: 0 });
    setup.addresses = vec![address("10.99.2.100", 24, "10.99.2.2"), address("fd00::100", 64, "fd00::2")];
    setup.dns = vec!["10.99.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
    setup.offload = offload;
    setup
}

/// The same for a device of several queues.
pub(crate) fn setup_of_queues(queues: u16, offload: Offload) -> Setup {
    let mut setup = setup(offload);
    setup.queues = queues;
    setup
}

/// The host's end, and the end for the container side.
pub(crate) fn ends(setup: &Setup) -> (Channel, OwnedFd) {
    let (host, container) = Channel::pair().unwrap();
    host.send(setup, &[]).unwrap();
    (host, container.into_fd())
}

/// The host's ends of as many queues as `setup` names, the first one apart, and the end for the container side.
pub(crate) fn ends_with(setup: &Setup) -> (Channel, Vec<Channel>, OwnedFd) {
    let (host, container) = Channel::pair().unwrap();
    let (further, theirs): (Vec<_>, Vec<_>) = (1..setup.queues).map(|_| Channel::pair().unwrap()).unzip();
    let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    host.send(setup, &fds).unwrap();
    (host, further, container.into_fd())
}

/// The host's end and a device that is up.
#[track_caller]
pub(crate) fn configured(offload: Offload) -> (Channel, TunDevice) {
    let (host, fd) = ends(&setup(offload));
    let mut device = TunDevice::from_fd(fd).unwrap();
    device.configure().unwrap();
    (host, device)
}

/// Output of `ip` in the calling thread's namespaces.
#[track_caller]
pub(crate) fn ip(arguments: &str) -> (ExitStatus, String) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Sends a datagram out of the container and mirrors it as the host, with `receive` and `send`. Checks that it comes
/// back. `receive` yields frames with a header, and `send` takes them.
#[track_caller]
pub(crate) fn datagram_goes_out_and_back(
    mut receive: impl FnMut() -> Vec<u8>,
    mut send: impl FnMut(&[u8]),
) -> Vec<u8> {
    let socket = UdpSocket::bind("10.99.2.100:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"there and back", "10.99.2.2:9").unwrap();
    let frame = loop {
        let frame = receive();
        let packet = &frame[HEADER_LEN..];
        // The kernel sends packets of its own, such as multicast reports.
        if packet[0] == 0x45 && packet[9] == 17 {
            break frame;
        }
    };
    let mut answer = frame.clone();
    let packet = &mut answer[HEADER_LEN..];
    // Sums do not depend on the order, so exchanging addresses and ports keeps every checksum right.
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    let (source, destination) = packet[20..24].split_at_mut(2);
    source.swap_with_slice(destination);
    send(&answer);
    let mut buffer = [0; 64];
    let (len, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"there and back"[..], "10.99.2.2:9".parse().unwrap()));
    frame
}
