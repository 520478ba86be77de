//! A world of its own for every end-to-end test.
//!
//! ```text
//!   a network namespace          the process's own                       a network namespace
//!  ┌ container ─────────┐       ┌ host ────────────────────────┐        ┌ server ────────────────┐
//!  │ tun0               │ nsnet │ veth0 10.99.0.1/24           │        │ veth0 10.99.0.2/24     │
//!  │ 10.0.2.100         │◄─────►│       fd99::1/64             │◄──────►│       10.99.0.3/24     │
//!  │ fd00::100          │       │ 198.51.100.0/24 via server   │  veth  │       fd99::2/64       │
//!  └────────────────────┘       │ no other route               │        │ drops 198.51.100.0/24  │
//!                               └──────────────────────────────┘        └────────────────────────┘
//! ```
//!
//! [`hops`] adds a way with three routers on it. What servers and clients say is in [`server`] and `client`.
//!
//! All three are of one process, which runs in user, network, mount and pid namespaces made for the one test
//! it runs ([`rerun`]): it needs no privilege, sees no other test and leaves nothing behind.

mod client;
mod container;
pub(crate) mod hops;
mod namespace;
mod noise;
pub(crate) mod packets;
mod rerun;
pub(crate) mod server;
mod sys;
mod traces;

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nsnet::host::{Network, NetworkBuilder};

pub(crate) use client::{exchange, iperf3, receive};
pub(crate) use container::{Container, ContainerProcess};
pub(crate) use namespace::Namespace;
pub(crate) use noise::{Digest, Noise};
pub(crate) use rerun::{in_both_carriages, once, run, test};
pub(crate) use traces::Traces;

/// The host's addresses on its link to the server.
pub(crate) const HOST: [IpAddr; 2] = [v4(10, 99, 0, 1), v6(0xfd99, 1)];
/// The server's addresses.
pub(crate) const SERVER: [IpAddr; 2] = [v4(10, 99, 0, 2), v6(0xfd99, 2)];
/// Another address of the server.
pub(crate) const OTHER_SERVER: IpAddr = v4(10, 99, 0, 3);
/// On the link to the server, but nobody's.
pub(crate) const ABSENT: [IpAddr; 2] = [v4(10, 99, 0, 77), v6(0xfd99, 0x77)];
/// Whatever is sent there is dropped without a word.
pub(crate) const SILENT: IpAddr = v4(198, 51, 100, 1);
/// The host has no route there.
pub(crate) const NOWHERE: [IpAddr; 2] =
    [v4(203, 0, 113, 1), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// The container's addresses.
pub(crate) const CONTAINER: [IpAddr; 2] = [v4(10, 0, 2, 100), v6(0xfd00, 0x100)];
/// The gateway as the container sees it.
pub(crate) const GATEWAY: [IpAddr; 2] = [v4(10, 0, 2, 2), v6(0xfd00, 2)];
/// The addresses that answer DNS in the container.
pub(crate) const DNS: [IpAddr; 2] = [v4(10, 0, 2, 3), v6(0xfd00, 3)];

/// Longer than anything takes that does happen, also where other tests have the processor.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// What "at once" means: less than the first retransmission of a SYN, which comes after a second.
pub(crate) const AT_ONCE: Duration = Duration::from_millis(950);

/// How frames travel, as the test wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carriage {
    HandedOver,
    Shuttled,
}

/// Host and server; containers are made by the test.
pub(crate) struct World {
    carriage: Carriage,
    server: Namespace,
}

impl World {
    fn new(carriage: Carriage) -> Self {
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
            panic!("/dev/net/tun: {error}\n{TUN_REMEDIES}");
        }
        let server = Namespace::new();
        Namespace::current().ip(&format!(
            "link set lo up
            link add veth0 type veth peer name veth0 netns {}
            link set veth0 up
            addr add 10.99.0.1/24 dev veth0
            addr add fd99::1/64 dev veth0 nodad
            ",
            server.path()
        ));
        server.ip("link set lo up
            link set veth0 up
            addr add 10.99.0.2/24 dev veth0
            addr add 10.99.0.3/24 dev veth0
            addr add fd99::2/64 dev veth0 nodad
            route add blackhole 198.51.100.0/24
            ");
        Namespace::current().ip("route add 198.51.100.0/24 via 10.99.0.2");
        let world = Self { carriage, server };
        world.wait_for_link();
        world
    }

    /// The carriage under test.
    pub(crate) fn carriage(&self) -> Carriage {
        self.carriage
    }

    /// A container with the default network.
    #[track_caller]
    pub(crate) fn container(&self) -> Container {
        self.container_of(Network::builder())
    }

    /// A container of the network that `builder` describes.
    #[track_caller]
    pub(crate) fn container_of(&self, builder: NetworkBuilder) -> Container {
        Container::new(Arc::new(builder.build().unwrap()), self.carriage)
    }

    /// A process of its own that is a container of `network` and runs `script` in bash(1).
    #[track_caller]
    pub(crate) fn container_process(
        &self,
        network: impl Into<Arc<Network>>,
        script: &str,
    ) -> ContainerProcess {
        ContainerProcess::spawn(network, self.carriage, script)
    }

    /// Runs `body` on a thread in the server's namespace.
    #[track_caller]
    pub(crate) fn in_server<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.server.run(body)
    }

    /// A command that will run in the server's namespace.
    pub(crate) fn server_command(&self, program: &str) -> Command {
        self.server.command(program)
    }

    /// A listener in the server's namespace.
    #[track_caller]
    pub(crate) fn listen(&self, at: IpAddr) -> TcpListener {
        self.in_server(|| TcpListener::bind((at, 0))).unwrap()
    }

    /// A connection out of the server's namespace. Nothing that is done with it takes longer than [`PATIENCE`].
    #[track_caller]
    pub(crate) fn connect(&self, to: SocketAddr) -> TcpStream {
        let stream = self.in_server(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A UDP socket in the server's namespace.
    #[track_caller]
    pub(crate) fn udp(&self, at: IpAddr) -> UdpSocket {
        let socket = self.in_server(|| UdpSocket::bind((at, 0))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// The sockets of a DNS server, at the port of DNS in the server's namespace.
    #[track_caller]
    pub(crate) fn dns(&self, at: IpAddr) -> (UdpSocket, TcpListener) {
        self.in_server(|| dns_sockets(at))
    }

    /// An address in the server's namespace at which nobody listens.
    #[track_caller]
    pub(crate) fn closed(&self, at: IpAddr) -> SocketAddr {
        self.listen(at).local_addr().unwrap()
    }

    /// An empty directory that nobody else sees and that ends with the test.
    pub(crate) fn scratch(&self) -> PathBuf {
        let path = "/mnt";
        mount::<_, _, _, str>(Some("nsnet-test"), path, Some("tmpfs"), MsFlags::empty(), None).unwrap();
        path.into()
    }

    /// Waits until the server answers, which makes the neighbours known as well.
    fn wait_for_link(&self) {
        for server in SERVER {
            eventually("the veth pair carries packets", || {
                let closed = TcpStream::connect_timeout(&(server, 1).into(), Duration::from_secs(1));
                closed.is_err_and(|error| errno(&error) == Errno::ECONNREFUSED)
            });
        }
    }
}

/// The sockets of a DNS server in the namespace of the caller.
#[track_caller]
pub(crate) fn dns_sockets(at: IpAddr) -> (UdpSocket, TcpListener) {
    (UdpSocket::bind((at, 53)).unwrap(), TcpListener::bind((at, 53)).unwrap())
}

/// Where cargo has put an example.
#[track_caller]
pub(crate) fn example(name: &str) -> PathBuf {
    let beside = || env::current_exe().unwrap().parent().unwrap().with_file_name("examples");
    let path = env::var_os("NSNET_EXAMPLES").map_or_else(beside, PathBuf::from).join(name);
    assert!(
        path.exists(),
        "{}: no such file; cargo build --examples makes it (with --release if the tests are built so), \
         NSNET_EXAMPLES says where else it is",
        path.display()
    );
    path
}

/// Runs a command that must succeed and returns what it said.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> String {
    let output =
        command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap_or_else(|error| {
            panic!("{command:?}: {error}; tests/run knows which packages are needed")
        });
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command:?}: {}; it said:\n{said}", output.status);
    said
}

/// The next connection of `listener`.
#[track_caller]
pub(crate) fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The number the kernel gave as the reason; 0 if the error is not the kernel's.
pub(crate) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// Fails unless `result` is an error with this number.
#[track_caller]
pub(crate) fn assert_errno<T: std::fmt::Debug>(result: io::Result<T>, expected: Errno) {
    let error = result.expect_err("it must fail");
    assert_eq!(errno(&error), expected, "{error}");
}

/// Sets an option of a socket that is an int, and that nix does not know.
#[track_caller]
pub(crate) fn set_option(socket: &impl AsFd, level: i32, name: i32, value: i32) {
    sys::set_option(socket.as_fd(), level, name, value).unwrap();
}

/// Reads an option of a socket that is an int, and that nix does not know.
#[track_caller]
pub(crate) fn option(socket: &impl AsFd, level: i32, name: i32) -> i32 {
    sys::option(socket.as_fd(), level, name).unwrap()
}

/// Whether the kernel knows an option of a socket.
pub(crate) fn knows_option(socket: &impl AsFd, level: i32, name: i32) -> bool {
    sys::option(socket.as_fd(), level, name).is_ok()
}

/// A queue of the TUN or TAP device of this name in the network namespace of the caller, made if there is none; the flags
/// are those of `TUNSETIFF`.
#[track_caller]
pub(crate) fn tun(name: &str, flags: i32) -> OwnedFd {
    sys::tun(name, flags).unwrap()
}

/// How long `body` took, and what it returned.
pub(crate) fn timed<T>(body: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = body();
    (start.elapsed(), result)
}

/// Runs `body` and fails if it took longer than `limit`.
#[track_caller]
pub(crate) fn within<T>(limit: Duration, body: impl FnOnce() -> T) -> T {
    let (took, result) = timed(body);
    assert!(took < limit, "took {took:?}, more than {limit:?}");
    result
}

/// Looks until `condition` holds, for what nobody announces.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Memory of this process that is really there, in bytes (`VmRSS` of proc_pid_status(5)).
pub(crate) fn resident_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(first: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last))
}

const TUN_REMEDIES: &str = "\
The end-to-end tests need the TUN driver, as nsnet itself does.
 - no such file: modprobe tun, or docker run --device /dev/net/tun
 - permission denied: chmod 0666 /dev/net/tun, which is what desktop distributions set";
