//! UDP, and echo like it: datagrams between the container and the world.
//!
//! # Mappings
//! One upstream socket per container address and port, whatever the destination (endpoint-independent mapping,
//! RFC 4787, 4.1), so that STUN and peer-to-peer protocols work. Datagrams come back in only from peers that
//! this source has written to (address- and port-dependent filtering, section 5).
//!
//! Every destination is a flow of its own to the Dialer. While it decides and the socket is being opened, a few
//! datagrams are held; after that a datagram goes from the link reader straight to the socket. A socket that
//! cannot take it loses it, as any network may.
//!
//! # Bursts
//! Datagrams of one flow and one size that are read in a row travel together: from the container to the socket in
//! one call (`UDP_SEGMENT`, udp(7)), and from the socket to the container in one frame where the link has the offload
//! (`VIRTIO_NET_HDR_GSO_UDP_L4`). So does what an end sent as a burst. Either way every datagram arrives as it was
//! sent; a datagram waits for the end of the batch of frames it was read in, never for another one to come.
//!
//! # Hop limits, path MTU, errors
//! A datagram leaves with the hop limit that the container gave it, less one, and with its will about fragments
//! (`IP_TTL`, `IP_MTU_DISCOVER`, ip(7)); datagrams that differ in that do not travel together. What routers and peers say
//! of it, and what the host's kernel says of one too long for its own link (`IP_RECVERR`), goes to the container
//! with its own headers quoted, in the name of who said so. So a closed port is ECONNREFUSED at once, traceroute(8)
//! sees every router behind the gateway, and the container's kernel learns the MTU of the way.
//!
//! # Echo
//! An echo request (ping) is to this module a datagram whose port is the identifier and whose peer has the port 0: its
//! mapping is an upstream ping socket, icmp(7), its replies come back from peers that a request went to and from
//! nobody else. What differs is in [`Kind`]: the headers, the timeout, one error and one frame for each. Echo has a table
//! and limits of its own, so that pings keep no datagram out. Requests to the gateway and the resolver never come
//! here: [`gateway`](crate::gateway) answers them.
//!
//! # Limits and timers
//! A mapping ends when the container has sent nothing for the idle timeout (180 s; 10 s when it only talks to
//! port 53, 60 s for echo); what comes in does not prolong it (RFC 4787, 4.3). The number of mappings, of peers and of
//! held datagrams is bounded. Datagrams larger than the MTU travel in fragments ([`nsnet_stack::fragments`]); those of the
//! gateway's resolver are as long as the client's EDNS size allows.

mod decide;
mod held;
mod kind;
mod mapping;
mod table;

pub(crate) use held::{Backlog, ByteBudget, HeldDatagrams, Letter, send_all};
pub(crate) use kind::Kind;
pub(crate) use table::Table;
