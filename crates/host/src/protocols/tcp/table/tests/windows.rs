//! A container that is told to wait, and goes on as soon as there is room.

use super::*;

/// Less than a retransmission timeout of either end, which is at least a second.
const WITHOUT_TIMEOUT: Duration = Duration::from_millis(900);

const LENGTH: usize = 100_000;

/// A world in which rings have nothing but their shares.
fn without_memory() -> World {
    World::with(Limits { ring_memory: 0, ..Limits::default() })
}

/// Reads what the container sends until `length` bytes have come, and fails if it takes a timeout.
async fn read_all(client: &mut Container<'_>, stream: &mut DuplexStream, length: usize) {
    let clock = &client.world.bench.context.clock;
    let began = clock.now();
    let mut buffer = vec![0; LENGTH];
    let mut arrived = 0;
    while arrived < length {
        settle().await;
        client.exchange();
        // The timers are those of the paused clock: the shortest, of 10 ms, delays an acknowledgment.
        let read = tokio::time::timeout(Duration::from_millis(10), stream.read(&mut buffer)).await;
        let Ok(read) = read.map(Result::unwrap) else { continue };
        assert!(buffer[..read].iter().all(|byte| *byte == 7));
        arrived += read;
    }
    assert_eq!(arrived, length);
    let elapsed = clock.now() - began;
    assert!(elapsed < WITHOUT_TIMEOUT, "{elapsed:?}");
}

/// Fills all that lies between the container and a stream that is not read. Returns how many bytes the container has
/// queued.
async fn stalled(client: &mut Container<'_>) -> usize {
    let mut queued = 0;
    for _ in 0..20 {
        queued += client.client.socket().send_slice(&[7; LENGTH]).unwrap();
        settle().await;
        client.exchange();
    }
    queued
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stalls_and_resumes_waits_for_no_timeout() {
    locally(async || {
        let world = without_memory();
        let (mut client, mut stream) = world.connected().await;
        let queued = stalled(&mut client).await;
        assert!(client.client.socket().send_queue() > 0, "the window is shut");
        read_all(&mut client, &mut stream, queued).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_window_that_opens_while_the_link_is_full_is_told_later() {
    locally(async || {
        let world = without_memory();
        let (mut client, mut stream) = world.connected().await;
        let queued = stalled(&mut client).await;
        let waiting = queued - client.client.socket().send_queue();
        world.bench.far.set_full(true);
        let mut buffer = vec![0; waiting];
        stream.read_exact(&mut buffer).await.unwrap();
        settle().await;
        assert!(world.bench.received().is_empty());
        world.bench.far.set_full(false);
        read_all(&mut client, &mut stream, queued - waiting).await;
    })
    .await;
}
