use std::fs::{self, File};

use nix::mount::{MsFlags, mount};
use nsnet_proto::Failure;

use super::device::{CREATE, OPEN};
use super::*;
use crate::Namespaces;
use crate::testing::{again, alone, ends, ends_with, inside, ip, setup, setup_of_queues};

const NAMESPACES: Namespaces = Namespaces::new().user().network().mount();

/// The report that the host gets after opening failed.
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
        // A device node on a file system mounted with nodev, which is refused even to root.
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
fn device_has_the_queues_asked_for() {
    if inside(NAMESPACES, module_path!(), "device_has_the_queues_asked_for") {
        for (offload, framing) in [(Offload::NONE, Framing::Plain), (Offload::ALL, Framing::Vnet)] {
            let (_host, further, fd) = ends_with(&setup_of_queues(3, offload));
            let device = TunDevice::from_fd(fd).unwrap();
            assert_eq!((device.queues(), device.device.framing), (3, framing));
            assert_eq!((device.device.fds().count(), further.len()), (3, 2));
            assert!(ip("-details link show tun0").1.contains("multi_queue"));
        }
    }
}

#[test]
fn one_queue_is_no_device_of_several() {
    if inside(NAMESPACES, module_path!(), "one_queue_is_no_device_of_several") {
        for offload in [Offload::NONE, Offload::ALL] {
            let (_host, fd) = ends(&setup(offload));
            let device = TunDevice::from_fd(fd).unwrap();
            assert_eq!(device.queues(), 1);
            assert!(!ip("-details link show tun0").1.contains("multi_queue"));
        }
    }
}

/// A persistent device that was made beforehand keeps its kind: the kernel refuses more queues.
#[test]
fn refused_queues_are_done_without() {
    if inside(NAMESPACES, module_path!(), "refused_queues_are_done_without") {
        assert!(ip("tuntap add dev tun0 mode tun").0.success());
        let (_host, _further, fd) = ends_with(&setup_of_queues(2, Offload::NONE));
        assert_eq!(TunDevice::from_fd(fd).unwrap().queues(), 1);
    }
}

#[test]
fn device_of_another_network_gives_no_queue_away() {
    if inside(NAMESPACES, module_path!(), "device_of_another_network_gives_no_queue_away") {
        let several = setup_of_queues(2, Offload::ALL);
        let (_host, _further, fd) = ends_with(&several);
        let _first = TunDevice::from_fd(fd).unwrap();
        let (_host, _further, fd) = ends_with(&several);
        let error = TunDevice::from_fd(fd).unwrap_err().to_string();
        assert!(error.contains("\"tun0\" may be taken"), "{error}");
    }
}

#[test]
fn setup_without_the_ends_of_its_queues_is_refused() {
    for queues in [0, 2, u16::MAX] {
        let (host, fd) = ends(&setup_of_queues(queues, Offload::NONE));
        let error = TunDevice::from_fd(fd).unwrap_err().to_string();
        assert!(error.contains(&format!("0 file descriptors came with a setup of {queues}")), "{error}");
        assert_eq!(failure(&host).step, SETUP);
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

/// Runs the inner part of `test` in new namespaces with a channel in `NSNET_FD`, whose other end this is.
#[track_caller]
fn run_attached(test: &str) -> Channel {
    let (host, fd) = ends(&setup(Offload::NONE));
    // Inheritable by this child, but also by any other that starts meanwhile.
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut command = again(module_path!(), test);
    command.env(FD_VARIABLE, std::os::fd::AsRawFd::as_raw_fd(&fd).to_string());
    NAMESPACES.enter_on_exec(&mut command);
    let output = command.output().map_err(|error| NAMESPACES.explain(error)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    host
}

#[test]
fn process_with_threads_is_told_what_else_to_use_and_the_host_as_well() {
    let test = "process_with_threads_is_told_what_else_to_use_and_the_host_as_well";
    if !TunDevice::is_attached() {
        let failure = failure(&run_attached(test));
        assert_eq!((&*failure.step, failure.errno), (REMOVE, Some(libc::EBUSY)));
        return;
    }
    let (_hold, release) = std::sync::mpsc::channel::<()>();
    let _thread = std::thread::spawn(move || release.recv());
    let error = TunDevice::open().unwrap_err().to_string();
    assert!(error.contains("before starting threads") && error.contains("from_fd"), "{error}");
    assert!(TunDevice::is_attached());
}

#[test]
fn covered_proc_is_told_to_the_host() {
    let test = "covered_proc_is_told_to_the_host";
    if !TunDevice::is_attached() {
        let failure = failure(&run_attached(test));
        assert_eq!((&*failure.step, &*failure.remedy), (REMOVE, "mount /proc first"));
        return;
    }
    alone(|| {
        mount(Some("test"), "/proc", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        assert_eq!(TunDevice::open().unwrap_err().errno(), Some(libc::ENOENT));
    });
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
    let host = run_attached(test);
    assert_eq!(failure(&host).step, "an earlier step");
    assert_eq!(failure(&host).step, "a later step");
}
