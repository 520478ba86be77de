use std::cell::RefCell;

use tokio::runtime::Builder;
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::*;

/// The names of the tasks, in the order of their turns.
#[derive(Clone, Default)]
struct Log(Rc<RefCell<String>>);

impl Log {
    /// Starts a task that moves this much in each of its turns.
    fn start(&self, place: Place, name: char, bytes: usize, turns: usize) {
        let log = self.clone();
        spawn_local(async move {
            for _ in 0..turns {
                log.work(&place, name, bytes).await;
            }
        });
    }

    /// Works once, and then lines up as a task does that has more work.
    async fn work(&self, place: &Place, name: char, bytes: usize) {
        std::future::poll_fn(|cx| {
            let mut turn = std::task::ready!(place.poll_turn(cx));
            turn.moved(bytes);
            self.0.borrow_mut().push(name);
            drop(turn);
            place.line_up(cx);
            std::task::Poll::Ready(())
        })
        .await;
    }

    fn read(&self) -> String {
        self.0.borrow().clone()
    }
}

fn run(test: impl AsyncFnOnce(Rc<Turns>, Log)) {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, test(Turns::new(), Log::default()));
}

/// Lets every ready task run.
async fn settle() {
    for _ in 0..1000 {
        yield_now().await;
    }
}

#[test]
fn a_task_works_at_once_while_nobody_waits() {
    run(async |turns, _| {
        let lane = turns.lane();
        let (one, other) = (lane.place(), lane.place());
        // No task gives turns here, so none of them waited.
        drop((one.turn().await, other.turn().await, lane.reader().turn().await));
        assert!(!turns.is_served.get());
    });
}

#[test]
fn tasks_that_always_wait_take_turns() {
    run(async |turns, log| {
        let lane = turns.lane();
        for name in ['a', 'b', 'c'] {
            log.start(lane.place(), name, LONG, 40);
        }
        settle().await;
        let order = log.read();
        assert_eq!(order.len(), 120);
        for window in order.as_bytes()[12..108].windows(6) {
            for name in b"abc" {
                assert_eq!(window.iter().filter(|other| *other == name).count(), 2, "{order}");
            }
        }
    });
}

#[test]
fn a_task_that_moves_little_is_next() {
    run(async |turns, log| {
        let lane = turns.lane();
        for _ in 0..10 {
            log.start(lane.place(), 'b', LONG, 100);
        }
        for _ in 0..100 {
            yield_now().await;
        }
        let place = lane.place();
        for _ in 0..5 {
            let before = log.read().len();
            log.work(&place, 's', 100).await;
            let since = log.read()[before..].to_string();
            // A turn may have been given already.
            assert!(since == "s" || since == "bs", "{since}");
        }
    });
}

#[test]
fn turns_are_short_while_tasks_that_move_little_are_about() {
    run(async |turns, _| {
        let lane = turns.lane();
        let (sparse, bulk) = (lane.place(), lane.place());
        let length = || turns.length(crate::task::clock::now());
        for _ in 0..3 {
            bulk.turn().await.moved(LONG);
            settle().await;
            assert_eq!(length(), LONG);
        }
        // A task that looks and finds nothing is none that moves.
        drop(sparse.turn().await);
        assert_eq!(length(), LONG);
        sparse.turn().await.moved(100);
        assert_eq!(length(), SHORT);
        tokio::time::advance(ATTENTION).await;
        assert_eq!(length(), LONG);
    });
}

#[test]
fn many_tasks_that_are_ready_together_do_not_all_work_at_once() {
    run(async |turns, log| {
        let lane = turns.lane();
        let places: Vec<_> = (0..20).map(|_| Rc::new(lane.place())).collect();
        // They have moved much before, one at a time.
        for place in &places {
            for _ in 0..8 {
                place.turn().await.moved(LONG);
                settle().await;
            }
        }
        for place in &places {
            let (place, log) = (Rc::clone(place), log.clone());
            spawn_local(async move {
                place.turn().await.moved(LONG);
                log.0.borrow_mut().push('b');
            });
        }
        yield_now().await;
        assert_eq!(log.read(), "b");
        settle().await;
        assert_eq!(log.read().len(), 20);
    });
}

#[test]
fn the_reader_has_every_second_turn() {
    run(async |turns, log| {
        let lane = turns.lane();
        for _ in 0..5 {
            log.start(lane.place(), 'b', LONG, 20);
        }
        log.start(lane.reader(), 'r', 0, 40);
        settle().await;
        let order = log.read();
        assert!(
            order[20..60].chars().collect::<Vec<_>>().windows(2).all(|pair| pair[0] != pair[1]),
            "{order}"
        );
    });
}

#[test]
fn a_container_with_many_tasks_has_no_more_turns() {
    run(async |turns, log| {
        let (many, few) = (turns.lane(), turns.lane());
        for _ in 0..20 {
            log.start(many.place(), 'm', LONG, 20);
        }
        log.start(few.place(), 'f', LONG, 40);
        settle().await;
        let order = log.read();
        let early = &order[20..60];
        let count = early.chars().filter(|name| *name == 'f').count();
        assert!((18..=22).contains(&count), "{order}");
    });
}

#[test]
fn a_task_that_ends_in_line_holds_nobody_up() {
    run(async |turns, log| {
        let lane = turns.lane();
        let place = lane.place();
        log.work(&place, 'x', LONG).await;
        // It waits now, and ends before or after its turn is given.
        for rounds in 0..4 {
            let other = lane.place();
            log.work(&other, 'y', LONG).await;
            for _ in 0..rounds {
                yield_now().await;
            }
            drop(other);
        }
        log.start(lane.place(), 'z', LONG, 3);
        drop(place);
        settle().await;
        assert!(log.read().ends_with("zzz"), "{}", log.read());
        assert!(!turns.is_given.get());
    });
}

#[test]
fn work_that_waits_does_not_keep_its_turn() {
    run(async |turns, log| {
        let lane = turns.lane();
        log.start(lane.place(), 'b', LONG, 10);
        let (place, (done, waits)) = (lane.place(), tokio::sync::oneshot::channel::<()>());
        let work = spawn_local(async move { place.begin(waits).await });
        settle().await;
        assert_eq!(log.read().len(), 10);
        done.send(()).unwrap();
        work.await.unwrap().unwrap();
    });
}
