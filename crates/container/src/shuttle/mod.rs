//! ② Copies frames between the TUN device and the socketpair, for containers whose TUN fd must not leave.
//!
//! Each queue of the device has two threads, one for each direction. Each thread has one buffer, allocated at its
//! start:
//!
//! * [`up`], TUN → socketpair: reads as long as there are packets, and waits in poll(2) only when there are none. If
//!   the host does not keep up, the thread waits for room and the device's queue fills. The container's sockets then
//!   wait: back-pressure instead of loss.
//! * *down*, socketpair → TUN: blocks in recv(2). The device takes every packet at once. The container's own sockets
//!   decide how much they have room for.
//!
//! On the socketpair a frame always starts with a virtio-net header. The plain device has no header. The threads put a
//! zeroed one in front of its packets, and leave the header out of packets for it. The packet stands behind the header
//! in the buffer, so neither takes a copy.
//!
//! Three events end the copying: the host closes its end, the device fails or vanishes, or [`Shuttle::stop`] is called.
//! Only after `stop` can frames still be delivered, so the up thread empties the device's queue first. A thread that
//! ends shuts its socket down, which wakes the other. The host still receives the frames sent before, and ends the
//! other queues of the device.
//!
//! The last thread closes all TUN fds at once. The interface goes with them, as a handed-over device goes with its
//! host. No fd is closed earlier, because the kernel would move the flows of its queue to the other queues.

mod up;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, Shutdown, getsockopt, recv, setsockopt, shutdown, sockopt};
use nix::unistd::write;
use nsnet_proto::{Carriage, Channel, Ready, Report, vnet};

use self::up::{StopSignal, copy_up};
use crate::clock::Deadline;
use crate::tun::Framing;
use crate::{Error, TunDevice, unacknowledged};

/// The largest frame: a header and the largest packet IP can express.
const FRAME_MAX: usize = vnet::HEADER_LEN + 65535;

/// The size asked for. The kernel grants up to `net.core.wmem_max`, whose default holds three of the largest frames.
const SEND_BUFFER: usize = 4 << 20;

/// Bytes that a send buffer must hold beyond the message (`unix_dgram_sendmsg` in net/unix/af_unix.c).
const SEND_OVERHEAD: usize = 32;

/// The interval at which [`Shuttle::finish`] looks.
const FINISH_INTERVAL: Duration = Duration::from_millis(5);

/// The threads that copy frames. Dropping it calls [`stop`](Self::stop) and waits for the end.
#[derive(Debug)]
pub struct Shuttle {
    ready: Ready,
    stop: Arc<StopSignal>,
    threads: Vec<CopyThread>,
}

impl TunDevice {
    /// Tells the host that the interface is up, and copies frames between the device and the host until either end
    /// closes. Two threads of its own serve each queue of the device.
    ///
    /// The calling process must live as long as the network is to last. Call it in the network namespace that the
    /// device is in.
    ///
    /// # Errors
    /// - If the device is down because neither [`configure`](Self::configure) nor another program has brought it up.
    ///   The host gets the error as well.
    /// - If the threads cannot be started. The host gets the error as well.
    /// - If the host is gone.
    pub fn shuttle(self) -> Result<Shuttle, Error> {
        self.reporting(self.require_up("shuttle the frames of the TUN device"))?;
        self.reporting(prepare(&self))?;
        let stop = Arc::new(self.reporting(StopSignal::new())?);
        // The threads start without work. Nothing can fail after Ready, which has to be the first message.
        let (hand_in, threads): (Vec<_>, Vec<_>) =
            self.reporting(start_all(self.queues()))?.into_iter().unzip();
        let ready = Ready::new(Carriage::Shuttled, self.offload(), self.queues());
        self.channel.send(&Report::Ready(ready), &[]).map_err(|error| {
            Error::channel("tell the host that the network is ready", error)
                .with_remedy("keep the host's Network alive until the container is ready")
        })?;
        let packet_offset = match self.device.framing {
            Framing::Plain => vnet::HEADER_LEN,
            Framing::Vnet => 0,
        };
        let sockets = std::iter::once(self.channel).chain(self.further).map(Channel::into_fd);
        let queues = self.device.into_fds().zip(sockets).map(|(tun, socket)| Queue { tun, socket });
        let queues: Arc<[Queue]> = queues.collect();
        for (number, hand_in) in hand_in.into_iter().enumerate() {
            let ends = Ends {
                queues: Arc::clone(&queues),
                index: number / 2,
                packet_offset,
                stop: Arc::clone(&stop),
            };
            // The thread is waiting for this, so the receiver exists.
            let _ = hand_in.send(ends);
        }
        Ok(Shuttle { ready, stop, threads })
    }
}

impl Shuttle {
    /// The report that the host got.
    #[must_use]
    pub fn ready(&self) -> Ready {
        self.ready
    }

    /// Ends the copying. [`wait`](Self::wait) waits for the end.
    ///
    /// Packets that are in the device's queue by now still go to the host, as far as it takes them within a second.
    /// Bytes that sockets have yet to send, for example because their peer's window is full, are lost: see
    /// [`finish`](Self::finish).
    pub fn stop(&self) {
        self.stop.request();
    }

    /// Ends the copying once all TCP data that the payload sent before it ended is delivered.
    ///
    /// Call it after the payload has ended, from a process that outlives it, such as process 1 of its pid namespace.
    /// The kernel goes on sending for sockets that have lost their process, but only while the interface exists. This
    /// call keeps copying until no TCP socket of the calling thread's network namespace waits for an acknowledgement,
    /// or `grace` is over. Then it stops as [`stop`](Self::stop) does, and waits.
    ///
    /// A connection that a process still holds open may have more to send at any time. One such process in the
    /// background makes this wait for all of `grace`.
    ///
    /// It looks at `/proc/thread-self/net/tcp` every 5 ms, because the kernel does not announce the acknowledgement of
    /// a connection's last byte.
    ///
    /// # Errors
    /// If the device failed or was deleted, or if `/proc` cannot be read. The copying has then ended as well.
    pub fn finish(self, grace: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(grace);
        let watched = loop {
            match unacknowledged::any() {
                Ok(true) if !deadline.left().is_zero() && !self.has_ended() => {
                    thread::sleep(FINISH_INTERVAL.min(deadline.left()));
                }
                other => break other.map(drop),
            }
        };
        self.stop();
        self.wait().and(watched)
    }

    /// Waits until the host closes its end or [`stop`](Self::stop) is called. The interface is gone then.
    ///
    /// # Errors
    /// If the device failed or was deleted, or the socketpair failed.
    pub fn wait(mut self) -> Result<(), Error> {
        self.join()
    }

    /// Whether a thread has ended. Copying then ends on the other queues too.
    fn has_ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    fn join(&mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        for thread in self.threads.drain(..) {
            let ended = thread
                .join()
                .unwrap_or_else(|_| Err(Error::refused("copy frames", "the thread has panicked")));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl Drop for Shuttle {
    fn drop(&mut self) {
        self.stop();
        if let Err(error) = self.join() {
            tracing::debug!(%error, "the shuttle had ended before it was dropped");
        }
    }
}

/// The state of one thread.
struct Ends {
    queues: Arc<[Queue]>,
    /// The queue of this thread.
    index: usize,
    /// Offset within a frame of the part that passes through the TUN fd.
    packet_offset: usize,
    stop: Arc<StopSignal>,
}

impl Ends {
    fn tun(&self) -> &OwnedFd {
        &self.queues[self.index].tun
    }

    fn socket(&self) -> &OwnedFd {
        &self.queues[self.index].socket
    }
}

/// A queue of the device, and its socket to the host.
struct Queue {
    tun: OwnedFd,
    socket: OwnedFd,
}

fn prepare(device: &TunDevice) -> Result<(), Error> {
    for tun in device.device.fds() {
        let flags = fcntl(tun, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        flags
            .and_then(|flags| fcntl(tun, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
            .map_err(|errno| Error::new("make the TUN device non-blocking", errno))?;
    }
    std::iter::once(&device.channel).chain(&device.further).try_for_each(enlarge_buffer)
}

fn enlarge_buffer(channel: &Channel) -> Result<(), Error> {
    // The kernel may grant less. The size that is needed is checked below.
    let _ = setsockopt(channel, sockopt::SndBuf, &SEND_BUFFER);
    let granted = getsockopt(channel, sockopt::SndBuf)
        .map_err(|errno| Error::new("read the channel's send buffer size", errno))?;
    if granted < FRAME_MAX + SEND_OVERHEAD {
        return Err(Error::refused(
            "check the channel's send buffer",
            format!("{granted} bytes hold no frame"),
        )
        .with_remedy("raise net.core.wmem_max to its default, 212992"));
    }
    Ok(())
}

/// Copies in one direction until the host, the device or `stop` ends it.
type Copy = fn(&Ends) -> Result<(), Error>;
type CopyThread = JoinHandle<Result<(), Error>>;

/// Starts two threads for each queue, in this order.
fn start_all(queues: u16) -> Result<Vec<(Sender<Ends>, CopyThread)>, Error> {
    let pair: [(&str, Copy); 2] = [("nsnet-up", copy_up), ("nsnet-down", copy_down)];
    (0..queues).flat_map(|_| pair).map(|(name, copy)| start(name, copy)).collect()
}

fn start(name: &str, copy: Copy) -> Result<(Sender<Ends>, CopyThread), Error> {
    let (hand_in, ends) = mpsc::channel::<Ends>();
    let work = move || {
        let Ok(ends) = ends.recv() else { return Ok(()) };
        let outcome = copy(&ends);
        close_conversation(ends.socket());
        outcome
    };
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Error::new(format!("start the thread {name}"), error))?;
    Ok((hand_in, thread))
}

/// Wakes the threads that wait at the socket, at either end of it.
fn close_conversation(socket: &OwnedFd) {
    // Fails only if the other end has done so already.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
}

/// Socketpair → TUN, until an end closes.
fn copy_down(ends: &Ends) -> Result<(), Error> {
    let mut frame = vec![0; FRAME_MAX].into_boxed_slice();
    loop {
        // MSG_TRUNC returns the length of the whole frame, even if it had no room.
        let len = match recv(ends.socket().as_raw_fd(), &mut frame, MsgFlags::MSG_TRUNC) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(errno) => match socket_trouble(errno) {
                Trouble::Interrupted => continue,
                Trouble::FrameLost => {
                    tracing::trace!(%errno, "the socket dropped a frame");
                    continue;
                }
                Trouble::HostGone => return Ok(()),
                Trouble::Fatal => return Err(Error::new("receive a frame from the host", errno)),
            },
        };
        if !(vnet::HEADER_LEN + 1..=FRAME_MAX).contains(&len) {
            tracing::debug!(len, "dropped a frame of impossible length");
            continue;
        }
        match write(ends.tun(), &frame[ends.packet_offset..len]) {
            Ok(_) => {}
            Err(errno) if concerns_one_frame(errno) => tracing::trace!(%errno, "the device dropped a frame"),
            Err(errno) => return Err(device_error("write to the TUN device", errno)),
        }
    }
}

/// Whether only this frame is lost: the device is down (`EIO`), the frame is malformed (`EINVAL`), or the kernel is
/// short of memory for it.
fn concerns_one_frame(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EIO
            | Errno::EINVAL
            | Errno::EMSGSIZE
            | Errno::EAGAIN
            | Errno::EINTR
            | Errno::ENOBUFS
            | Errno::ENOMEM
    )
}

/// The meaning of an error of the socketpair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Interrupted,
    /// The kernel was short of memory for this frame. The next may pass.
    FrameLost,
    HostGone,
    Fatal,
}

fn socket_trouble(errno: Errno) -> Trouble {
    if errno == Errno::EINTR {
        Trouble::Interrupted
    } else if matches!(errno, Errno::ENOBUFS | Errno::ENOMEM) {
        Trouble::FrameLost
    } else if matches!(errno, Errno::EPIPE | Errno::ECONNRESET) {
        Trouble::HostGone
    } else {
        Trouble::Fatal
    }
}

fn device_error(step: &'static str, errno: Errno) -> Error {
    let remedy = if errno == Errno::EBADFD { "leave the interface alone: it was deleted" } else { "" };
    Error::new(step, errno).with_remedy(remedy)
}

#[cfg(test)]
mod tests;
