//! Clearing up in pieces, so that the end of one container does not stall the others of its thread.

use tokio::sync::Mutex;

/// The connections of a container that are ended before other tasks get their turn. To end one takes up to 60 µs,
/// most of it in the kernel: an RST on each side, two sockets, and 1.25 MiB of address space.
pub(crate) const PIECE: usize = 16;

/// Whose turn it is to clear up. All containers of a thread that end at the same time share the turns.
#[derive(Default)]
pub(crate) struct Clearing(Mutex<()>);

impl Clearing {
    /// Does one piece of work when its turn has come. Returns once all other tasks, and events that have come
    /// meanwhile, had theirs.
    pub(crate) async fn piece<T>(&self, work: impl FnOnce() -> T) -> T {
        // Held until the others have run: the next container would otherwise follow at once.
        let _turn = self.0.lock().await;
        let result = work();
        tokio::task::yield_now().await;
        result
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn others_run_between_the_pieces_of_all_containers() {
        const CONTAINERS: usize = 10;
        const PIECES: usize = 20;
        LocalSet::new()
            .run_until(async {
                let clearing = Rc::<Clearing>::default();
                let since_other = Rc::<Cell<usize>>::default();
                let other = Rc::clone(&since_other);
                let other = tokio::task::spawn_local(async move {
                    loop {
                        other.set(0);
                        tokio::task::yield_now().await;
                    }
                });
                let containers = (0..CONTAINERS).map(|_| {
                    let (clearing, pieces) = (Rc::clone(&clearing), Rc::clone(&since_other));
                    tokio::task::spawn_local(async move {
                        for _ in 0..PIECES {
                            clearing
                                .piece(|| {
                                    pieces.set(pieces.get() + 1);
                                    assert!(pieces.get() <= 2, "pieces without a turn of others");
                                })
                                .await;
                        }
                    })
                });
                for container in containers.collect::<Vec<_>>() {
                    container.await.unwrap();
                }
                other.abort();
            })
            .await;
    }
}
