//! Micro-benchmarks of private code. One list of cases serves `benches/micro.rs` (time and allocations),
//! `benches/instructions.rs` (instructions) and `tests/allocations.rs` (no allocation).
//!
//! A case prepares its input once. A round then does the same work every time. The work runs in [`measured`], and
//! nothing in it is random or depends on the time.

mod packets;
mod tcp;

use std::hint::black_box;

use tcp::{Connection, Lookup, PLAIN, SEGMENTATION};

/// One micro-benchmark.
#[derive(Debug)]
pub struct Case {
    /// Its name, in which `/` separates the subject from the variant.
    pub name: &'static str,
    /// Bytes that a round processes. 0 if it looks at none.
    pub payload: usize,
    prepare: fn() -> Round,
}

/// Does the work of a case once, any number of times.
pub type Round = Box<dyn FnMut()>;

impl Case {
    /// Prepares the input, and runs until every round is like the last.
    #[must_use]
    pub fn prepare(&self) -> Round {
        let mut round = (self.prepare)();
        for _ in 0..WARM_UP {
            round();
        }
        round
    }
}

/// Rounds until buffers have their size and the window of a connection is open.
const WARM_UP: usize = 16;

const MEGABYTE: usize = 1 << 20;

/// All cases, in the order in which a packet meets them.
pub const CASES: &[Case] = &[
    Case { name: "header/split", payload: 0, prepare: packets::split_headers },
    Case { name: "header/to_bytes", payload: 0, prepare: packets::write_headers },
    Case { name: "parse/tcp", payload: 0, prepare: packets::parse_segment },
    Case { name: "parse/udp_checksum", payload: packets::DATAGRAM, prepare: packets::parse_datagram },
    Case { name: "parse/udp_burst", payload: 0, prepare: packets::parse_burst },
    Case { name: "reassemble/60000", payload: packets::FRAGMENTED, prepare: packets::reassemble },
    Case { name: "lookup/1", payload: 0, prepare: || lookup(1) },
    Case { name: "lookup/1000", payload: 0, prepare: || lookup(1000) },
    Case { name: "lookup/10000", payload: 0, prepare: || lookup(10_000) },
    Case { name: "tcp_up/plain", payload: MEGABYTE, prepare: || transfer(PLAIN, MEGABYTE, 0) },
    Case { name: "tcp_up/segmentation", payload: MEGABYTE, prepare: || transfer(SEGMENTATION, MEGABYTE, 0) },
    Case { name: "tcp_down/plain", payload: MEGABYTE, prepare: || transfer(PLAIN, 0, MEGABYTE) },
    Case {
        name: "tcp_down/segmentation",
        payload: MEGABYTE,
        prepare: || transfer(SEGMENTATION, 0, MEGABYTE),
    },
    Case { name: "tcp_request", payload: 0, prepare: || request() },
    Case {
        name: "datagram/full_checksum",
        payload: packets::DATAGRAM,
        prepare: packets::write_datagram_full,
    },
    Case {
        name: "datagram/partial_checksum",
        payload: packets::DATAGRAM,
        prepare: packets::write_datagram_partial,
    },
];

/// Runs the measured work. Instructions are counted in here and nowhere else.
#[inline(never)]
pub(crate) fn measured<R>(work: impl FnOnce() -> R) -> R {
    // Nothing but the return may follow the call, nor may the call become a jump, because callgrind sees this function
    // end.
    black_box(work())
}

fn lookup(flows: usize) -> Round {
    let lookup = Lookup::among(flows);
    Box::new(move || lookup.run())
}

fn transfer(capabilities: nsnet_stack::tcp::Capabilities, up: usize, down: usize) -> Round {
    let mut connection = Connection::open(capabilities);
    Box::new(move || connection.transfer(up, down))
}

/// A request of 100 bytes, then a response of 1000.
fn request() -> Round {
    let mut connection = Connection::open(SEGMENTATION);
    Box::new(move || {
        connection.transfer(100, 0);
        connection.transfer(0, 1000);
    })
}
