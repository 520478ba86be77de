//! Closes descriptors whose close(2) may take long, on threads that serve nobody.
//!
//! | descriptors | how long it may take | threads at most |
//! |---|---|---|
//! | TUN devices | some 30 ms each: the kernel deletes the device (`synchronize_net`) | 1 |
//! | descriptors of a container that nobody has checked | for ever: a file server of the container's own (fuse(4)), a socket that lingers (`SO_LINGER`, socket(7)) | 8 |
//!
//! A thread starts with the first descriptor and ends with the last. Unchecked descriptors that keep all their threads
//! busy hold up other unchecked ones, and no device.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::sys::Entrusted;

static DEVICES: Closer = Closer::new(1, IfAlone::Close);

static UNCHECKED: Closer = Closer::new(8, IfAlone::Keep);

/// A TUN device. It is closed on a thread of its own when it is dropped.
pub(crate) fn device(fd: OwnedFd) -> Entrusted {
    Entrusted::new(fd, |fd| DEVICES.submit(Job::Close(fd)))
}

/// Resolves once the devices are closed that have been dropped so far, in the whole process.
pub(crate) async fn devices_are_closed() {
    let (told, closed) = oneshot::channel();
    DEVICES.submit(Job::Tell(told));
    // Fails if there is nothing to wait for.
    let _ = closed.await;
}

/// Descriptors that a container has sent and that nobody has checked yet.
#[derive(Debug, Default)]
pub(crate) struct Unchecked(pub(crate) Vec<OwnedFd>);

impl Drop for Unchecked {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|fd| UNCHECKED.submit(Job::Close(fd)));
    }
}

/// Threads that close descriptors, in the order in which they come.
struct Closer {
    most_threads: usize,
    if_alone: IfAlone,
    state: Mutex<State>,
}

/// What becomes of descriptors while no thread can be started.
#[derive(Debug, Clone, Copy)]
enum IfAlone {
    /// The caller closes them. A pause is better than a device that stays.
    Close,
    /// They stay open until a thread starts for a later one. Their close might never return.
    Keep,
}

struct State {
    /// A forked process has none of its parent's threads.
    process: u32,
    jobs: VecDeque<Job>,
    threads: usize,
}

enum Job {
    Close(OwnedFd),
    /// Says that the jobs before have begun, and with one thread that they are done.
    Tell(oneshot::Sender<()>),
}

impl Closer {
    const fn new(most_threads: usize, if_alone: IfAlone) -> Self {
        let state = State { process: 0, jobs: VecDeque::new(), threads: 0 };
        Self { most_threads, if_alone, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&'static self, job: Job) {
        let is_alone = {
            let mut state = self.lock();
            if state.process != process::id() {
                (state.process, state.threads) = (process::id(), 0);
            }
            if matches!(job, Job::Tell(_)) && state.threads == 0 {
                return;
            }
            state.jobs.push_back(job);
            if state.threads == self.most_threads {
                return;
            }
            state.threads += 1;
            thread::Builder::new().name("nsnet-close".into()).spawn(|| self.work()).is_err()
        };
        // The process may have no more threads.
        match self.if_alone {
            IfAlone::Close if is_alone => self.work(),
            IfAlone::Keep if is_alone => self.lock().threads -= 1,
            IfAlone::Close | IfAlone::Keep => {}
        }
    }

    /// Does jobs until none is left.
    fn work(&self) {
        while let Some(job) = self.next() {
            match job {
                Job::Close(fd) => drop(fd),
                // Nobody need wait for it.
                Job::Tell(told) => drop(told.send(())),
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        let job = state.jobs.pop_front();
        if job.is_none() {
            state.threads -= 1;
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::task::block_on;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// The end that reads its end once the other is closed.
    fn device_and_end() -> (Entrusted, PipeReader) {
        let (reader, writer) = pipe().unwrap();
        (device(writer.into()), reader)
    }

    /// A descriptor whose close lasts as long as the other end does not read.
    fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let socket = socket2::SockRef::from(&near);
        socket.set_linger(Some(3 * PATIENCE)).unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.send(&[0; 1 << 16]).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        (near.into(), far)
    }

    #[test]
    fn devices_are_closed_before_it_is_told() {
        let (devices, mut ends): (Vec<_>, Vec<_>) = (0..50).map(|_| device_and_end()).unzip();
        drop(devices);
        block_on(devices_are_closed(), PATIENCE).expect("told");
        for end in &mut ends {
            assert_eq!(end.read(&mut [0]).unwrap(), 0);
        }
        block_on(devices_are_closed(), PATIENCE).expect("told although there are none");
    }

    #[test]
    fn descriptors_that_never_close_hold_up_no_device() {
        let (unchecked, far): (Vec<_>, Vec<_>) = (0..9).map(|_| lingering()).unzip();
        drop(Unchecked(unchecked));
        let (device, mut end) = device_and_end();
        drop(device);
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
        block_on(devices_are_closed(), PATIENCE).expect("told");
        // A reset ends the waiting.
        for stream in far {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        for closer in [&UNCHECKED, &DEVICES] {
            let mut looks = 0;
            while closer.lock().threads > 0 {
                assert!(looks < 1000, "its threads end");
                looks += 1;
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
