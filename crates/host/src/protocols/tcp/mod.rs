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
//! The SYN is held while the Dialer decides and connects. So *connected* in the container means connected outside, and
//! a failure looks as on a real network ([`DialError`](crate::DialError)). A repeated SYN is absorbed. Another SYN on
//! the tuple or an RST cancels the dial. [`active_open`] opens connections from outside, to published ports. From then
//! on they are the same.
//!
//! The link reader feeds segments straight into the flow's stack. Their payload lands in smoltcp's ring, and the flow's
//! task moves it on. No queue stands between packet and socket, so the receive window is the back-pressure. See
//! [`TcpStack`](nsnet_stack::tcp::TcpStack) for the smoltcp adapter, and [`relay`] for the task.
//!
//! # Limits
//! The table has at most [`max_tcp_flows`](crate::NetworkBuilder::max_tcp_flows) entries. A further SYN is dropped, as
//! by a full NAT table. The memory in the rings of all flows together is bounded, see
//! [`Rings`](nsnet_stack::tcp::Rings).
//!
//! Not done: TCP Fast Open, urgent data (delivered in line), timestamps, SACK beyond smoltcp's.

mod active_open;
mod dial;
mod end;
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
