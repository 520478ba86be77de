//! UDP and echo: datagrams between the container and the world.
//!
//! # Mappings
//! Each container address and port has one upstream socket for all destinations (endpoint-independent mapping, RFC
//! 4787, 4.1), so that STUN and peer-to-peer protocols work. Datagrams come back in only from peers that this source
//! has written to (address- and port-dependent filtering, section 5).
//!
//! Every destination is a flow of its own to the Dialer. While the Dialer decides and opens the socket, a few datagrams
//! are held. After that a datagram goes from the link reader straight to the socket. If the socket is full, the
//! datagram is lost, as on any network.
//!
//! # Bursts
//! Datagrams of one flow and one size that are read in a row travel together. They go from the container to the socket
//! in one call (`UDP_SEGMENT`, udp(7)). They go from the socket to the container in one frame if the link has the
//! offload (`VIRTIO_NET_HDR_GSO_UDP_L4`). Bursts of either end stay bursts. Every datagram arrives as it was sent. It
//! waits for the end of the batch of frames it was read in, never for another datagram to come.
//!
//! # Hop limits, path MTU, errors
//! A datagram leaves with the container's hop limit, less one, and with its choice about fragments (`IP_TTL`,
//! `IP_MTU_DISCOVER`, ip(7)). Datagrams that differ in these do not travel together. ICMP errors of routers and peers
//! reach the container (`IP_RECVERR`), in the name of their sender and with the container's own headers quoted. So do
//! errors of the host's kernel about a datagram too long for its own link. So a closed port is ECONNREFUSED at once,
//! traceroute(8) sees every router behind the gateway, and the container's kernel learns the MTU of the path.
//!
//! # Echo
//! To this module, an echo request (ping) is a datagram whose port is the identifier and whose peer has port 0. Its
//! mapping is an upstream ping socket, icmp(7). Replies are accepted only from peers that a request went to. [`Kind`]
//! holds the differences: the headers, the timeout, and one error and one frame for each datagram. Echo has a table and
//! limits of its own, so pings keep no datagram out. [`gateway`](crate::gateway) answers requests to the gateway and
//! the resolver before they come here.
//!
//! # Limits and timers
//! A mapping ends when the container has sent nothing for the idle timeout: 180 s, 10 s if it only sends to port 53, 60
//! s for echo. Incoming datagrams do not prolong it (RFC 4787, 4.3). The number of mappings, of peers and of held
//! datagrams is bounded. Datagrams larger than the MTU travel in fragments ([`nsnet_stack::fragments`]). Those of the
//! gateway's resolver are as long as the client's EDNS size allows.

mod decide;
mod held;
mod kind;
mod mapping;
mod table;

pub(crate) use held::{Backlog, ByteBudget, HeldDatagrams, Letter, send_all};
pub(crate) use kind::Kind;
pub(crate) use table::Table;
