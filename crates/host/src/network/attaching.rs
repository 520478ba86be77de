//! How containers join a network.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use nsnet_proto::{Channel, FD_VARIABLE, InterfaceAddress, Setup};

use super::builder::least_mtu;
use super::{AttachError, Network};
use crate::addressing::leases::{Lease, Member};
use crate::attach::{self, AdoptedDevice, Attached, Attachment, Inherited, LinkOrigin, NewContainer};
use crate::statistics::Counters;
use crate::sys;

impl Network {
    /// Lets `command` inherit its end of the link, under the number in the environment variable `NSNET_FD`.
    ///
    /// The caller spawns the command once, without clearing its environment. The command must call
    /// `nsnet_container::TunDevice::open()` in its network namespace. For a `tokio::process::Command` pass
    /// `command.as_std_mut()`.
    ///
    /// A network has room for many containers. Each has its own link and its own addresses, and a name if
    /// [`Member::named`] gives it one.
    ///
    /// # Errors
    /// [`AttachError`], in these cases. The command is then unchanged.
    ///
    /// - The name or an address is taken, or not possible in this network.
    /// - The command is attached already, to this network or another. Its environment tells, so an
    ///   [`env_clear`](Command::env_clear) after the first attach hides it.
    /// - File descriptors have run out, or the network has been shut down.
    ///
    /// # Examples
    /// ```no_run
    /// use std::process::Command;
    /// use nsnet_host::{Member, Network};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let network = Network::builder().containers_reach_each_other().build()?;
    /// let mut web = Command::new("./web-init");
    /// let web_attachment = network.attach(&mut web, Member::named("web"))?;
    /// let mut anonymous = Command::new("./job-init");
    /// let job_attachment = network.attach(&mut anonymous, Member::new())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn attach(&self, command: &mut Command, member: Member) -> Result<Attachment, AttachError> {
        if command.get_envs().any(|(name, value)| name == FD_VARIABLE && value.is_some()) {
            return Err(AttachError::AlreadyAttached);
        }
        let (attachment, fd) = self.attach_fd(member)?;
        let inherited = Inherited::new(fd);
        let number = inherited.number();
        command.env(FD_VARIABLE, number.load(Relaxed).to_string());
        sys::inherit(command, number);
        Ok(attachment.keep(inherited))
    }

    /// Like [`attach`](Self::attach), for callers who pass the fd to the container side themselves
    /// (`nsnet_container::TunDevice::from_fd`). The fd is close-on-exec.
    ///
    /// # Errors
    /// See [`attach`](Self::attach).
    pub fn attach_fd(&self, member: Member) -> Result<(Attachment, OwnedFd), AttachError> {
        let lease = self.addresses.lease(&member)?;
        let (channel, container) = pair()?;
        // The channels of the queues behind the first, in case frames are shuttled. This process makes them: if the
        // container side chose the sockets, this process would write to anything it chose.
        let further = (1..self.setup.queues).map(|_| pair()).collect::<Result<Vec<_>, _>>()?;
        let (further, theirs): (Vec<_>, Vec<_>) = further.into_iter().unzip();
        // They carry frames and nothing else.
        further.iter().map(AsFd::as_fd).for_each(sys::refuse_descriptors);
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        let setup = self.setup_of(&lease);
        channel.send(&setup, &fds).map_err(AttachError::Setup)?;
        let counters = self.ledger.open();
        let (attachment, attached) = attach::pair(setup, Arc::clone(&counters));
        self.hand_in(LinkOrigin::ContainerSide { channel, further }, member, lease, counters, attached)?;
        Ok((attachment, container.into_fd()))
    }

    /// Serves a TUN device that another program has made and configured, with or without a virtio-net header
    /// (`IFF_VNET_HDR`). There is no container side and no handshake. The attachment is ready when this returns.
    ///
    /// `fd` is a queue of the device: a file of `/dev/net/tun` on which `TUNSETIFF` was called with `IFF_TUN |
    /// IFF_NO_PI`, in any network namespace. **Nobody else may read it**, neither through a copy of this fd nor through
    /// another queue of a device with `IFF_MULTI_QUEUE`. The kernel gives each packet to one reader, so the others'
    /// packets would be lost here. The fd becomes non-blocking, for every copy of it.
    ///
    /// With a header, this call sets the header's length to that of this library (`TUNSETVNETHDRSZ`). It sets the
    /// offloads to those [the network asks for](crate::NetworkBuilder::offload), as far as the kernel grants them
    /// (`TUNSETOFFLOAD`). [`Ready::offload`](crate::Ready::offload) says which were granted. Without a header, this
    /// call switches offloads off.
    ///
    /// nsnet configures nothing else. The caller sets addresses, routes and the MTU, and brings the interface up,
    /// before this call or after it. The device must have the addresses that [`Attachment::setup`] names: those of the
    /// [`Member`], or the next free ones. Its default routes lead to the gateways that [`Attachment::setup`] names.
    /// Packets from other source addresses are discarded. The MTU of [`AdoptedDevice`] should equal the interface's.
    ///
    /// # Errors
    /// - [`AttachError::NotTun`]: the fd is something else.
    /// - [`AttachError::Mtu`]: the MTU is too small.
    /// - Those of [`attach`](Self::attach) for a name or an address.
    ///
    /// # Examples
    /// ```no_run
    /// use std::os::fd::OwnedFd;
    /// use nsnet_host::{Attachment, AdoptedDevice, Member, Network};
    ///
    /// /// `fd` has come with `SCM_RIGHTS` from a program that has made the device with address 10.0.2.7/24.
    /// fn serve(network: &Network, fd: OwnedFd) -> Result<Attachment, Box<dyn std::error::Error>> {
    ///     let member = Member::named("vm").ipv4("10.0.2.7".parse()?);
    ///     let attachment = network.adopt(fd, AdoptedDevice::new(1500).member(member))?;
    ///     println!("{} is served", attachment.setup().device);
    ///     Ok(attachment.close_on_drop())
    /// }
    /// ```
    pub fn adopt(&self, fd: OwnedFd, device: AdoptedDevice) -> Result<Attachment, AttachError> {
        let AdoptedDevice { member, mtu } = device;
        let lease = self.addresses.lease(&member)?;
        let least = least_mtu(lease.addressing().v6.is_some());
        if mtu < least {
            return Err(AttachError::Mtu { mtu, least });
        }
        let adopted = attach::adopt(fd, mtu, self.setup.offload).map_err(AttachError::NotTun)?;
        let (port, ready) = (adopted.port, adopted.ready);
        let mut setup = self.setup_of(&lease);
        (setup.device, setup.mtu) = (adopted.name, mtu);
        (setup.offload, setup.queues) = (ready.offload, ready.queues);
        let counters = self.ledger.open();
        let (attachment, attached) = attach::pair(setup, Arc::clone(&counters));
        self.hand_in(LinkOrigin::Device { port, ready }, member, lease, counters, attached)?;
        Ok(attachment.already(ready))
    }

    /// The setup for a container with these addresses.
    fn setup_of(&self, lease: &Lease) -> Setup {
        let mut setup = self.setup.clone();
        let subnets = lease.addressing().subnets();
        setup.addresses = subnets
            .map(|subnet| InterfaceAddress::new(subnet.container, subnet.prefix.prefix_len(), subnet.gateway))
            .collect();
        setup
    }

    fn hand_in(
        &self,
        origin: LinkOrigin,
        member: Member,
        lease: Lease,
        counters: Arc<Counters>,
        attached: Attached,
    ) -> Result<(), AttachError> {
        let container = NewContainer { origin, member, lease, counters, attached };
        self.engine.attach(container).map_err(|_| AttachError::ShutDown)
    }
}

/// Bytes that may wait in the socketpair in each direction: room for some dozens of the largest frames.
const SOCKET_BUFFER: usize = 4 << 20;

/// Both ends of a link, with room for frames to queue. The kernel limits the size to `net.core.wmem_max` (socket(7)).
/// With its default only three of the largest frames fit, which is slower but works.
fn pair() -> Result<(Channel, Channel), AttachError> {
    let (host, container) = Channel::pair().map_err(AttachError::SocketPair)?;
    for end in [&host, &container] {
        let _ = socket2::SockRef::from(end).set_send_buffer_size(SOCKET_BUFFER);
    }
    Ok((host, container))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_attached_once() {
        let networks = [(); 2].map(|()| Network::builder().build().unwrap());
        let mut command = Command::new("true");
        let _attachment = networks[0].attach(&mut command, Member::named("one")).unwrap();
        for network in &networks {
            let again = network.attach(&mut command, Member::named("two")).unwrap_err();
            assert!(matches!(again, AttachError::AlreadyAttached), "{again}");
            // The failed attempt has left nothing behind.
            network.attach(&mut Command::new("true"), Member::named("two")).unwrap();
        }
    }

    #[test]
    fn a_command_that_could_not_be_attached_is_as_it_was() {
        let network = Network::builder().build().unwrap();
        let mut command = Command::new("true");
        network.attach(&mut command, Member::named("not a name")).unwrap_err();
        assert_eq!(command.get_envs().count(), 0);
        network.attach(&mut command, Member::named("a-name")).unwrap();
    }

    #[test]
    fn the_setup_is_known_before_the_container_exists() {
        let network = Network::builder().search_domains(["test"]).build().unwrap();
        let (attachment, _fd) = network.attach_fd(Member::new().ipv4([10, 0, 2, 7].into())).unwrap();
        assert_eq!(attachment.ipv4(), Some([10, 0, 2, 7].into()));
        assert_eq!(attachment.ipv6(), Some("fd00::100".parse().unwrap()));
        assert_eq!((&*attachment.setup().device, attachment.setup().mtu), ("tun0", 1500));
        let expected = "# made by nsnet\nnameserver 10.0.2.3\nnameserver fd00::3\nsearch test\n";
        assert_eq!(attachment.resolv_conf(), expected);
    }
}
