//! The table of allowed flows, with a clock of its own.

use std::rc::Rc;

use super::progress::{ECHO, TCP_ESTABLISHED, TCP_TRANSITORY};
use super::*;
use crate::flow::Endpoints;

const FLOWS: usize = 16_384;
const IDLE: Duration = Duration::from_secs(180);

/// A table, and a clock that the test sets.
struct Bench {
    flows: Flows<Rc<()>>,
    /// Held by every flow that is active.
    active: Rc<()>,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { flows: Flows::new(FLOWS, IDLE), active: Rc::default(), now: start() }
    }

    #[track_caller]
    fn allowed(&mut self, (tuple, from): (Tuple, End)) -> u64 {
        let id = self.asked((tuple, from));
        self.flows.allow(self.now, &tuple, id);
        id
    }

    #[track_caller]
    fn asked(&mut self, (tuple, from): (Tuple, End)) -> u64 {
        self.begin((tuple, from)).unwrap()
    }

    fn begin(&mut self, (tuple, from): (Tuple, End)) -> Option<u64> {
        self.flows.begin(self.now, tuple, from, tuple.ends.source.ip(), || Rc::clone(&self.active))
    }

    /// Flows that are counted as active.
    fn active(&self) -> usize {
        Rc::strong_count(&self.active) - 1
    }

    fn is_allowed(&self, tuple: &Tuple) -> bool {
        self.flows.is_allowed(self.now, tuple)
    }

    fn judge(&mut self, (tuple, from): (Tuple, End), signal: Signal) -> Verdict {
        self.flows.judge(self.now, &tuple, from, signal)
    }
}

fn flow(protocol: Protocol, source: &str, destination: &str) -> (Tuple, End) {
    let ends = Endpoints { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
    Tuple::of_ports(protocol, ends)
}

fn there(protocol: Protocol) -> (Tuple, End) {
    flow(protocol, "10.0.2.100:4000", "10.0.2.101:80")
}

fn back(protocol: Protocol) -> (Tuple, End) {
    flow(protocol, "10.0.2.101:80", "10.0.2.100:4000")
}

fn held(length: usize) -> Held {
    Held { header: vnet::Header::default(), packet: vec![0; length].into(), form: Form::Whole }
}

#[test]
fn both_directions_are_one_flow() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        assert_eq!(there(protocol).0, back(protocol).0);
        assert_ne!(there(protocol).1, back(protocol).1);
        let mut bench = Bench::new();
        assert_eq!(bench.judge(there(protocol), Signal::Open), Verdict::Unknown);
        bench.allowed(there(protocol));
        assert_eq!(bench.judge(there(protocol), Signal::Other), Verdict::Pass);
        assert_eq!(bench.judge(back(protocol), Signal::Other), Verdict::Pass);
    }
    assert_ne!(there(Protocol::Tcp).0, there(Protocol::Udp).0);
}

#[test]
fn echo_is_allowed_to_who_asks_only() {
    let (a, b) = ("10.0.2.100".parse().unwrap(), "10.0.2.101".parse().unwrap());
    assert_ne!(Tuple::of_echo(a, b, 7), Tuple::of_echo(b, a, 7));
}

#[test]
fn packets_wait_for_the_decision() {
    let mut bench = Bench::new();
    let (tuple, _) = there(Protocol::Udp);
    let id = bench.asked(there(Protocol::Udp));
    for length in [1, 2] {
        assert_eq!(bench.judge(there(Protocol::Udp), Signal::Other), Verdict::Wait);
        bench.flows.hold(&tuple, held(length));
    }
    assert_eq!(bench.judge(back(Protocol::Udp), Signal::Other), Verdict::Drop);
    let lengths: Vec<_> =
        bench.flows.allow(bench.now, &tuple, id).iter().map(|held| held.packet.len()).collect();
    assert_eq!(lengths, [1, 2]);
    assert!(bench.flows.withdraw(&tuple, id).is_empty(), "it is allowed");
    assert!(bench.is_allowed(&tuple));
}

#[test]
fn of_tcp_the_last_syn_is_held() {
    let mut bench = Bench::new();
    let (tuple, _) = there(Protocol::Tcp);
    let id = bench.asked(there(Protocol::Tcp));
    bench.flows.hold(&tuple, held(40));
    bench.flows.hold(&tuple, held(44));
    let held = bench.flows.withdraw(&tuple, id);
    assert_eq!(held.iter().map(|held| held.packet.len()).collect::<Vec<_>>(), [44]);
    assert_eq!(bench.judge(there(Protocol::Tcp), Signal::Open), Verdict::Unknown);
    assert_eq!(bench.active(), 0);
    assert!(bench.flows.usage.is_empty());
}

#[test]
fn what_is_held_is_bounded() {
    let mut bench = Bench::new();
    let (tuple, _) = there(Protocol::Udp);
    let id = bench.asked(there(Protocol::Udp));
    for _ in 0..100 {
        bench.flows.hold(&tuple, held(60_000));
    }
    assert_eq!(bench.flows.allow(bench.now, &tuple, id).len(), HELD_BYTES / 60_000);
    let other = flow(Protocol::Udp, "10.0.2.100:4001", "10.0.2.101:80");
    let id = bench.asked(other);
    for _ in 0..100 {
        bench.flows.hold(&other.0, held(1));
    }
    assert_eq!(bench.flows.allow(bench.now, &other.0, id).len(), HELD);
}

#[test]
fn a_reset_while_it_is_decided_takes_the_syn_back() {
    let mut bench = Bench::new();
    let (tuple, _) = there(Protocol::Tcp);
    let id = bench.asked(there(Protocol::Tcp));
    bench.flows.hold(&tuple, held(40));
    assert_eq!(bench.judge(there(Protocol::Tcp), Signal::Reset), Verdict::Drop);
    assert!(bench.flows.allow(bench.now, &tuple, id).is_empty());
    assert_eq!(bench.judge(there(Protocol::Tcp), Signal::Other), Verdict::Unknown);
}

#[test]
fn a_connection_that_is_over_is_asked_about_again() {
    for (first, second) in [
        ((there(Protocol::Tcp), Signal::Reset), None),
        ((back(Protocol::Tcp), Signal::Reset), None),
        ((there(Protocol::Tcp), Signal::Finish), Some((back(Protocol::Tcp), Signal::Finish))),
    ] {
        let mut bench = Bench::new();
        bench.allowed(there(Protocol::Tcp));
        for (packet, signal) in std::iter::once(first).chain(second) {
            assert_eq!(bench.active(), 1);
            assert_eq!(bench.judge(packet, signal), Verdict::Pass);
        }
        assert_eq!(bench.active(), 0);
        assert_eq!(bench.judge(back(Protocol::Tcp), Signal::Other), Verdict::Pass, "the last acknowledgment");
        assert_eq!(bench.judge(there(Protocol::Tcp), Signal::Open), Verdict::Unknown);
        bench.allowed(there(Protocol::Tcp));
        assert_eq!(bench.active(), 1, "the end of the first is counted once");
    }
}

#[test]
fn the_other_side_opens_nothing_with_the_openers_permission() {
    let mut bench = Bench::new();
    bench.allowed(there(Protocol::Tcp));
    assert_eq!(bench.judge(back(Protocol::Tcp), Signal::Open), Verdict::Drop);
    assert_eq!(bench.judge(there(Protocol::Tcp), Signal::Open), Verdict::Pass, "the opener's SYN again");
}

#[test]
fn silence_ends_a_flow() {
    let second = Duration::from_secs(1);
    for (protocol, answered, lifetime) in [
        (Protocol::Tcp, false, TCP_TRANSITORY),
        (Protocol::Tcp, true, TCP_ESTABLISHED),
        (Protocol::Udp, true, IDLE),
        (Protocol::Icmp, true, ECHO),
    ] {
        let mut bench = Bench::new();
        bench.allowed(there(protocol));
        let last = if answered { back(protocol) } else { there(protocol) };
        assert_eq!(bench.judge(last, Signal::Other), Verdict::Pass);
        bench.now += lifetime - second;
        assert_eq!(bench.judge(last, Signal::Other), Verdict::Pass);
        bench.now += lifetime;
        assert_eq!(bench.judge(last, Signal::Other), Verdict::Unknown, "{protocol}");
        assert_eq!(bench.active(), 0);
    }
}

#[test]
fn an_address_takes_its_flows_along() {
    let mut bench = Bench::new();
    bench.allowed(there(Protocol::Tcp));
    let id = bench.asked(there(Protocol::Udp));
    bench.allowed(flow(Protocol::Tcp, "10.0.2.100:4000", "10.0.2.102:80"));
    let address = "10.0.2.101".parse().unwrap();
    let pieces = [(); 3].map(|()| bench.flows.forget_some(address, 1).then(|| bench.active()));
    assert_eq!(pieces, [Some(2), Some(1), None]);
    assert_eq!(bench.judge(there(Protocol::Tcp), Signal::Other), Verdict::Unknown);
    // A decision that comes later allows nothing to who has the address by then.
    bench.flows.allow(bench.now, &there(Protocol::Udp).0, id);
    assert!(!bench.is_allowed(&there(Protocol::Udp).0));
    assert_eq!(bench.flows.flows.len(), 1);
    assert_eq!(bench.flows.by_address.len(), 2);
}

#[test]
fn a_decision_is_about_the_use_of_the_tuple_it_was_asked_for() {
    let mut bench = Bench::new();
    let (tuple, _) = there(Protocol::Tcp);
    let first = bench.asked(there(Protocol::Tcp));
    bench.judge(there(Protocol::Tcp), Signal::Reset);
    let second = bench.asked(there(Protocol::Tcp));
    bench.flows.allow(bench.now, &tuple, first);
    assert!(!bench.is_allowed(&tuple));
    bench.flows.allow(bench.now, &tuple, second);
    assert!(bench.is_allowed(&tuple));
}

#[test]
fn whoever_opens_too_many_loses_the_idle_ones_and_nobody_elses() {
    let mut bench = Bench::new();
    let numbered =
        |protocol, number: usize| flow(protocol, &format!("10.0.2.100:{}", 1 + number), "10.0.2.101:53");
    let others = flow(Protocol::Udp, "10.0.2.102:1", "10.0.2.101:53");
    bench.allowed(others);
    let established = numbered(Protocol::Tcp, 0);
    bench.allowed(established);
    let (tuple, _) = established;
    assert_eq!(bench.flows.judge(bench.now, &tuple, End::Second, Signal::Other), Verdict::Pass);
    for number in 1..FLOWS {
        bench.now += Duration::from_millis(1);
        bench.allowed(numbered(Protocol::Udp, number));
    }
    assert_eq!(bench.flows.flows.len(), FLOWS + 1);
    bench.allowed(numbered(Protocol::Udp, FLOWS));
    assert_eq!(bench.flows.flows.len(), FLOWS + 2 - FLOWS / 16);
    for kept in [others, established, numbered(Protocol::Udp, FLOWS / 16 + 1)] {
        assert!(bench.is_allowed(&kept.0));
    }
    assert!(!bench.is_allowed(&numbered(Protocol::Udp, FLOWS / 16).0));
}

#[test]
fn established_connections_make_no_room() {
    let mut bench = Bench::new();
    for number in 0..FLOWS {
        let (tuple, from) = flow(Protocol::Tcp, &format!("10.0.2.100:{}", 1 + number), "10.0.2.101:80");
        bench.allowed((tuple, from));
        let other = if from == End::First { End::Second } else { End::First };
        bench.judge((tuple, other), Signal::Other);
    }
    let (tuple, from) = there(Protocol::Udp);
    let mut begins_after = |silence| {
        bench.now += silence;
        bench.begin((tuple, from)).is_some()
    };
    assert!(!begins_after(Duration::ZERO));
    assert!(!begins_after(SEARCH_INTERVAL));
    // One ends. That is noticed at the next search, however often a flow is wanted before.
    let (over, from) = flow(Protocol::Tcp, "10.0.2.100:1", "10.0.2.101:80");
    bench.flows.judge(bench.now, &over, from, Signal::Reset);
    let (tuple, from) = there(Protocol::Udp);
    let mut begins_after = |silence| {
        bench.now += silence;
        bench.begin((tuple, from)).is_some()
    };
    assert!(!begins_after(SEARCH_INTERVAL / 2));
    assert!(begins_after(SEARCH_INTERVAL / 2));
    assert!(!bench.is_allowed(&over));
}

#[test]
fn errors_about_a_flow_pass_as_long_as_it_does() {
    let mut bench = Bench::new();
    let (tuple, _) = there(Protocol::Udp);
    bench.allowed(there(Protocol::Udp));
    bench.now += IDLE - Duration::from_millis(1);
    assert!(bench.is_allowed(&tuple));
    bench.now += Duration::from_millis(1);
    assert!(!bench.is_allowed(&tuple));
}

#[test]
fn the_table_is_tidied_as_it_grows() {
    let mut bench = Bench::new();
    for number in 0..10_000 {
        bench.now += Duration::from_secs(1);
        bench.allowed(flow(Protocol::Udp, &format!("10.0.2.100:{}", 1 + number), "10.0.2.101:53"));
        assert!(bench.flows.flows.len() <= 2 * FEW);
    }
    assert_eq!(bench.active(), bench.flows.flows.len());
    assert_eq!(bench.flows.by_address.len(), 2 * bench.flows.flows.len());
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin")]
fn start() -> Instant {
    Instant::now()
}
