//! The counters of a network: one set for each container, and one for traffic that belongs to none.
//!
//! Code that counts for a container holds its [`Counters`] and writes only to them, so nothing is counted twice. The
//! network's statistics are sums. When nobody holds a container's counters any more, their values are final and are
//! added to a total. So a network that has served many containers does not keep each one's counters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Counters, Statistics};

/// The smallest number of open counters at which settling is worth while.
const FEW: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    own: Arc<Counters>,
    containers: Mutex<Containers>,
}

#[derive(Debug, Default)]
struct Containers {
    /// Counters that may still change.
    open: Vec<Arc<Counters>>,
    /// The sum of all settled counters.
    settled: Statistics,
    /// The number of open counters at which those no longer in use are settled.
    settle_at: usize,
}

impl Ledger {
    /// Counters for traffic of no container, such as a client of a published port that leads to none.
    pub(crate) fn own(&self) -> &Arc<Counters> {
        &self.own
    }

    /// Counters for one more container.
    pub(crate) fn open(&self) -> Arc<Counters> {
        let mut containers = self.containers();
        if containers.open.len() >= containers.settle_at {
            containers.settle();
            containers.settle_at = FEW.max(2 * containers.open.len());
        }
        let counters = Arc::default();
        containers.open.push(Arc::clone(&counters));
        counters
    }

    /// The sum over all containers so far, ended ones included.
    pub(crate) fn read(&self) -> Statistics {
        let mut containers = self.containers();
        containers.settle();
        let mut sum = self.own.read();
        sum += containers.settled;
        containers.open.iter().for_each(|counters| sum += counters.read());
        sum
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Containers {
    /// Adds counters that nobody else holds to the total.
    fn settle(&mut self) {
        let Self { open, settled, .. } = self;
        open.retain_mut(|counters| match Arc::get_mut(counters) {
            Some(counters) => {
                *settled += counters.read();
                false
            }
            None => true,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiscardStatistics, FlowStatistics, IcmpStatistics};
    use super::*;
    use nsnet_stack::discard::Discard;

    #[test]
    fn a_container_counts_for_itself_and_the_network_adds_up() {
        let ledger = Ledger::default();
        let (first, second) = (ledger.open(), ledger.open());
        first.tcp.opened();
        first.from_container.add(40);
        second.tcp.opened();
        second.discarded(Discard::Malformed);
        ledger.own().published.refused();
        assert_eq!((first.read().tcp.opened, first.read().discarded.malformed), (1, 0));
        let sum = ledger.read();
        assert_eq!((sum.tcp.opened, sum.tcp.active, sum.bytes_from_container), (2, 2, 40));
        assert_eq!((sum.discarded.malformed, sum.published.refused), (1, 1));
    }

    #[test]
    fn containers_that_are_gone_stay_in_the_sum_and_leave_the_list() {
        let ledger = Ledger::default();
        for _ in 0..1000 {
            let counters = ledger.open();
            counters.tcp.opened();
            counters.tcp.closed();
        }
        let last = ledger.open();
        last.tcp.opened();
        assert!(ledger.containers().open.len() <= FEW + 1);
        let sum = ledger.read().tcp;
        assert_eq!((sum.opened, sum.active), (1001, 1));
        assert_eq!(ledger.containers().open.len(), 1);
        assert_eq!(ledger.read().tcp, sum);
    }

    #[test]
    fn every_counter_is_added_up() {
        let flows = |from: u64| FlowStatistics {
            opened: from,
            active: from + 1,
            refused: from + 2,
            overflowed: from + 3,
        };
        let one = Statistics {
            packets_from_container: 1,
            bytes_from_container: 2,
            packets_to_container: 3,
            bytes_to_container: 4,
            tcp: flows(5),
            udp: flows(9),
            echo: flows(13),
            published: flows(17),
            between_containers: flows(21),
            icmp: IcmpStatistics { errors: 25, suppressed: 26 },
            discarded: DiscardStatistics {
                malformed: 27,
                fragments: 28,
                not_unicast: 29,
                foreign_source: 30,
                protocol: 31,
                icmp_errors: 32,
                hop_limit: 33,
                overrun: 34,
                unsolicited: 35,
                congested: 36,
            },
        };
        let mut sum = one;
        sum += one;
        let numbers_in = |text: String| -> Vec<u64> {
            let numbers = text.split(|character: char| !character.is_ascii_digit());
            numbers.filter_map(|number| number.parse().ok()).collect()
        };
        let (ones, sums) = (numbers_in(format!("{one:?}")), numbers_in(format!("{sum:?}")));
        assert_eq!(ones.iter().map(|one| 2 * one).collect::<Vec<_>>(), sums);
        assert_eq!(ones.len(), 36);
    }
}
