//! `TunDevice::open` where it cannot work: the host learns why.
//!
//! These tests start themselves once more, with a network attached, and are the container side then.

use std::env;
use std::process::{Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nsnet::container::TunDevice;
use nsnet::host::{Member, Network};

use crate::world::{PATIENCE, World, test};

mod once {
    use super::{TunDevice, test};

    #[test]
    fn threads_are_told_to_the_host() {
        if TunDevice::is_attached() {
            super::open_with_threads();
        } else {
            test!(HandedOver, threads_are_told_to_the_host);
        }
    }

    #[test]
    fn covered_proc_is_told_to_the_host() {
        if TunDevice::is_attached() {
            super::open_without_proc();
        } else {
            test!(HandedOver, covered_proc_is_told_to_the_host);
        }
    }
}

fn threads_are_told_to_the_host(_: &World) {
    let error = error_of_container_side("threads_are_told_to_the_host");
    assert!(error.contains("open the device before starting threads"), "{error}");
}

fn open_with_threads() {
    let _thread = thread::spawn(thread::park);
    let error = TunDevice::open().unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY as i32), "{error}");
}

fn covered_proc_is_told_to_the_host(_: &World) {
    let error = error_of_container_side("covered_proc_is_told_to_the_host");
    assert!(error.contains("mount /proc first"), "{error}");
}

fn open_without_proc() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount::<_, _, _, str>(Some("test"), "/proc", Some("tmpfs"), MsFlags::empty(), None).unwrap();
    let error = TunDevice::open().unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT as i32), "{error}");
}

/// What `wait_ready` says about a container side that is this program with one test to run.
#[track_caller]
fn error_of_container_side(test: &str) -> String {
    let network = Network::builder().build().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([&format!("open::once::{test}"), "--exact"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut attachment = network.attach(&mut command, Member::new()).unwrap();
    let mut child = command.spawn().unwrap();
    let error = attachment.wait_ready(PATIENCE).unwrap_err();
    assert!(child.wait().unwrap().success());
    error.to_string()
}
