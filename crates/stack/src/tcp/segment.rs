//! The fields of a TCP header that decide where a segment goes.

use smoltcp::wire::{TcpOption, TcpPacket, TcpSeqNumber};

/// The fields of a TCP header that decide where a segment goes.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// What the flags say.
    pub control: Control,
    /// The sequence number of its first byte, or of SYN or FIN.
    pub sequence: TcpSeqNumber,
    /// The acknowledgment number, if the ACK flag is set.
    pub acknowledgment: Option<TcpSeqNumber>,
    /// How many sequence numbers the segment occupies, SYN and FIN included.
    pub length: usize,
    /// Length of the payload in bytes.
    pub payload: usize,
    /// The MSS option of a SYN, in bytes (RFC 9293, 3.7.1).
    pub max_segment_size: Option<u16>,
    /// Whether it is a SYN that offers window scaling (RFC 7323, 2.2).
    pub scales_windows: bool,
}

/// What the flags of a segment say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// SYN alone: a request for a connection.
    Open,
    /// RST, whatever else is set.
    Reset,
    /// Anything else.
    Other,
}

impl Segment {
    /// Reads a segment whose header is whole. `None` if it is a SYN whose options cannot be read to their end: smoltcp
    /// would ignore it, so it must not cause a dial.
    #[inline]
    pub(crate) fn of(packet: &TcpPacket<&[u8]>) -> Option<Self> {
        if packet.syn() && !are_options_sound(packet.options()) {
            return None;
        }
        let control = match (packet.rst(), packet.syn(), packet.ack()) {
            (true, _, _) => Control::Reset,
            (false, true, false) if !packet.fin() => Control::Open,
            _ => Control::Other,
        };
        Some(Self {
            control,
            sequence: packet.seq_number(),
            acknowledgment: packet.ack().then(|| packet.ack_number()),
            length: packet.segment_len(),
            payload: packet.payload().len(),
            max_segment_size: syn_option(packet, |option| {
                if let TcpOption::MaxSegmentSize(size) = option { Some(size) } else { None }
            }),
            scales_windows: syn_option(packet, |option| {
                matches!(option, TcpOption::WindowScale(_)).then_some(())
            })
            .is_some(),
        })
    }
}

/// Whether the options can be read to their end.
fn are_options_sound(mut options: &[u8]) -> bool {
    while !options.is_empty() {
        match TcpOption::parse(options) {
            Ok((_, TcpOption::EndOfList)) => return true,
            Ok((rest, _)) => options = rest,
            Err(_) => return false,
        }
    }
    true
}

/// What `find` finds in the options of a SYN.
fn syn_option<T>(packet: &TcpPacket<&[u8]>, find: impl Fn(TcpOption<'_>) -> Option<T>) -> Option<T> {
    if !packet.syn() {
        return None;
    }
    let mut options = packet.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        if option == TcpOption::EndOfList {
            return None;
        }
        if let Some(found) = find(option) {
            return Some(found);
        }
        if rest.is_empty() {
            return None;
        }
        options = rest;
    }
    None
}

/// The distance from one sequence number to another, negative if that is behind (RFC 9293, 3.4).
pub(super) fn distance(from: TcpSeqNumber, to: TcpSeqNumber) -> i32 {
    to.0.wrapping_sub(from.0)
}
