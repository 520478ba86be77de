//! Engine threads, on which networks run.
//!
//! The library starts its own threads, so the embedder needs no runtime and cannot stall a network by blocking its own.
//! A network takes a [`Seat`] on a thread, or several on different threads. A thread ends with its last seat.
//!
//! By default a thread serves one network, so that the kernel shares the cores fairly between networks. Networks that
//! are built with [`Threads::Shared`] share a pool, which never has more threads than the machine has cores. A new
//! thread starts only while there are fewer. After that, a network joins the thread with the fewest seats.
//!
//! A thread opens sockets and reads files for its networks. So only networks built in the same namespaces share one: a
//! thread is in the namespaces of the thread that started it.

pub(crate) mod closing;
pub(crate) mod commons;
pub(crate) mod turns;

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::io;
use std::iter;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::pin::Pin;
use std::process;
use std::rc::Rc;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nsnet_proto::NamespaceId;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::{mpsc, oneshot};

use crate::addressing::local::LocalRoutes;
use crate::threads::commons::Commons;

/// Which networks an engine thread serves; see [`NetworkBuilder::threads`](crate::NetworkBuilder::threads).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Threads {
    /// Only this one. The kernel shares the cores fairly between networks.
    #[default]
    Own,
    /// All networks of the process that are built so, in the same namespaces. Together they have no more threads than
    /// the machine has cores.
    Shared,
}

/// A network's place on an engine thread. The thread lives as long as any seat.
#[derive(Clone)]
pub(crate) struct Seat(Arc<EngineThread>);

struct EngineThread {
    /// Closed to end the thread.
    tasks: Option<mpsc::UnboundedSender<Task>>,
    handle: Option<thread::JoinHandle<()>>,
    /// Disconnects when the thread is past everything that could block it. The mutex makes this `Sync`.
    ended: Mutex<std::sync::mpsc::Receiver<()>>,
}

/// How long the owner of the last seat waits for the thread's end. The end is immediate, unless a Dialer blocks the
/// thread.
const JOIN: Duration = Duration::from_secs(1);

type Task = Box<dyn FnOnce(Rc<Commons>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The process and namespaces of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Home {
    /// A forked process has none of its parent's threads.
    process: u32,
    network: NamespaceId,
    mounts: NamespaceId,
    users: NamespaceId,
}

/// All shared threads of this process that may be running.
static THREADS: Mutex<Vec<(Home, Weak<EngineThread>)>> = Mutex::new(Vec::new());

/// The seats of one network, on different threads.
pub(crate) struct Seats {
    pub(crate) first: Seat,
    pub(crate) further: Vec<Seat>,
}

impl Seats {
    /// Takes as many seats as wanted, or as there are cores if these are fewer, but at least one.
    ///
    /// # Errors
    /// If the namespaces of the calling thread cannot be read, or if a new thread lacks resources, usually with
    /// `EMFILE`.
    pub(crate) fn take(threads: Threads, wanted: usize) -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let wanted = wanted.clamp(1, cores);
        match threads {
            Threads::Own => Self::start(wanted),
            Threads::Shared => Self::share(wanted, cores),
        }
    }

    /// Seats on new threads, of which there may be fewer than wanted.
    fn start(wanted: usize) -> io::Result<Self> {
        let first = Seat::start()?;
        let further = iter::repeat_with(Seat::start).map_while(Result::ok).take(wanted - 1).collect();
        Ok(Self { first, further })
    }

    /// Seats in the pool of this process and these namespaces. New threads come first, then those with the fewest
    /// networks.
    fn share(wanted: usize, cores: usize) -> io::Result<Self> {
        let home = Home {
            process: process::id(),
            network: own_namespace("net")?,
            mounts: own_namespace("mnt")?,
            users: own_namespace("user")?,
        };
        let mut threads = THREADS.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|(_, thread)| thread.strong_count() > 0);
        let mut pool: Vec<_> = threads
            .iter()
            .filter(|(other, _)| *other == home)
            .filter_map(|(_, thread)| thread.upgrade())
            .collect();
        pool.sort_by_key(Arc::strong_count);
        let mut seats = Vec::with_capacity(wanted);
        for _ in 0..wanted.min(cores.saturating_sub(pool.len())) {
            let seat = match Seat::start() {
                Ok(seat) => seat,
                // For example, file descriptors have run out. A running thread can take one more network.
                Err(_) if !pool.is_empty() || !seats.is_empty() => break,
                Err(error) => return Err(error),
            };
            threads.push((home, Arc::downgrade(&seat.0)));
            seats.push(seat);
        }
        let missing = wanted - seats.len();
        seats.extend(pool.into_iter().map(Seat).take(missing));
        let first = seats.remove(0);
        Ok(Self { first, further: seats })
    }
}

impl Seat {
    /// A seat on a new thread.
    fn start() -> io::Result<Self> {
        EngineThread::start().map(|thread| Self(Arc::new(thread)))
    }

    /// Runs a task on the thread. It ends with the thread at the latest. So it must keep a seat, or a holder of a seat
    /// must wait for it.
    pub(crate) fn run<F>(&self, task: impl FnOnce(Rc<Commons>) -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        // The thread exists as long as the seat.
        let task: Task = Box::new(|commons| Box::pin(task(commons)));
        let _ = self.0.tasks.as_ref().map(|tasks| tasks.send(task));
    }

    /// Resolves when the thread has had time for one more task.
    pub(crate) fn sign_of_life(&self) -> oneshot::Receiver<()> {
        let (alive, sign) = oneshot::channel();
        self.run(|_| async {
            // Nobody need wait for it.
            let _ = alive.send(());
        });
        sign
    }
}

impl EngineThread {
    fn start() -> io::Result<Self> {
        let routes = LocalRoutes::new()?;
        let (tasks, incoming) = mpsc::unbounded_channel();
        let (started, outcome) = std::sync::mpsc::channel();
        let (alive, ended) = std::sync::mpsc::channel();
        let handle = thread::Builder::new().name("nsnet".into()).spawn(move || {
            let _alive: std::sync::mpsc::Sender<()> = alive;
            IS_ENGINE_THREAD.set(true);
            let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let prepared = runtime.and_then(|runtime| Ok((runtime, Commons::new(routes)?)));
            match prepared {
                Ok((runtime, commons)) => {
                    let _ = started.send(Ok(()));
                    serve(runtime, commons, incoming);
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        outcome.recv().map_err(io::Error::other)??;
        Ok(Self { tasks: Some(tasks), handle: Some(handle), ended: Mutex::new(ended) })
    }
}

impl Drop for EngineThread {
    /// Waits for the thread, so that an embedder without a network has no engine thread either.
    fn drop(&mut self) {
        self.tasks = None;
        if is_engine_thread() {
            return;
        }
        let ended = self.ended.get_mut().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(JOIN) == Err(RecvTimeoutError::Disconnected)
            && let Some(handle) = self.handle.take()
        {
            // The panic hook has reported its panics.
            let _ = handle.join();
        }
    }
}

thread_local! {
    static IS_ENGINE_THREAD: Cell<bool> = const { Cell::new(false) };
}

/// Whether the caller is on an engine thread, where Dialers run. Such a thread waits for no network. It might be the
/// network's own, and waiting would stall the others that it serves.
pub(crate) fn is_engine_thread() -> bool {
    IS_ENGINE_THREAD.get()
}

/// Runs tasks until the last seat is gone.
fn serve(runtime: LocalRuntime, commons: Commons, mut tasks: mpsc::UnboundedReceiver<Task>) {
    let commons = Rc::new(commons);
    runtime.block_on(async {
        tokio::task::spawn_local(Rc::clone(&commons).give_memory_back());
        while let Some(task) = tasks.recv().await {
            tokio::task::spawn_local(task(Rc::clone(&commons)));
        }
    });
    // A Dialer may have blocking work under way, such as name look-ups. Nobody waits for the result.
    commons.turns().clear();
    runtime.shutdown_background();
}

/// The namespace of this kind that the calling thread is in (namespaces(7)).
///
/// # Errors
/// If /proc cannot be read.
pub(crate) fn own_namespace(kind: &str) -> io::Result<NamespaceId> {
    let metadata = fs::metadata(format!("/proc/thread-self/ns/{kind}"))?;
    Ok(NamespaceId { device: metadata.dev(), inode: metadata.ino() })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread::ThreadId;

    use super::*;

    fn id(seat: &Seat) -> ThreadId {
        seat.0.handle.as_ref().unwrap().thread().id()
    }

    fn ids(seats: &[Seats]) -> HashSet<ThreadId> {
        seats.iter().flat_map(|Seats { first, further }| further.iter().chain([first])).map(id).collect()
    }

    #[test]
    fn a_network_has_threads_of_its_own_unless_told_otherwise() {
        let cores = thread::available_parallelism().unwrap().get();
        let count = 4 * cores;
        let own: Vec<Seats> = (0..count).map(|_| Seats::take(Threads::default(), 1).unwrap()).collect();
        let shared: Vec<Seats> = (0..count).map(|_| Seats::take(Threads::Shared, 1).unwrap()).collect();
        let (own, shared) = (ids(&own), ids(&shared));
        assert_eq!(own.len(), count);
        assert!(shared.len() <= cores, "{shared:?}");
        assert!(own.is_disjoint(&shared));
    }

    #[test]
    fn several_seats_are_on_different_threads() {
        let cores = thread::available_parallelism().unwrap().get();
        for threads in [Threads::Own, Threads::Shared] {
            for wanted in [0, 1, 2, cores, cores + 1, usize::MAX] {
                let taken = [(); 2].map(|()| Seats::take(threads, wanted).unwrap());
                for seats in taken.each_ref() {
                    let ids = ids(std::slice::from_ref(seats));
                    assert_eq!(ids.len(), 1 + seats.further.len());
                    assert_eq!(ids.len(), wanted.clamp(1, cores));
                }
                if threads == Threads::Own {
                    assert_eq!(ids(&taken).len(), 2 * wanted.clamp(1, cores));
                }
            }
        }
    }

    #[test]
    fn a_task_runs_on_the_thread_of_its_seat() {
        let (done, result) = std::sync::mpsc::channel();
        let seat = Seats::take(Threads::Own, 1).unwrap().first;
        assert!(!is_engine_thread());
        seat.run(move |_| async move { done.send((thread::current().id(), is_engine_thread())).unwrap() });
        assert_eq!(result.recv().unwrap(), (id(&seat), true));
    }
}
