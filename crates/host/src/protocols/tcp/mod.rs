//! TCP: the container's connections, terminated here and dialled again outside.
//!
//! # A connection's life
//!
//! ```text
//!            SYN                dial ok: feed the held SYN        both ends closed
//! (nothing) ────► Dialing ──────────────────────────────► Open ──────────────────► TimeWait ──► (nothing)
//!                    │ dial failed: RST, ICMP or silence    │ reset by either end      60 s, or a fresh SYN
//!                    ▼                                      ▼
//!                (nothing)                              (nothing)
//! ```
//!
//! The SYN is held while the Dialer decides and connects, so that *connected* in the container means connected
//! outside, and a failure looks as it would on a real network ([`DialError`](crate::DialError)). A repeated SYN
//! is absorbed, another SYN on the tuple or an RST cancels the dial. Connections from outside, of published ports, are
//! opened by [`active_open`] and are the same from then on.
//!
//! Segments are fed into the flow's stack straight from the link reader, their payload lands in smoltcp's
//! ring, and the flow's task moves it on: no queue stands between packet and socket, the receive window is the
//! back-pressure. See [`TcpStack`](nsnet_stack::tcp::TcpStack) for the smoltcp adapter, [`relay`] for the task.
//!
//! # Limits
//! At most [`max_tcp_flows`](crate::NetworkBuilder::max_tcp_flows) entries; a SYN beyond is dropped, as a full NAT
//! table does. What the rings of all flows hold together is bounded, see [`Rings`](nsnet_stack::tcp::Rings).
//!
//! Not done: TCP Fast Open, urgent data (delivered in line), timestamps, SACK beyond what smoltcp does.

mod active_open;
mod dial;
mod flow;
mod relay;
mod table;
mod warm;

pub(crate) use active_open::{OpenError, OpenedConnection, Reservation, connect};
pub(crate) use table::Table;
#[cfg(feature = "_micro")]
pub(crate) use {
    flow::TcpFlow,
    table::{State, TupleUse, find_open},
};
