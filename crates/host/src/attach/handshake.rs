//! The handshake with a container side.

use std::borrow::Borrow;
use std::future::Future;
use std::os::fd::AsFd;

use nsnet_proto::{Carriage, Channel, ChannelError, Offload, Ready, Report};
use nsnet_stack::frame::Device;

use super::SetupError;
use super::device::inspect_all;
use crate::link::{Framing, LinkEnd, LinkProperties};
use crate::sys::{self, Entrusted};
use crate::threads::closing::{self, Unchecked};

/// The queues and offloads that the host offers to the container side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) mtu: u16,
    pub(crate) offload: Offload,
    pub(crate) queues: u16,
}

/// Reads the container side's report and takes over a link end for each queue that it reports. `further` are the ends
/// that carry the queues behind the first if frames are shuttled. `given_up` resolves when the container is to end
/// before it is ready.
pub(crate) async fn handshake(
    channel: Channel,
    further: Vec<Channel>,
    offer: &Offer,
    given_up: impl Future<Output = SetupError>,
) -> Result<(Vec<LinkEnd>, Ready), SetupError> {
    let (report, mut fds) = report(&channel, given_up).await?;
    let granted = match report {
        Report::Failed(failure) => return Err(SetupError::Container(failure)),
        Report::Ready(granted) => granted,
    };
    if !(1..=offer.queues).contains(&granted.queues) {
        return Err(SetupError::Queues { granted: granted.queues, wanted: offer.queues });
    }
    let queues = usize::from(granted.queues);
    let expected = match granted.carriage {
        Carriage::HandedOver => queues,
        Carriage::Shuttled => 0,
    };
    if fds.0.len() != expected {
        return Err(SetupError::FileDescriptors(fds.0.len(), expected));
    }
    let (fds, framing): (Vec<Entrusted>, Framing) = match granted.carriage {
        Carriage::HandedOver => {
            let framing = inspect_all(&fds.0)?;
            (fds.0.drain(..).map(closing::device).collect(), framing)
        }
        Carriage::Shuttled => {
            let ends = std::iter::once(channel).chain(further).take(queues);
            let take_over = |end: Channel| {
                sys::refuse_descriptors(end.as_fd());
                Entrusted::new(end.into_fd(), drop)
            };
            (ends.map(take_over).collect(), Framing::Header)
        }
    };
    let offload = match framing {
        Framing::Header => offer.offload.intersection(granted.offload),
        Framing::Plain => Offload::NONE,
    };
    let carriage = granted.carriage;
    let port = |fd: Entrusted| {
        let nowait = carriage == Carriage::HandedOver && sys::knows_nowait(fd.borrow());
        let properties =
            LinkProperties { carriage, device: Device { mtu: offer.mtu, offload }, framing, nowait };
        LinkEnd { fd, properties }
    };
    Ok((fds.into_iter().map(port).collect(), Ready::new(carriage, offload, granted.queues)))
}

/// Waits for the container side's report.
async fn report(
    channel: &Channel,
    given_up: impl Future<Output = SetupError>,
) -> Result<(Report, Unchecked), SetupError> {
    // The channel stays whole for the link, so the runtime watches a duplicate of its fd.
    let watched = channel.as_fd().try_clone_to_owned().and_then(sys::watch).map_err(SetupError::Host)?;
    tokio::pin!(given_up);
    loop {
        tokio::select! {
            biased;
            ready = watched.readable() => {
                let mut guard = ready.map_err(SetupError::Host)?;
                match try_report(channel)? {
                    Some(received) => return Ok(received),
                    None => guard.clear_ready(),
                }
            }
            // A report that the runtime has not noticed yet counts: the container may have sent everything and ended.
            error = &mut given_up => return try_report(channel)?.ok_or(error),
        }
    }
}

/// The report, if it has arrived.
fn try_report(channel: &Channel) -> Result<Option<(Report, Unchecked)>, SetupError> {
    let mut fds = Unchecked::default();
    match channel.try_receive_into::<Report>(&mut fds.0) {
        Ok(report) => Ok(Some((report, fds))),
        Err(error) if error.would_block() => Ok(None),
        Err(ChannelError::Closed) => Err(SetupError::ClosedEarly),
        Err(error) => Err(SetupError::Handshake(error)),
    }
}
