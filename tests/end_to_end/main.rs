//! End-to-end tests: real kernel, real sockets, every test in namespaces of its own. See `world` for what is
//! in there, and `tests/run` for the one command that runs them all.
//!
//! `NSNET_TEST_LOG=1` adds what the library logs to the output of a test that fails.
//!
//! - How containers come and go: `attachment`, `adopt`, `ends`.
//! - In the order of a connection's life: `open`, `handshake`, `tcp_open`, `transfer`, `tcp_close`; all of it on several queues
//!   (`queues`, `queue_frames`) or in great number (`scale`).
//! - What else is carried: `udp`, `fragments`, `echo`, `path` (hops, errors, MTU).
//! - Names: `dns`, `names`.
//! - What a container may use of the host: `limits`, `descriptors`.
//! - Who may go where: `dialers`, `host`; `several` containers; from outside `publish`, `publish_udp`, `publish_limits`,
//!   `publish_programs`.
//! - Programs: `tools`, `tutorial`; the examples `rootless_shell`, `custom_dialer`, and `oci-hook` in `join`, `oci`
//!   and `bubblewrap`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "these are tests: they may panic and print, and real time is what they are about"
)]

mod adopt;
mod attachment;
mod bubblewrap;
mod custom_dialer;
mod descriptors;
mod dialers;
mod dns;
mod echo;
mod ends;
mod fragments;
mod handshake;
mod host;
mod join;
mod limits;
mod names;
mod oci;
mod open;
mod path;
mod publish;
mod publish_limits;
mod publish_programs;
mod publish_udp;
mod queue_frames;
mod queues;
mod rootless_shell;
mod scale;
mod several;
mod tcp_close;
mod tcp_open;
mod tools;
mod transfer;
mod tutorial;
mod udp;

#[path = "../world/mod.rs"]
mod world;
