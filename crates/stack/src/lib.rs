//! The pure part of nsnet: bytes and the time come in as parameters, packets and decisions go out as values.
//!
//! Nothing in this crate opens a socket, reads a clock or waits. Its tests need no kernel, and anything that a
//! container may send can be tried on it in memory. `nsnet-host` puts sockets and a runtime around it, and re-exports
//! the types that embedders see.
//!
//! A module uses only modules above it in this list:
//!
//! | module | what it knows |
//! |---|---|
//! | [`discard`] | why a packet goes no further |
//! | [`wire`] | lengths, checksums and protocol numbers of IP |
//! | [`flow`] | the two ends of a packet, the key of a flow |
//! | [`ip`] | IP headers and IPv6 extension headers |
//! | [`udp`] | datagrams that travel together, and their packets |
//! | [`icmp`] | errors and echo messages, read and written |
//! | [`tcp`] | segments, connections over smoltcp, the memory of their rings, TIME-WAIT |
//! | [`packet`] | the checked view of a packet from the container |
//! | [`fragments`] | packets reassembled and fragmented |
//! | [`frame`] | the virtio-net header of frames for the container |
//! | [`between`] | packets from one container to another |
//! | [`dns`] | names and queries |
//!
//! # Hostile input
//! A container may send any bytes. The `parse` functions and everything that takes a parsed value return errors for
//! them and do not panic. Functions that write into a caller's buffer, or index into a packet that must be whole, say
//! under "Panics" what the caller owes them.

#![forbid(unsafe_code)]

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

/// The example of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
