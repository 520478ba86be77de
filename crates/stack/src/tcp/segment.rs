//! The header of a TCP segment, as far as it decides where the segment goes.

use smoltcp::wire::{TcpOption, TcpPacket, TcpSeqNumber};

/// The parts of a TCP header that decide where a segment goes.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    pub control: Control,
    pub sequence: TcpSeqNumber,
    /// The acknowledgment number if the ACK flag is set.
    pub acknowledgment: Option<TcpSeqNumber>,
    /// Sequence numbers the segment occupies, SYN and FIN included.
    pub length: usize,
    /// Bytes of payload.
    pub payload: usize,
    /// The MSS option of a SYN.
    pub max_segment_size: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// SYN without ACK and RST: somebody wants a connection.
    Open,
    Reset,
    Other,
}

impl Segment {
    /// Reads a segment whose header is whole. `None` if it is a SYN whose options cannot be read to their end: smoltcp
    /// would refuse it, so nothing may be dialled for it.
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
            max_segment_size: max_segment_size(packet),
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

fn max_segment_size(packet: &TcpPacket<&[u8]>) -> Option<u16> {
    if !packet.syn() {
        return None;
    }
    let mut options = packet.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        if let TcpOption::MaxSegmentSize(size) = option {
            return Some(size);
        }
        if option == TcpOption::EndOfList || rest.is_empty() {
            return None;
        }
        options = rest;
    }
    None
}
