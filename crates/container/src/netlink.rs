//! One rtnetlink exchange: a request, its reply if it has one, and its acknowledgement (rtnetlink(7)).

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::Error;

/// A socket to the calling thread's network namespace.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

/// The kernel's answer to a request that it refuses.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: io::Error,
    /// The kernel's own text, if it sends one.
    pub(crate) explanation: Option<String>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, Error> {
        let socket = connect().map_err(|error| Error::new("open a netlink socket", error))?;
        // Both only make errors more precise; kernels before 4.12 do not know them.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, sequence: 0 })
    }

    /// Like [`request`](Self::request), for requests without a reply. `step` names the step in an error.
    pub(crate) fn carry_out(
        &mut self,
        step: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        self.request(message, flags).map(drop).map_err(|refusal| refusal.into_error(step))
    }

    /// Sends a request and waits until the kernel has carried it out. `flags` are added to `NLM_F_REQUEST` and
    /// `NLM_F_ACK`. Returns the last reply before the acknowledgement, if there was one.
    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<RouteNetlinkMessage>, Refusal> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answer = None;
        loop {
            let (reply, _) = self.socket.recv_from_full()?;
            let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            if reply.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(verdict) = reply.payload {
                return match verdict.code {
                    None => Ok(answer),
                    Some(_) => {
                        Err(Refusal { error: verdict.to_io(), explanation: explanation(&verdict.header) })
                    }
                };
            }
            if let NetlinkPayload::InnerMessage(message) = reply.payload {
                answer = Some(message);
            }
        }
    }
}

impl Refusal {
    /// The error of a step that configures an interface.
    pub(crate) fn into_error(self, step: String) -> Error {
        let about_ipv6 = step.contains("::");
        let remedy = match self.error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EACCES) if about_ipv6 => {
                "IPv6 is disabled in this kernel or namespace: build the network with ipv4_only()"
            }
            Some(libc::EPERM) => {
                "CAP_NET_ADMIN over the network namespace is missing: configure before dropping capabilities"
            }
            Some(libc::EEXIST) => {
                "the namespace has a default route already: give each network its own namespace"
            }
            _ => "",
        };
        let step = match self.explanation {
            Some(words) => format!("{step} (kernel: {words})"),
            None => step,
        };
        Error::new(step, self.error).with_remedy(remedy)
    }
}

/// A socket that receives only from the kernel, not from other processes.
fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { error, explanation: None }
    }
}

/// Length of `struct nlmsghdr` (`linux/netlink.h`). NETLINK_CAP_ACK leaves no more than this of the request.
const HEADER_LEN: usize = 16;
/// `NLMSGERR_ATTR_MSG` (`linux/netlink.h`).
const ATTRIBUTE_MESSAGE: u16 = 1;

/// The text in the attributes behind the refused request's header, if there is one.
fn explanation(after_code: &[u8]) -> Option<String> {
    let mut attributes = after_code.get(HEADER_LEN..)?;
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = attributes.get(head.len()..len)?;
        if u16::from_ne_bytes([head[2], head[3]]) == ATTRIBUTE_MESSAGE {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn kernels_words_are_found_among_other_attributes() {
        let bytes = [vec![0; HEADER_LEN], attribute(2, &[7; 4]), attribute(1, b"No such thing\0")].concat();
        assert_eq!(explanation(&bytes).as_deref(), Some("No such thing"));
    }

    #[test]
    fn cut_or_absurd_attributes_explain_nothing() {
        let whole = [vec![0; HEADER_LEN], attribute(1, b"text\0")].concat();
        for len in 0..HEADER_LEN + 4 + 5 {
            assert_eq!(explanation(&whole[..len]), None);
        }
        let mut zero_length = whole;
        zero_length[HEADER_LEN..HEADER_LEN + 2].copy_from_slice(&[0, 0]);
        assert_eq!(explanation(&zero_length), None);
    }
}
