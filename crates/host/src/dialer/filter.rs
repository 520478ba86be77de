//! Dialers that decide: a closure in front of another Dialer, and one that refuses everything.

use async_trait::async_trait;

use super::{DatagramSocket, DialError, Dialer, Flow, Inbound, Source, Stream};

/// A closure that decides, in front of a Dialer that connects.
///
/// The closure runs on the engine's thread and must not block; a decision that has to wait implements
/// [`Dialer::authorize`] instead. The inner Dialer is asked after the closure has allowed.
///
/// Flows are what leaves the container. Clients of published ports are not put to the closure, but to
/// [`Dialer::accept`] of the inner Dialer.
///
/// # Examples
/// ```
/// use nsnet_host::{DialError, DirectDialer, FilterDialer, Flow};
///
/// let firewall = FilterDialer::new(DirectDialer::new(), |flow: &Flow| {
///     if flow.is_dns() || flow.destination.port() == 443 { Ok(()) } else { Err(DialError::Prohibited) }
/// });
/// ```
#[derive(Debug, Clone)]
pub struct FilterDialer<D, F> {
    inner: D,
    filter: F,
}

impl<D: Dialer, F: Fn(&Flow) -> Result<(), DialError> + Send + Sync> FilterDialer<D, F> {
    /// Puts `filter` in front of `inner`.
    pub fn new(inner: D, filter: F) -> Self {
        Self { inner, filter }
    }
}

#[async_trait]
impl<D: Dialer, F: Fn(&Flow) -> Result<(), DialError> + Send + Sync> Dialer for FilterDialer<D, F> {
    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        (self.filter)(flow)?;
        self.inner.authorize(flow).await
    }

    async fn accept(&self, inbound: &Inbound) -> Result<(), DialError> {
        self.inner.accept(inbound).await
    }

    async fn dial_tcp(&self, flow: &Flow) -> Result<Stream, DialError> {
        self.inner.dial_tcp(flow).await
    }

    async fn bind_udp(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.inner.bind_udp(source).await
    }

    async fn bind_echo(&self, source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        self.inner.bind_echo(source).await
    }
}

/// Refuses everything as administratively prohibited, DNS and clients of published ports included.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenyDialer;

#[async_trait]
impl Dialer for DenyDialer {
    async fn authorize(&self, _flow: &Flow) -> Result<(), DialError> {
        Err(DialError::Prohibited)
    }

    async fn accept(&self, _inbound: &Inbound) -> Result<(), DialError> {
        Err(DialError::Prohibited)
    }

    async fn dial_tcp(&self, _flow: &Flow) -> Result<Stream, DialError> {
        Err(DialError::Prohibited)
    }

    async fn bind_udp(&self, _source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        Err(DialError::Prohibited)
    }
}
