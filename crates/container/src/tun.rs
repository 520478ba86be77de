//! ① The TUN device: finds the channel to the host, opens `/dev/net/tun`, asks for offloads.
//!
//! A TUN fd belongs to the network namespace that is current when `/dev/net/tun` is *opened*, whatever
//! namespace the caller of TUNSETIFF is in. So everything here happens in the thread that has entered the
//! namespace, and refuses to happen in the host's own.
//!
//! Two kinds of device come out. With a virtio-net header (`IFF_VNET_HDR`) each frame can leave its checksum
//! and its segmentation to the other end. The plain device serves where no offload is wanted, or where the
//! kernel does not know that header, as under gVisor.

use std::ffi::{c_int, c_uint};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nsnet_proto::{Channel, ChannelError, FD_VARIABLE, NamespaceId, Offload, Report, Setup, vnet};

use crate::{Error, configure, sys};

/// A TUN device that this process has created, and the channel to the host that asked for it.
///
/// The device vanishes with the last copy of its fd: dropped before [`hand_over`](Self::hand_over) or
/// [`shuttle`](Self::shuttle), nothing stays behind.
#[derive(Debug)]
pub struct TunDevice {
    pub(crate) channel: Channel,
    pub(crate) setup: Setup,
    pub(crate) tun: OwnedFd,
    pub(crate) framing: Framing,
    pub(crate) offload: Offload,
}

/// What stands in front of a packet on the TUN fd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Nothing.
    Plain,
    /// A virtio-net header of [`vnet::HEADER_LEN`] bytes.
    Vnet,
}

impl TunDevice {
    /// Whether this process was started with a channel that nobody has taken yet.
    #[must_use]
    pub fn is_attached() -> bool {
        std::env::var_os(FD_VARIABLE).is_some()
    }

    /// Takes the channel named by `NSNET_FD`, removes the variable, and creates the device that the host
    /// wants in the calling thread's network namespace.
    ///
    /// Call it before pivot_root(2) and before starting threads.
    ///
    /// # Errors
    /// See [`from_fd`](Self::from_fd); also if the variable is missing or does not name such a socket, or if
    /// the process has several threads.
    pub fn open() -> Result<Self, Error> {
        let number = inherited_number()?;
        sys::remove_variable(FD_VARIABLE).map_err(|error| {
            let remedy = if error.raw_os_error() == Some(libc::EBUSY) {
                "open the device before starting threads, or take the fd yourself and use TunDevice::from_fd"
            } else {
                "mount /proc first"
            };
            Error::new("remove NSNET_FD from the environment", error).with_remedy(remedy)
        })?;
        Self::from_fd(sys::own_inherited(number).ok_or_else(|| not_a_socket(number))?)
    }

    /// Like [`open`](Self::open) for those who arrange the channel's fd themselves. Works in any thread and
    /// uses that thread's namespaces.
    ///
    /// # Errors
    /// If the fd is not the channel of an nsnet host of this version, the setup it sends is impossible, the
    /// thread is in the host's network namespace, or the kernel refuses the device. Where the channel works
    /// the host is told as well.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(|errno| Error::new("make the channel close-on-exec", errno))?;
        let channel = Channel::from_fd(fd).map_err(|error| {
            Error::channel(ADOPT, error).with_remedy("pass on the fd that Network::attach has prepared")
        })?;
        let opened = read_setup(&channel).and_then(|setup| {
            configure::check(&setup)?;
            refuse_host_namespace(setup.host_namespace)?;
            let (tun, framing, offload) = create(&setup)?;
            Ok((setup, tun, framing, offload))
        });
        match opened {
            Ok((setup, tun, framing, offload)) => Ok(Self { channel, setup, tun, framing, offload }),
            Err(error) => {
                send_failure(&channel, &error);
                Err(error)
            }
        }
    }

    /// What the host wants the interface to look like.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The offloads that the kernel has granted.
    #[must_use]
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// Tells the host that a step of the embedder's own has failed, so that `wait_ready` returns it.
    ///
    /// Best effort: if the host is gone there is nobody to tell.
    pub fn report(&self, error: &Error) {
        send_failure(&self.channel, error);
    }

    /// Passes a result on and tells the host if it is an error.
    pub(crate) fn reporting<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.inspect_err(|error| self.report(error))
    }
}

impl AsFd for TunDevice {
    /// The TUN fd.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tun.as_fd()
    }
}

/// Tells the host about a failure before [`TunDevice::open`], for example of
/// [`Namespaces::enter`](crate::Namespaces::enter), so that `wait_ready` returns it.
///
/// Leaves `NSNET_FD` as it is. Best effort: without a channel there is nobody to tell.
pub fn report_failure(error: &Error) {
    let fd = inherited_number().ok().and_then(sys::copy_inherited);
    if let Some(channel) = fd.and_then(|fd| Channel::from_fd(fd).ok()) {
        send_failure(&channel, error);
    }
}

const ADOPT: &str = "take the channel named by NSNET_FD";
const SETUP: &str = "read the host's setup";
const OPEN: &str = "open /dev/net/tun";
const CREATE: &str = "create the TUN device";
const NAMESPACE: &str = "look at the network namespace";

fn inherited_number() -> Result<RawFd, Error> {
    let Some(value) = std::env::var_os(FD_VARIABLE) else {
        return Err(Error::refused(ADOPT, "the variable is not set")
            .with_remedy("start this process with a Command that was given to Network::attach"));
    };
    value.to_str().and_then(|value| value.parse().ok()).ok_or_else(|| {
        Error::refused(ADOPT, format!("{value:?} is not a number"))
            .with_remedy("leave the variable to Network::attach")
    })
}

fn not_a_socket(number: RawFd) -> Error {
    Error::refused(ADOPT, format!("file descriptor {number} is not an open AF_UNIX socket")).with_remedy(
        "keep inherited file descriptors open until TunDevice::open, and open the device only once",
    )
}

fn read_setup(channel: &Channel) -> Result<Setup, Error> {
    let (setup, _) = channel.try_receive::<Setup>().map_err(|error| {
        let remedy = if matches!(error, ChannelError::Closed) {
            "keep the host's Network alive until the container is ready"
        } else if error.would_block() {
            "open the device only once: its setup has been read already"
        } else {
            ""
        };
        Error::channel(SETUP, error).with_remedy(remedy)
    })?;
    Ok(setup)
}

fn refuse_host_namespace(host: NamespaceId) -> Result<(), Error> {
    // Of the thread: its namespaces may differ from those of the process.
    let ours = std::fs::metadata("/proc/thread-self/ns/net").map_err(|error| {
        Error::new("stat /proc/thread-self/ns/net", error)
            .with_remedy("open the device before pivot_root, while /proc is mounted")
    })?;
    if (NamespaceId { device: ours.dev(), inode: ours.ino() }) == host {
        return Err(Error::refused(NAMESPACE, "this is the host's own").with_remedy(
            "enter a network namespace of the container's own first: Namespaces::new().user().network().enter()",
        ));
    }
    Ok(())
}

fn create(setup: &Setup) -> Result<(OwnedFd, Framing, Offload), Error> {
    let device = open_device()?;
    if setup.offload != Offload::NONE {
        match sys::create_vnet_device(device.as_fd(), &setup.device) {
            Ok(()) => return vnet_device(device.into(), setup.offload),
            Err(Errno::EINVAL) => tracing::debug!("no IFF_VNET_HDR here: going on without offload"),
            Err(errno) => return Err(refused_device(errno.into(), &setup.device)),
        }
    }
    plain_device(&setup.device)
}

/// Opened before `tun-tap` opens it too: that crate opens and creates in one call, and the remedy depends on
/// which of the two was refused.
fn open_device() -> Result<File, Error> {
    OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                "create the device: mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200; inside a \
                 container: run it with --device /dev/net/tun"
            }
            Some(libc::EACCES) => "make the device accessible: chmod 0666 /dev/net/tun",
            Some(libc::EPERM) => {
                "allow the device in the device cgroup; inside a container: run it with --device /dev/net/tun"
            }
            Some(libc::ENODEV | libc::ENXIO) => "load the kernel module: modprobe tun",
            _ => "",
        };
        Error::new(OPEN, error).with_remedy(remedy)
    })
}

fn vnet_device(tun: OwnedFd, wanted: Offload) -> Result<(OwnedFd, Framing, Offload), Error> {
    // The default is the same; a device that outlived its former owner may say something else.
    #[allow(clippy::cast_possible_truncation, reason = "10 fits")]
    sys::set_vnet_header_len(tun.as_fd(), vnet::HEADER_LEN as c_int)
        .map_err(|errno| Error::new("set the length of the virtio-net header", errno))?;
    for offload in candidates(wanted) {
        if sys::set_offload(tun.as_fd(), offload_bits(offload)).is_ok() {
            return Ok((tun, Framing::Vnet, offload));
        }
    }
    Ok((tun, Framing::Vnet, Offload::NONE))
}

/// What to try, best first. The kernel refuses a set as a whole if it does not know one of them.
fn candidates(wanted: Offload) -> [Offload; 5] {
    let checksum = Offload { checksum: wanted.checksum, ..Offload::NONE };
    [
        wanted,
        Offload { uso: false, ..wanted },
        Offload { tso4: false, tso6: false, ..wanted },
        checksum,
        Offload::NONE,
    ]
}

fn offload_bits(offload: Offload) -> c_uint {
    let bit = |wanted: bool, bits: c_uint| if wanted { bits } else { 0 };
    bit(offload.checksum, libc::TUN_F_CSUM)
        | bit(offload.tso4, libc::TUN_F_TSO4)
        | bit(offload.tso6, libc::TUN_F_TSO6)
        | bit(offload.uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
}

fn plain_device(name: &str) -> Result<(OwnedFd, Framing, Offload), Error> {
    let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)
        .map_err(|error| refused_device(error, name))?;
    let tun = sys::own_device(device);
    // A device that outlived its former owner may have offloads left, and would deliver super-frames whose
    // header nobody sees. A kernel that does not know the request knows no offloads either.
    let _ = sys::set_offload(tun.as_fd(), 0);
    Ok((tun, Framing::Plain, Offload::NONE))
}

fn refused_device(error: io::Error, name: &str) -> Error {
    let remedy = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "CAP_NET_ADMIN over the network namespace is missing: create it inside a user namespace of your own \
             (Namespaces::new().user().network()), in this order, and open the device before dropping capabilities"
                .into()
        }
        Some(libc::EBUSY | libc::EINVAL) => {
            format!("the name {name:?} may be taken: one network per network namespace and device name").into()
        }
        _ => std::borrow::Cow::Borrowed(""),
    };
    Error::new(CREATE, error).with_remedy(remedy)
}

fn send_failure(channel: &Channel, error: &Error) {
    if let Err(unheard) = channel.send(&Report::Failed(error.to_failure()), &[]) {
        tracing::debug!(%unheard, %error, "the host could not be told");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::{MsFlags, mount};
    use nsnet_proto::Failure;

    use super::*;
    use crate::Namespaces;
    use crate::testing::{again, alone, ends, inside, setup};

    const NAMESPACES: Namespaces = Namespaces::new().user().network().mount();

    /// What the host gets to read after opening failed.
    #[track_caller]
    fn failure(host: &Channel) -> Failure {
        match host.receive::<Report>().unwrap().0 {
            Report::Failed(failure) => failure,
            Report::Ready(ready) => panic!("{ready:?}"),
        }
    }

    /// Covers /dev/net with an empty directory.
    fn hide_device() {
        fs::create_dir_all("/dev/net").unwrap();
        mount(Some("test"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    }

    #[track_caller]
    fn assert_refused(step: &str, errno: i32, remedy: &str) {
        let (host, fd) = ends(&setup(Offload::NONE));
        let error = TunDevice::from_fd(fd).unwrap_err();
        assert_eq!((error.step(), error.errno()), (step, Some(errno)), "{error}");
        let failure = failure(&host);
        assert_eq!((&*failure.step, failure.errno), (step, Some(errno)));
        assert!(failure.remedy.contains(remedy), "{failure:?}");
    }

    #[test]
    fn missing_device_node_is_told_to_the_host() {
        if inside(NAMESPACES, module_path!(), "missing_device_node_is_told_to_the_host") {
            hide_device();
            assert_refused(OPEN, libc::ENOENT, "mknod");
        }
    }

    #[test]
    fn inaccessible_device_node_is_told_to_the_host() {
        if inside(NAMESPACES, module_path!(), "inaccessible_device_node_is_told_to_the_host") {
            // A device node on a file system mounted with nodev: refused also to root.
            mount(Some("/dev/net"), "/dev/net", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NODEV;
            mount(None::<&str>, "/dev/net", None::<&str>, flags, None::<&str>).unwrap();
            assert_refused(OPEN, libc::EACCES, "chmod 0666");
        }
    }

    #[test]
    fn namespace_that_belongs_to_somebody_else_is_told_to_the_host() {
        // A network namespace of the outer user namespace, entered from an inner one.
        let test = "namespace_that_belongs_to_somebody_else_is_told_to_the_host";
        if inside(NAMESPACES, module_path!(), test) {
            alone(|| {
                Namespaces::new().user().enter().unwrap();
                assert_refused(CREATE, libc::EPERM, "CAP_NET_ADMIN");
            });
        }
    }

    #[test]
    fn taken_name_is_told_to_the_host() {
        if inside(NAMESPACES, module_path!(), "taken_name_is_told_to_the_host") {
            let (_host, fd) = ends(&setup(Offload::NONE));
            let _first = TunDevice::from_fd(fd).unwrap();
            assert_refused(CREATE, libc::EBUSY, "\"tun0\" may be taken");
        }
    }

    #[test]
    fn hosts_own_namespace_is_refused() {
        let ours = fs::metadata("/proc/thread-self/ns/net").unwrap();
        let mut setup = setup(Offload::NONE);
        setup.host_namespace = NamespaceId { device: ours.dev(), inode: ours.ino() };
        let (host, fd) = ends(&setup);
        let error = TunDevice::from_fd(fd).unwrap_err().to_string();
        assert!(error.contains("this is the host's own; enter a network namespace"), "{error}");
        assert!(failure(&host).cause.contains("the host's own"));
    }

    #[test]
    fn impossible_setup_is_refused_before_anything_happens() {
        let mut setup = setup(Offload::NONE);
        setup.mtu = 5;
        let (host, fd) = ends(&setup);
        TunDevice::from_fd(fd).unwrap_err();
        assert!(failure(&host).cause.contains("MTU 5 is below"));
    }

    #[test]
    fn fd_that_is_something_else_is_refused() {
        let error = TunDevice::from_fd(File::open("/dev/null").unwrap().into()).unwrap_err().to_string();
        assert!(error.contains("not an AF_UNIX SOCK_SEQPACKET socket"), "{error}");
    }

    #[test]
    fn host_that_is_gone_and_setup_that_was_read_are_told_apart() {
        let (host, container) = Channel::pair().unwrap();
        let copy = container.as_fd().try_clone_to_owned().unwrap();
        let error = TunDevice::from_fd(copy).unwrap_err().to_string();
        assert!(error.contains("open the device only once"), "{error}");
        drop(host);
        let error = TunDevice::from_fd(container.into_fd()).unwrap_err().to_string();
        assert!(error.contains("keep the host's Network alive"), "{error}");
    }

    #[test]
    fn another_version_is_told_by_both_ends() {
        let (host, container) = Channel::pair().unwrap();
        let raw = std::os::fd::AsRawFd::as_raw_fd(&host.as_fd());
        nix::sys::socket::send(raw, b"nsnt\x09\x00", nix::sys::socket::MsgFlags::empty()).unwrap();
        let error = TunDevice::from_fd(container.into_fd()).unwrap_err().to_string();
        assert!(error.contains("the other end speaks version 9"), "{error}");
        assert!(failure(&host).cause.contains("speaks version 9"));
    }

    #[test]
    fn device_is_close_on_exec_either_way() {
        if inside(NAMESPACES, module_path!(), "device_is_close_on_exec_either_way") {
            for offload in [Offload::NONE, Offload::ALL] {
                let (_host, fd) = ends(&setup(offload));
                let device = TunDevice::from_fd(fd).unwrap();
                for fd in [device.as_fd(), device.channel.as_fd()] {
                    let flags = fcntl(fd, FcntlArg::F_GETFD).map(FdFlag::from_bits_retain).unwrap();
                    assert!(flags.contains(FdFlag::FD_CLOEXEC));
                }
            }
        }
    }

    #[test]
    fn fallbacks_are_subsets_and_end_with_none() {
        let candidates = candidates(Offload::ALL);
        assert_eq!((candidates[0], candidates[4]), (Offload::ALL, Offload::NONE));
        let bits: Vec<_> = candidates.into_iter().map(offload_bits).collect();
        assert_eq!(bits, [0x67, 0x07, 0x61, 0x01, 0]);
    }

    /// Runs the inner part of `test` with `NSNET_FD`, alone in its process.
    #[track_caller]
    fn run_with_variable(test: &str, value: &str) {
        let mut command = again(module_path!(), test);
        let output = command.env(FD_VARIABLE, value).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn variable_that_names_no_socket_is_refused_and_the_fd_spared() {
        let test = "variable_that_names_no_socket_is_refused_and_the_fd_spared";
        let Some(value) = std::env::var_os(FD_VARIABLE) else {
            for value in ["", "many", "-1", "0", "900", "99999999999"] {
                run_with_variable(test, value);
            }
            return;
        };
        alone(|| {
            let error = TunDevice::open().unwrap_err().to_string();
            assert!(error.starts_with("take the channel named by NSNET_FD: "), "{value:?}: {error}");
            fs::metadata("/proc/self/fd/0").unwrap();
        });
    }

    #[test]
    fn process_with_threads_is_told_what_else_to_use() {
        let test = "process_with_threads_is_told_what_else_to_use";
        if !TunDevice::is_attached() {
            return run_with_variable(test, "3");
        }
        let (_hold, release) = std::sync::mpsc::channel::<()>();
        let _thread = std::thread::spawn(move || release.recv());
        let error = TunDevice::open().unwrap_err().to_string();
        assert!(error.contains("before starting threads") && error.contains("from_fd"), "{error}");
        assert!(TunDevice::is_attached());
    }

    #[test]
    fn missing_variable_says_how_to_get_it() {
        let error = TunDevice::open().unwrap_err().to_string();
        assert!(error.contains("the variable is not set; ") && error.contains("Network::attach"), "{error}");
    }

    #[test]
    fn inherited_channel_is_opened_and_the_variable_removed() {
        let test = "inherited_channel_is_opened_and_the_variable_removed";
        if TunDevice::is_attached() {
            return alone(|| {
                report_failure(&Error::refused("an earlier step", "failed"));
                let device = TunDevice::open().unwrap();
                assert!(!TunDevice::is_attached());
                device.report(&Error::refused("a later step", "failed"));
            });
        }
        let (host, fd) = ends(&setup(Offload::NONE));
        // Free of the close-on-exec flag only for this child, but inherited by any other that starts meanwhile.
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let mut command = again(module_path!(), test);
        command.env(FD_VARIABLE, std::os::fd::AsRawFd::as_raw_fd(&fd).to_string());
        NAMESPACES.enter_on_exec(&mut command);
        let output = command.output().map_err(|error| NAMESPACES.explain(error)).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(failure(&host).step, "an earlier step");
        assert_eq!(failure(&host).step, "a later step");
    }
}
