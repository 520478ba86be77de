//! The pure part of nsnet: bytes and the time come in as parameters, bytes go out as values.
//!
//! Nothing in here opens a socket, reads a clock or waits. Its tests need no kernel, and everything a container sends
//! can be tried on it in memory. `nsnet-host` is the shell around it, and re-exports what embedders see.
//!
//! A module uses only modules above it in this list:
//!
//! | module | what it knows |
//! |---|---|
//! | [`discard`] | why a packet goes no further |
//! | [`wire`] | numbers, lengths and sums of the IP wire format |
//! | [`flow`] | the two ends of a packet, the key of a flow |
//! | [`ip`] | IP headers, IPv6 extension headers |
//! | [`udp`] | datagrams that travel together, and their packets |
//! | [`icmp`] | errors and echo messages, read and written |
//! | [`tcp`] | segments, the smoltcp adapter, the memory of its rings, TIME-WAIT |
//! | [`packet`] | the checked view of a packet of the container |
//! | [`fragments`] | packets put together and cut |
//! | [`frame`] | the virtio-net header of what goes to the container |
//! | [`between`] | packets from one container to another |
//! | [`dns`] | names and queries |

#![forbid(unsafe_code)]
#![expect(missing_docs, reason = "fields that were private to one crate")]

pub mod discard;
pub mod wire;
pub mod flow;
pub mod ip;
pub mod udp;
pub mod icmp;
pub mod tcp;
pub mod packet;
pub mod fragments;
pub mod frame;
pub mod between;
pub mod dns;
