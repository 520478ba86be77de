//! Dialers that decide: a closure in front of another Dialer, and one that refuses everything.

use std::fmt;

use async_trait::async_trait;

use super::{DatagramSocket, DialError, Dialer, Flow, Inbound, Source, Stream};

/// Puts a closure that decides on flows in front of a Dialer that connects them.
///
/// A flow is allowed if the closure allows it and then the inner Dialer allows it too. The closure runs on the engine's
/// thread and must not block. For a decision that has to wait, write a Dialer and override
/// [`authorize`](Dialer::authorize).
///
/// The inner Dialer does everything else. It also decides on clients of published ports. These are not flows, so the
/// closure is not asked about them.
///
/// # Examples
/// ```
/// use nsnet_host::{DialError, DirectDialer, FilterDialer, Flow};
///
/// let firewall = FilterDialer::new(DirectDialer::new(), |flow: &Flow| {
///     if flow.is_dns() || flow.destination.port() == 443 { Ok(()) } else { Err(DialError::Prohibited) }
/// });
/// ```
#[derive(Clone)]
pub struct FilterDialer<D, F> {
    inner: D,
    filter: F,
}

impl<D: Dialer, F: Fn(&Flow) -> Result<(), DialError> + Send + Sync> FilterDialer<D, F> {
    /// Puts `filter` in front of `inner`.
    #[must_use]
    pub fn new(inner: D, filter: F) -> Self {
        Self { inner, filter }
    }
}

#[async_trait]
impl<D: Dialer, F: Fn(&Flow) -> Result<(), DialError> + Send + Sync> Dialer for FilterDialer<D, F> {
    fn inner(&self) -> &dyn Dialer {
        &self.inner
    }

    async fn authorize(&self, flow: &Flow) -> Result<(), DialError> {
        (self.filter)(flow)?;
        self.inner.authorize(flow).await
    }
}

/// Leaves out the closure, which has no useful `Debug` form.
impl<D: fmt::Debug, F> fmt::Debug for FilterDialer<D, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterDialer").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Refuses everything as administratively prohibited, DNS and clients of published ports included.
///
/// Use it as the [inner](Dialer::inner) one of a Dialer from scratch, so that everything the Dialer does not offer is
/// denied.
///
/// # Examples
/// A container that can reach nothing:
///
/// ```
/// use nsnet_host::{DenyDialer, Network};
///
/// let network = Network::builder().dialer(DenyDialer);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DenyDialer;

#[async_trait]
impl Dialer for DenyDialer {
    /// Returns itself. Nothing asks it, since this Dialer answers every method.
    fn inner(&self) -> &dyn Dialer {
        self
    }

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

    async fn bind_echo(&self, _source: &Source) -> Result<Box<dyn DatagramSocket>, DialError> {
        Err(DialError::Prohibited)
    }
}
