//! UDP: datagrams between the container and the world.
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
//! # Errors
//! ICMP errors that the upstream socket learns of (`IP_RECVERR`) go to the container with its own headers
//! quoted, so a closed port is ECONNREFUSED at once.
//!
//! # Limits and timers
//! A mapping ends when the container has sent nothing for the idle timeout (180 s; 10 s when it only talks to
//! port 53); what comes in does not prolong it (RFC 4787, 4.3). The number of mappings, of peers and of held
//! datagrams is bounded. Datagrams larger than the MTU travel in fragments
//! ([`crate::fragments`]), but for answers of the gateway's resolver, which are cut (RFC 1035, 4.2.1).

pub(crate) mod datagram;
mod inbox;
mod mapping;
mod run;
mod table;

pub(crate) use inbox::Inbox;
pub(crate) use mapping::Held;
pub(crate) use run::{MAX_DATAGRAMS, Run};
pub(crate) use table::Table;
