//! How far a flow is, and how long it may be silent.

use std::time::Duration;

use crate::flow::Protocol;

/// What a packet means for its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A TCP SYN that begins a connection.
    Open,
    /// A TCP FIN.
    Finish,
    /// A TCP RST.
    Reset,
    /// Anything else.
    Other,
}

/// How far a flow is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// Whether the other end has answered.
    is_answered: bool,
    opener_finished: bool,
    other_finished: bool,
    /// Whether the connection was reset, or both ends have finished it.
    pub(super) is_over: bool,
}

impl Progress {
    /// Takes note of a packet.
    pub(super) fn advance(&mut self, is_opener: bool, signal: Signal) {
        self.is_answered |= !is_opener;
        match signal {
            Signal::Finish if is_opener => self.opener_finished = true,
            Signal::Finish => self.other_finished = true,
            Signal::Open | Signal::Reset | Signal::Other => {}
        }
        self.is_over |= signal == Signal::Reset || (self.opener_finished && self.other_finished);
    }

    /// Whether the two ends of a TCP connection talk to each other.
    pub(super) fn is_established(self) -> bool {
        self.is_answered && !self.is_over
    }

    /// How long the flow may be silent. For UDP that is `udp_idle`.
    pub(super) fn lifetime(self, protocol: Protocol, udp_idle: Duration) -> Duration {
        match protocol {
            Protocol::Tcp if self.is_established() => TCP_ESTABLISHED,
            Protocol::Tcp => TCP_TRANSITORY,
            Protocol::Udp => udp_idle,
            Protocol::Icmp => ECHO,
        }
    }
}

/// How long TCP connections may be silent: established ones, and those that begin or are over (RFC 5382, REQ-5).
pub(super) const TCP_ESTABLISHED: Duration = Duration::from_secs(2 * 3600 + 4 * 60);
pub(super) const TCP_TRANSITORY: Duration = Duration::from_secs(4 * 60);

/// How long echo may be silent (RFC 5508, REQ-1).
pub(super) const ECHO: Duration = Duration::from_secs(60);
