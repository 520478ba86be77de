//! The state of the loopback interface: up, left alone, or waited for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::Error;
use crate::clock::is_true_within;
use crate::interface::Interface;
use crate::netlink::Netlink;

/// The treatment of `lo`, the loopback interface, by [`TunDevice::configure`](crate::TunDevice::configure).
///
/// It is down in a new network namespace. Nothing reaches 127.0.0.1 or ::1 until a program brings it up.
///
/// # Default
///
/// [`BringUp`](Self::BringUp). But after [joining](crate::join()) the namespace of a process that is still building its
/// sandbox, [`Wait`](Self::Wait) for five seconds. Such a process may bring `lo` up itself, and some fail if it is up
/// already. bubblewrap adds 127.0.0.1 with `NLM_F_EXCL`, and ends if the address is there.
///
/// A process counts as building its sandbox until it first calls execve(2) after its fork. ps(1) shows this as the flag
/// 1 (`PF_FORKNOEXEC`). This is how common programs behave:
///
/// | joined | default |
/// |---|---|
/// | bubblewrap, the `child-pid` of `--info-fd` | waits, for milliseconds |
/// | runc and crun, in a `createRuntime` hook | does not wait: `lo` is up by then |
/// | `unshare --net COMMAND`, the process | does not wait: the command runs already |
/// | a path or a file descriptor, as of `ip netns add` | does not wait: no process is known |
/// | a process that forks, unshares, and wants the network before it calls execve(2) | waits in vain: choose `BringUp` |
///
/// # Example
///
/// ```no_run
/// # fn main() -> Result<(), nsnet_container::Error> {
/// use std::time::Duration;
/// use nsnet_container::{Loopback, TunDevice};
///
/// let mut device = TunDevice::open()?;
/// device.loopback(Loopback::Wait(Duration::from_secs(2))).configure()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Loopback {
    /// Brings it up, unless it is up already.
    BringUp,
    /// Waits until another process has brought it up, for this long at most. If none has, brings it up and logs a
    /// warning.
    Wait(Duration),
    /// Leaves it as it is.
    Leave,
}

/// Whether this process has joined the namespace of a process that may bring `lo` up itself.
static OWNER_MAY_BRING_UP: AtomicBool = AtomicBool::new(false);

/// How long that process may take. It takes milliseconds, unless the machine is overloaded.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes waiting the default in this process.
pub(crate) fn expect_owner() {
    OWNER_MAY_BRING_UP.store(true, Ordering::Relaxed);
}

impl Loopback {
    /// The default in this process.
    pub(crate) fn default_here() -> Self {
        if OWNER_MAY_BRING_UP.load(Ordering::Relaxed) { Self::Wait(PATIENCE) } else { Self::BringUp }
    }

    pub(crate) fn apply(self, netlink: &mut Netlink) -> Result<(), Error> {
        let limit = match self {
            Self::Leave => return Ok(()),
            Self::BringUp => Duration::ZERO,
            Self::Wait(limit) => limit,
        };
        let lo = Interface::find("lo")?;
        if is_true_within(limit, || lo.is_up(netlink))? {
            return Ok(());
        }
        if limit > Duration::ZERO {
            tracing::warn!(
                "nobody has brought lo up within {limit:?}; Loopback::BringUp does not wait for that"
            );
        }
        lo.bring_up(netlink)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nsnet_proto::Offload;

    use super::*;
    use crate::testing::{ends, inside, ip, setup};
    use crate::{Namespaces, TunDevice};

    const NAMESPACES: Namespaces = Namespaces::new().user().network();

    fn is_up() -> bool {
        Interface::find("lo").unwrap().is_up(&mut Netlink::open().unwrap()).unwrap()
    }

    #[track_caller]
    fn configured(loopback: Loopback) -> TunDevice {
        let (_host, fd) = ends(&setup(Offload::NONE));
        let mut device = TunDevice::from_fd(fd).unwrap();
        device.loopback(loopback).configure().unwrap();
        device
    }

    #[test]
    fn it_is_brought_up_unless_it_is_up_already() {
        if inside(NAMESPACES, module_path!(), "it_is_brought_up_unless_it_is_up_already") {
            assert_eq!(Loopback::default_here(), Loopback::BringUp);
            assert!(!is_up());
            drop(configured(Loopback::BringUp));
            assert!(is_up());
            configured(Loopback::BringUp);
        }
    }

    #[test]
    fn it_can_be_left_alone() {
        if inside(NAMESPACES, module_path!(), "it_can_be_left_alone") {
            let _device = configured(Loopback::Leave);
            assert!(!is_up());
        }
    }

    /// As bubblewrap does it.
    #[test]
    fn who_adds_its_address_exclusively_is_waited_for() {
        if !inside(NAMESPACES, module_path!(), "who_adds_its_address_exclusively_is_waited_for") {
            return;
        }
        let other = thread::spawn(|| {
            thread::sleep(Duration::from_millis(300));
            ip("address add 127.0.0.1/8 dev lo").0.success() && ip("link set lo up").0.success()
        });
        let _device = configured(Loopback::Wait(Duration::from_secs(60)));
        assert!(is_up());
        assert!(other.join().unwrap(), "the address was there already");
    }

    #[test]
    fn it_is_brought_up_if_nobody_else_does() {
        if inside(NAMESPACES, module_path!(), "it_is_brought_up_if_nobody_else_does") {
            let _device = configured(Loopback::Wait(Duration::from_millis(20)));
            assert!(is_up());
        }
    }
}
