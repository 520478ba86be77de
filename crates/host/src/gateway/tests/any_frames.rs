//! Random walks: whatever containers send, it is read, accounted for, bounded, and forgotten in the end.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use tokio::io::{AsyncReadExt, DuplexStream};

use super::frames::{self, CUT_PORT, EXTENDED_PORT, Frame};
use super::several::{MOVED, ON_QUEUE, Several, limits, react};
use super::*;
use crate::Statistics;
use crate::dialer::DialError;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// A container sends; by the number of its gateway.
    Send(usize, Vec<Frame>),
    /// The Dialer answers, and everybody gets a turn.
    Answer(Answer),
    /// Everybody gets a turn.
    Settle,
    /// A container reads no more, or reads again.
    Fill(usize, bool),
    /// The world reads what it was sent, and hangs up.
    HangUp,
    /// Time passes: seconds.
    Sleep(u64),
}

fn steps(isolation: Isolation) -> impl Strategy<Value = Vec<Step>> {
    let senders = Several::senders(isolation);
    let gateways = senders.len();
    let sending = senders.into_iter().enumerate();
    let sending = sending.map(|(number, sender)| {
        frames::frames(sender).prop_map(move |frames| Step::Send(number, frames)).boxed()
    });
    let sending = proptest::strategy::Union::new(sending);
    let answer = prop_oneof![
        5 => Just(Answer::Allow),
        1 => Just(Answer::Refuse(DialError::Refused)),
        1 => Just(Answer::Refuse(DialError::HostUnreachable)),
    ];
    let step = prop_oneof![
        12 => sending,
        6 => answer.prop_map(Step::Answer),
        4 => Just(Step::Settle),
        1 => (0..gateways, any::<bool>()).prop_map(|(number, is_full)| Step::Fill(number, is_full)),
        1 => Just(Step::HangUp),
        1 => prop::sample::select(vec![1, 40, 200]).prop_map(Step::Sleep),
    ];
    prop::collection::vec(step, 1..100)
}

/// What was reached in all walks.
#[derive(Default)]
struct Reached {
    statistics: Statistics,
    /// What the Dialer was asked.
    questions: Vec<String>,
    /// What came out of the streams.
    delivered: Vec<Vec<u8>>,
}

/// One walk.
struct Walk<'w> {
    worlds: &'w [World],
    sent: usize,
    delivered: Vec<Vec<u8>>,
}

impl Walk<'_> {
    async fn step(&mut self, step: Step) {
        match step {
            Step::Send(number, frames) => {
                self.sent += frames.len();
                frames.iter().for_each(|frame| self.worlds[number].bench.far.send(&frame.0));
            }
            Step::Answer(answer) => {
                self.worlds[0].bench.dialer.answer(answer);
                self.settle().await;
            }
            Step::Settle => self.settle().await,
            Step::Fill(number, is_full) => self.worlds[number].bench.far.set_full(is_full),
            Step::HangUp => self.hang_up().await,
            Step::Sleep(seconds) => {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                self.settle().await;
            }
        }
    }

    /// Lets gateways and kernels run, and checks what is bounded.
    async fn settle(&mut self) {
        settle().await;
        self.sent += react(self.worlds);
        settle().await;
        let limits = limits();
        let bound = |limit: usize, times: usize| u64::try_from(limit * times).unwrap();
        for world in self.worlds {
            let counters = &world.bench.context.counters;
            let of_container = |other: &&World| Arc::ptr_eq(&other.bench.context.counters, counters);
            let queues = self.worlds.iter().filter(of_container).count();
            let Statistics { tcp, udp, echo, between_containers, .. } = counters.read();
            assert!(tcp.active <= bound(limits.tcp_flows, queues));
            assert!(udp.active <= bound(limits.udp_peers, 1));
            assert!(echo.active <= bound(limits.udp_peers, 1));
            assert!(between_containers.active <= bound(limits.flows_between_containers, 2), "by family");
        }
    }

    async fn hang_up(&mut self) {
        self.settle().await;
        for stream in self.worlds[0].bench.dialer.streams() {
            self.delivered.push(read(stream).await);
        }
        self.settle().await;
    }

    /// Everybody reads again and time passes. Then every frame has been read, and what can end by itself has ended.
    async fn finish(&mut self) {
        for world in self.worlds {
            world.bench.far.set_full(false);
        }
        self.hang_up().await;
        tokio::time::sleep(Duration::from_secs(400)).await;
        self.settle().await;
        let read: u64 = statistics(self.worlds).iter().map(|one| one.packets_from_container).sum();
        assert_eq!(read, u64::try_from(self.sent).unwrap());
        for Statistics { tcp, udp, echo, .. } in statistics(self.worlds) {
            assert_eq!((tcp.active, udp.active, echo.active), (0, 0, 0), "everything ends by itself");
        }
    }
}

/// What a stream holds.
async fn read(mut stream: DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(1), stream.read_to_end(&mut bytes)).await;
    bytes
}

/// The counters of each container.
fn statistics(worlds: &[World]) -> Vec<Statistics> {
    // Those of the second gateway are those of the first, which serves the same container.
    let containers = worlds.iter().enumerate().filter(|(number, _)| *number != 1);
    containers.map(|(_, world)| world.bench.context.counters.read()).collect()
}

/// Takes random walks, each in a new network. Nothing is left of a network in the end.
fn walk(isolation: Isolation, make: impl Fn() -> Several) -> Reached {
    let reached = RefCell::new(Reached::default());
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) };
    // The same walks every time, and so the same counters; others with PROPTEST_RNG_SEED.
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    let walked = TestRunner::new(config).run(&steps(isolation), |steps| {
        let several = make();
        let traces = several.traces();
        let one = LocalSet::new().block_on(&runtime(), take(several, steps));
        for (context, gateway) in traces {
            assert_eq!((context.strong_count(), gateway.strong_count()), (0, 0), "all is freed");
        }
        reached.borrow_mut().add(one);
        Ok(())
    });
    walked.unwrap_or_else(|error| panic!("{error}"));
    reached.into_inner()
}

/// Takes one walk from its start to its end.
async fn take(mut several: Several, steps: Vec<Step>) -> Reached {
    let mut reached = Reached::default();
    let walk = async |worlds: &[World]| {
        let mut walk = Walk { worlds, sent: 0, delivered: Vec::new() };
        for step in steps {
            walk.step(step).await;
        }
        walk.finish().await;
        reached.delivered = walk.delivered;
    };
    several.serve(walk).await;
    for statistics in statistics(&several.worlds) {
        let Statistics { tcp, udp, echo, between_containers, .. } = statistics;
        let active = [tcp, udp, echo, between_containers].map(|flows| flows.active);
        assert_eq!(active, [0; 4], "nothing is active after the end");
        reached.statistics += statistics;
    }
    reached.questions.extend(several.worlds[0].bench.dialer.questions());
    reached
}

impl Reached {
    fn add(&mut self, one: Self) {
        self.statistics += one.statistics;
        self.questions.extend(one.questions);
        self.delivered.extend(one.delivered);
    }

    /// Fails if the walks have not been where every network has been.
    #[track_caller]
    fn assert_common(&self) {
        let Statistics { tcp, udp, echo, icmp, discarded, .. } = self.statistics;
        for (name, flows) in [("tcp", tcp), ("udp", udp), ("echo", echo)] {
            assert!(flows.opened > 0 && flows.refused > 0, "{name}: {flows:?}");
        }
        let discarded = [
            discarded.malformed,
            discarded.fragments,
            discarded.not_unicast,
            discarded.foreign_source,
            discarded.protocol,
            discarded.icmp_errors,
            discarded.hop_limit,
        ];
        assert!(!discarded.contains(&0), "{discarded:?}");
        assert!(icmp.errors > 0);
        assert!(self.delivered.iter().any(|bytes| bytes == ON_QUEUE), "data behind a SYN");
        for protocol in ["tcp", "udp"] {
            self.assert_asked(protocol, &format!("10.99.0.2:{CUT_PORT}"));
            self.assert_asked(protocol, &format!("[fd99::2]:{CUT_PORT}"));
            self.assert_asked(protocol, &format!("[fd99::2]:{EXTENDED_PORT}"));
        }
        self.assert_asked("icmp", "10.99.0.2:0");
        self.assert_asked("icmp", "[fd99::2]:0");
        self.assert_asked("udp", "10.0.2.3:53");
    }

    /// Fails unless the Dialer was asked about such a flow.
    #[track_caller]
    fn assert_asked(&self, protocol: &str, destination: &str) {
        let end = format!(" -> {destination}");
        let is_meant = |question: &String| question.starts_with(protocol) && question.ends_with(&end);
        assert!(self.questions.iter().any(is_meant), "{protocol} to {destination}");
    }
}

#[test]
fn any_frames_pass_the_whole_dispatch() {
    let reached = walk(Isolation::Isolated, Several::one);
    reached.assert_common();
    let Statistics { tcp, udp, echo, between_containers, .. } = reached.statistics;
    assert!(![tcp, udp, echo].map(|flows| flows.overflowed).contains(&0), "{tcp:?}, {udp:?}, {echo:?}");
    assert_eq!(between_containers, Default::default());
}

#[test]
fn any_frames_pass_queues_and_neighbours() {
    let reached = walk(Isolation::Open, Several::open);
    reached.assert_common();
    let Statistics { between_containers, discarded, .. } = reached.statistics;
    assert!(between_containers.opened > 0 && between_containers.refused > 0, "{between_containers:?}");
    assert!(between_containers.overflowed > 0, "{between_containers:?}");
    assert!(discarded.unsolicited > 0 && discarded.congested > 0, "{discarded:?}");
    for (protocol, port) in [("tcp", 80), ("udp", 80), ("udp", CUT_PORT), ("icmp", 0)] {
        reached.assert_asked(protocol, &format!("10.0.2.101:{port}"));
        reached.assert_asked(protocol, &format!("[fd00::101]:{port}"));
    }
    assert!(reached.delivered.iter().any(|bytes| bytes == MOVED), "a segment that went round the queues");
    let from_second = |protocol: &str| format!("{protocol} 10.0.2.100:500");
    for start in ["tcp", "udp", "icmp"].map(from_second) {
        assert!(reached.questions.iter().any(|question| question.starts_with(&start)), "{start}");
    }
}
