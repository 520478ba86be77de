//! Why a port could not be published.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::dialer::Protocol;

/// Why a port could not be published. If one port of a range fails, none is published.
///
/// The message does not include the kernel's reason, which is its [`source`](std::error::Error::source). Print the
/// chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Another socket listens there already.
    #[error(
        "listen on {address} ({protocol}): the address is in use; choose another port, or 0 for any that is free"
    )]
    InUse {
        /// Where the socket was to listen.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
    },
    /// The port is too low for users other than root.
    #[error(
        "listen on {address} ({protocol}): only root may use ports below {lowest}; choose a higher one, or \
         run as root: sysctl net.ipv4.ip_unprivileged_port_start={port}", port = .address.port()
    )]
    LowPort {
        /// Where the socket was to listen.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// The lowest port that every user may use (`net.ipv4.ip_unprivileged_port_start`).
        lowest: u16,
    },
    /// The host does not have this address.
    #[error(
        "listen on {address} ({protocol}): this host does not have the address; see those it has with: ip address"
    )]
    NotLocal {
        /// Where the socket was to listen.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
    },
    /// The socket cannot listen for another reason.
    #[error("listen on {address} ({protocol}; if file descriptors ran out, raise RLIMIT_NOFILE)")]
    Socket {
        /// Where the socket was to listen.
        address: SocketAddr,
        /// TCP or UDP.
        protocol: Protocol,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another process listens on the UNIX socket.
    #[error("listen on {}: somebody listens there already; choose another path", .0.display())]
    FileInUse(PathBuf),
    /// A file of that name exists, and nobody listens on it.
    #[error(
        "listen on {}: the file exists, and nobody listens on it; if a program has left it behind, remove it",
        .0.display()
    )]
    FileExists(PathBuf),
    /// The UNIX socket cannot listen for another reason.
    #[error(
        "listen on {} (the directory must exist and be writable, the path have at most 107 bytes)",
        .path.display()
    )]
    File {
        /// Where the socket was to listen.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No container can have this name.
    #[error("publish for the container {name:?}: the name {problem}")]
    Container {
        /// The name.
        name: String,
        /// The rule that it breaks.
        problem: String,
    },
    /// Port 0 cannot be a port of a container.
    #[error("a container has no port 0: say which one is published")]
    NoContainerPort,
    /// The range is empty, or starts at port 0.
    #[error("the ports {first}-{last} are not a range: begin at 1 or above, with the smaller port first")]
    NoRange {
        /// The first port that was given.
        first: u16,
        /// The last port that was given.
        last: u16,
    },
    /// The container's ports would go beyond 65535.
    #[error("{count} ports from {port} on go beyond 65535: begin lower in the container")]
    BeyondPorts {
        /// The first port in the container.
        port: u16,
        /// The number of ports.
        count: usize,
    },
    /// The engine's thread has ended.
    #[error("the network has been shut down")]
    ShutDown,
}

impl PublishError {
    /// The variant for an error of bind(2) or listen(2).
    pub(super) fn of_socket(address: SocketAddr, protocol: Protocol, source: io::Error) -> Self {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => Self::InUse { address, protocol },
            Some(Errno::EADDRNOTAVAIL) => Self::NotLocal { address, protocol },
            Some(Errno::EACCES) => match lowest_unprivileged_port() {
                lowest if address.port() < lowest => Self::LowPort { address, protocol, lowest },
                _ => Self::Socket { address, protocol, source },
            },
            _ => Self::Socket { address, protocol, source },
        }
    }
}

/// ip(7). The value is that of the calling thread's network namespace, where the sockets are.
fn lowest_unprivileged_port() -> u16 {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    setting.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn the_kernels_reason_is_the_source_and_said_once() {
        let source = || io::Error::from_raw_os_error(libc::EMFILE);
        let address = "127.0.0.1:80".parse().unwrap();
        for error in [
            PublishError::of_socket(address, Protocol::Tcp, source()),
            PublishError::File { path: "/run/api.sock".into(), source: source() },
        ] {
            let reason = source().to_string();
            assert!(!error.to_string().contains(&reason), "{error}");
            assert_eq!(error.source().unwrap().to_string(), reason);
        }
    }
}
