//! What the two ends of an nsnet network say to each other.
//!
//! The ends share one `AF_UNIX` `SOCK_SEQPACKET` socketpair. The host keeps one end; the container side
//! inherits the other, whose number it finds in the environment variable [`FD_VARIABLE`].
//!
//! ```text
//! host                                              container side
//!  │ socketpair, Setup is queued before the spawn     │
//!  │ ── spawn, NSNET_FD=n ──────────────────────────► │ reads Setup: no round trip
//!  │                                                  │ opens /dev/net/tun, configures it
//!  │ ◄──────────── Ready + TUN fd (SCM_RIGHTS) ────── │ carriage: handed over; the socketpair closes
//!  │                       or                         │
//!  │ ◄──────────────────── Ready ──────────────────── │ carriage: shuttled
//!  │ ◄═══════════ frames, both directions ══════════► │ until either end closes
//!  │                       or                         │
//!  │ ◄──────────────────── Failed ─────────────────── │ step, errno, cause, remedy
//! ```
//!
//! With more than one queue ([`Setup::queues`]) the TUN fds of all come with `Ready`; for the other carriage a
//! further socketpair for each queue but the first comes with `Setup`. The host makes these, so that it never
//! writes to a socket of the container's choice.
//!
//! The phase decides what a message on the socketpair is: everything up to and including `Ready` is a
//! message of this module ([`Setup`], [`Report`]); everything after it is a frame, a [`vnet::Header`] with
//! an IP packet behind it. Neither needs a tag to tell it from the other.
//!
//! Both ends treat what they read as hostile: a message of another version, garbage, a truncated message or
//! a file descriptor too many is a `ChannelError` and leaks nothing.
//!
//! # Features
//!
//! `channel` (default): the `Channel` and the encoding of its messages. Without it this crate makes no system call
//! and depends on neither `nix` nor `libc`: what is left are the messages and the [virtio-net header](vnet).

// Each module imports only from those above it.
pub mod vnet;
mod offload;
mod message;
#[cfg(feature = "channel")]
mod codec;
#[cfg(feature = "channel")]
mod sys;
#[cfg(feature = "channel")]
mod channel;

#[cfg(feature = "channel")]
pub use channel::{Channel, ChannelError, MAX_MESSAGE};
#[cfg(feature = "channel")]
pub use codec::Message;
pub use message::{
    Carriage, DEVICE_NAME_MAX, Failure, InterfaceAddress, MAX_FDS, MAX_QUEUES, NamespaceId, Ready, Report,
    Setup, VERSION,
};
pub use offload::Offload;

/// Environment variable that carries the number of the inherited socketpair end.
pub const FD_VARIABLE: &str = "NSNET_FD";

/// The example of README.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
