//! A container: a network namespace with nothing in it but what nsnet puts there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nsnet::container::{Shuttle, TunDevice};
use nsnet::host::{Attachment, Finished, Member, Network, Offload, Ready, Statistics};
use nsnet_proto::{Channel, Report, Setup};

use super::namespace::Namespace;
use super::{CONTAINER, Carriage, PATIENCE, example};

/// A namespace attached to a network. The host side is this process, the container side a few threads of it.
pub(crate) struct Container {
    network: Option<Arc<Network>>,
    namespace: Namespace,
    ready: Ready,
    attachment: Option<Attachment>,
    _shuttle: Option<Shuttle>,
}

impl Container {
    /// A container of `network`, ready.
    #[track_caller]
    pub(crate) fn new(network: Arc<Network>, carriage: Carriage) -> Self {
        Self::of_namespace(network, carriage, Namespace::new())
    }

    /// Like [`new`](Self::new), in a namespace that somebody has prepared.
    #[track_caller]
    pub(crate) fn of_namespace(network: Arc<Network>, carriage: Carriage, namespace: Namespace) -> Self {
        Self::attached(network, carriage, namespace, Member::new())
    }

    /// Like [`new`](Self::new), with a name or addresses of its own.
    #[track_caller]
    pub(crate) fn member(network: &Arc<Network>, carriage: Carriage, member: Member) -> Self {
        Self::attached(Arc::clone(network), carriage, Namespace::new(), member)
    }

    #[track_caller]
    fn attached(network: Arc<Network>, carriage: Carriage, namespace: Namespace, member: Member) -> Self {
        let (attachment, fd) = network.attach_fd(member).unwrap();
        Self::finished(network, carriage, namespace, attachment, fd)
    }

    /// Like [`new`](Self::new), of an attachment that is there already.
    #[track_caller]
    pub(crate) fn with(
        network: Arc<Network>,
        carriage: Carriage,
        attachment: Attachment,
        fd: OwnedFd,
    ) -> Self {
        Self::finished(network, carriage, Namespace::new(), attachment, fd)
    }

    /// A container whose device has none of the offloads that its network asks for. It is handed over.
    #[track_caller]
    pub(crate) fn without_offload(network: &Arc<Network>) -> Self {
        let (attachment, fd) = network.attach_fd(Member::new()).unwrap();
        let host = Channel::from_fd(fd).unwrap();
        let (mut setup, _) = host.receive::<Setup>().unwrap();
        setup.offload = Offload::NONE;
        let (near, far) = Channel::pair().unwrap();
        near.send(&setup, &[]).unwrap();
        let between = thread::spawn(move || {
            let (report, fds) = near.receive::<Report>().unwrap();
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            host.send(&report, &fds).unwrap();
        });
        let container = Self::finished(
            Arc::clone(network),
            Carriage::HandedOver,
            Namespace::new(),
            attachment,
            far.into_fd(),
        );
        between.join().unwrap();
        container
    }

    /// A container whose device somebody else has made in `namespace`.
    #[track_caller]
    pub(crate) fn of_device(network: Arc<Network>, namespace: Namespace, mut attachment: Attachment) -> Self {
        let ready = attachment.wait_ready(Duration::ZERO).unwrap();
        Self { network: Some(network), namespace, ready, attachment: Some(attachment), _shuttle: None }
    }

    #[track_caller]
    fn finished(
        network: Arc<Network>,
        carriage: Carriage,
        namespace: Namespace,
        mut attachment: Attachment,
        fd: OwnedFd,
    ) -> Self {
        let shuttle = namespace.run(move || {
            let mut device = TunDevice::from_fd(fd).unwrap();
            device.configure().unwrap();
            match carriage {
                Carriage::HandedOver => {
                    device.hand_over().unwrap();
                    None
                }
                Carriage::Shuttled => Some(device.shuttle().unwrap()),
            }
        });
        let ready = attachment.wait_ready(PATIENCE).unwrap();
        Self { network: Some(network), namespace, ready, attachment: Some(attachment), _shuttle: shuttle }
    }

    /// What the host side was told.
    pub(crate) fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The network it is attached to.
    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("the host side is dropped once only")
    }

    /// What was carried for this container alone.
    pub(crate) fn statistics(&self) -> Statistics {
        self.attachment.as_ref().expect("the attachment is not closed yet").statistics()
    }

    /// Ends the host side, if no other container is attached to the same network.
    pub(crate) fn drop_network(&mut self) {
        self.network = None;
    }

    /// Ends the host side in good order.
    #[track_caller]
    pub(crate) fn finish(&mut self, grace: Duration) -> Finished {
        self.take_network().finish(grace)
    }

    /// The host side, if no other container is attached to the same network.
    #[track_caller]
    pub(crate) fn take_network(&mut self) -> Network {
        let network = self.network.take().and_then(Arc::into_inner);
        network.expect("no other container is attached")
    }

    /// Takes the network away from this container only.
    pub(crate) fn close(&self) {
        self.attachment().close();
    }

    /// What the host side has of this container.
    pub(crate) fn attachment(&self) -> &Attachment {
        self.attachment.as_ref().expect("the attachment is taken once only")
    }

    /// The same, to keep.
    pub(crate) fn take_attachment(&mut self) -> Attachment {
        self.attachment.take().expect("the attachment is taken once only")
    }

    /// Runs `body` on a thread inside.
    #[track_caller]
    pub(crate) fn inside<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(body)
    }

    /// A command that will run inside.
    pub(crate) fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// A connection out of the container. Nothing that is done with it takes longer than [`PATIENCE`].
    pub(crate) fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.connect_within(to, PATIENCE)
    }

    /// Like [`connect`](Self::connect) with another limit for the connect itself.
    pub(crate) fn connect_within(&self, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, limit))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// A listener in the container, at its address of one family.
    #[track_caller]
    pub(crate) fn listen(&self, family: IpAddr) -> TcpListener {
        let address = CONTAINER[usize::from(family.is_ipv6())];
        self.inside(|| TcpListener::bind((address, 0))).unwrap()
    }

    /// A UDP socket in the container that is connected to `to`.
    pub(crate) fn udp(&self, to: SocketAddr) -> UdpSocket {
        let socket = self.udp_unconnected(to.ip());
        socket.connect(to).unwrap();
        socket
    }

    /// A UDP socket in the container, of the family of `towards`.
    pub(crate) fn udp_unconnected(&self, towards: IpAddr) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((unspecified(towards), 0))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }
}

/// All addresses of the same family.
fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A container that is a process of its own and can be killed: the example `rootless-shell`, which is a
/// container side when it is started as one.
pub(crate) struct ContainerProcess {
    pub(crate) network: Arc<Network>,
    pub(crate) attachment: Attachment,
    child: Child,
}

impl ContainerProcess {
    /// Attaches a process that runs `script` in bash(1) once the network is there.
    #[track_caller]
    pub(crate) fn spawn(network: impl Into<Arc<Network>>, carriage: Carriage, script: &str) -> Self {
        let network = network.into();
        let mut command = Command::new(example("rootless-shell"));
        if carriage == Carriage::Shuttled {
            command.arg("--shuttle");
        }
        command.args(["--", "bash", "-c", script]);
        let mut attachment = network.attach(&mut command, Member::new()).unwrap();
        let child = command.spawn().unwrap();
        attachment.wait_ready(PATIENCE).unwrap();
        Self { network, attachment, child }
    }

    /// Takes the network away, as is due when it has ended.
    pub(crate) fn close(&self) {
        self.attachment.close();
    }

    /// Kills it, as the kernel would for want of memory.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for ContainerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
