//! ② Hands the TUN fds of all queues to the host. Frames take the shortest way, and nothing keeps running in the
//! container.

use nsnet_proto::{Carriage, Ready, Report};

use crate::{Error, TunDevice};

impl TunDevice {
    /// Hands the device to the host, which reads and writes it from now on, and closes everything on this side.
    ///
    /// The interface stays as long as the host keeps it, so the caller may exec its payload at once.
    ///
    /// Call it in the network namespace that the device is in.
    ///
    /// # Errors
    /// If the host is gone, or if the device is down because neither [`configure`](Self::configure) nor another program
    /// has brought it up. The host gets the latter error as well.
    pub fn hand_over(self) -> Result<Ready, Error> {
        self.reporting(self.require_up(HAND_OVER))?;
        let ready = Ready::new(Carriage::HandedOver, self.offload(), self.queues());
        let fds: Vec<_> = self.device.fds().collect();
        self.channel.send(&Report::Ready(ready), &fds).map_err(|error| {
            Error::channel(HAND_OVER, error)
                .with_remedy("keep the host's Network alive until the container is ready")
        })?;
        Ok(ready)
    }
}

const HAND_OVER: &str = "hand the TUN device over to the host";

#[cfg(test)]
mod tests {
    use nix::unistd::{read, write};
    use nsnet_proto::vnet::{Checksum, HEADER_LEN, Header};
    use nsnet_proto::{Channel, ChannelError, Offload};

    use super::*;
    use crate::Namespaces;
    use crate::testing::{configured, datagram_goes_out_and_back, ends, inside, ip, setup};

    const NAMESPACES: Namespaces = Namespaces::new().user().network();

    #[track_caller]
    fn receive_device(host: &Channel) -> (Ready, std::os::fd::OwnedFd) {
        let (report, mut fds) = host.receive::<Report>().unwrap();
        let Report::Ready(ready) = report else { panic!("{report:?}") };
        (ready, fds.pop().unwrap())
    }

    #[test]
    fn plain_device_works_from_the_hosts_end() {
        if !inside(NAMESPACES, module_path!(), "plain_device_works_from_the_hosts_end") {
            return;
        }
        let (host, device) = configured(Offload::NONE);
        assert_eq!(device.hand_over().unwrap(), Ready::new(Carriage::HandedOver, Offload::NONE, 1));
        let (ready, tun) = receive_device(&host);
        assert_eq!(ready.carriage, Carriage::HandedOver);
        let receive = || {
            let mut frame = vec![0; 2000];
            let len = read(&tun, &mut frame[HEADER_LEN..]).unwrap();
            frame.truncate(HEADER_LEN + len);
            frame
        };
        datagram_goes_out_and_back(receive, |frame| {
            write(&tun, &frame[HEADER_LEN..]).unwrap();
        });
    }

    #[test]
    fn vnet_device_leaves_checksums_to_the_host() {
        if !inside(NAMESPACES, module_path!(), "vnet_device_leaves_checksums_to_the_host") {
            return;
        }
        let (host, device) = configured(Offload::ALL);
        let granted = device.hand_over().unwrap();
        assert!(granted.offload.checksum && granted.offload.tso4, "{granted:?}");
        let (ready, tun) = receive_device(&host);
        assert_eq!(ready, granted);
        let receive = || {
            let mut frame = vec![0; 2000];
            let len = read(&tun, &mut frame).unwrap();
            frame.truncate(len);
            frame
        };
        let frame = datagram_goes_out_and_back(receive, |frame| {
            write(&tun, frame).unwrap();
        });
        let (header, _) = Header::split(&frame).unwrap();
        assert_eq!(header.checksum, Checksum::Partial { start: 20, offset: 6 });
    }

    #[test]
    fn everything_on_this_side_closes_and_the_interface_goes_with_the_host() {
        let test = "everything_on_this_side_closes_and_the_interface_goes_with_the_host";
        if !inside(NAMESPACES, module_path!(), test) {
            return;
        }
        let (host, device) = configured(Offload::NONE);
        device.hand_over().unwrap();
        let (_, tun) = receive_device(&host);
        assert!(matches!(host.receive::<Report>(), Err(ChannelError::Closed)));
        assert!(ip("link show tun0").0.success());
        drop(tun);
        assert!(!ip("link show tun0").0.success());
    }

    #[test]
    fn device_that_is_down_is_refused_and_the_host_told() {
        if !inside(NAMESPACES, module_path!(), "device_that_is_down_is_refused_and_the_host_told") {
            return;
        }
        let (host, fd) = ends(&setup(Offload::NONE));
        let error = TunDevice::from_fd(fd).unwrap().hand_over().unwrap_err();
        assert_eq!(error.step(), HAND_OVER);
        assert!(error.to_string().contains("tun0 is down; call TunDevice::configure before"), "{error}");
        let Report::Failed(failure) = host.receive::<Report>().unwrap().0 else {
            panic!("reported as ready")
        };
        assert_eq!((&*failure.step, &*failure.cause), (HAND_OVER, "the interface tun0 is down"));
    }

    #[test]
    fn device_that_somebody_else_has_named_and_brought_up_is_handed_over() {
        let test = "device_that_somebody_else_has_named_and_brought_up_is_handed_over";
        if !inside(NAMESPACES, module_path!(), test) {
            return;
        }
        let (host, fd) = ends(&setup(Offload::NONE));
        let device = TunDevice::from_fd(fd).unwrap();
        assert!(ip("link set tun0 name eth0").0.success());
        assert!(ip("link set eth0 up").0.success());
        device.hand_over().unwrap();
        receive_device(&host);
    }

    #[test]
    fn hosts_absence_is_an_error() {
        if !inside(NAMESPACES, module_path!(), "hosts_absence_is_an_error") {
            return;
        }
        let (host, device) = configured(Offload::NONE);
        drop(host);
        let error = device.hand_over().unwrap_err().to_string();
        assert!(error.starts_with("hand the TUN device over to the host: the other end closed"), "{error}");
    }
}
