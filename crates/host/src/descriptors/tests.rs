use proptest::prelude::*;

use super::share::GUARANTEED;
use super::*;

/// Takes permits until one is refused.
fn greedy(share: &Arc<ContainerShare>) -> Vec<Permit> {
    std::iter::from_fn(|| share.take()).collect()
}

/// The budgets of a process with `ulimit -n` of 256, of 1024 and of 65 536, roughly.
const CAPACITIES: [usize; 3] = [180, 850, 64_000];

#[test]
fn one_container_alone_may_use_most() {
    for capacity in CAPACITIES {
        let budget = Budget::of(capacity);
        let share = NetworkShare::new(budget).container(2);
        let permits = greedy(&share).len();
        assert!(permits >= capacity * 4 / 5 && permits < capacity * 9 / 10, "{permits} of {capacity}");
    }
}

#[test]
fn a_modest_one_finds_room_beside_the_greedy() {
    for capacity in CAPACITIES {
        let budget = Budget::of(capacity);
        let [network, other] = [(); 2].map(|()| NetworkShare::new(budget));
        let (first, neighbour, stranger) = (network.container(2), network.container(2), other.container(2));
        let _held = greedy(&first);
        let neighbour = greedy(&neighbour).len();
        assert!(neighbour >= GUARANTEED + capacity / 60, "{neighbour} of {capacity}");
        let stranger = greedy(&stranger).len();
        assert!(stranger >= GUARANTEED + capacity / 15, "{stranger} of {capacity}");
        for network in [&network, &other] {
            let late = greedy(&network.container(2)).len();
            assert!(late >= GUARANTEED, "{late} of {capacity}");
        }
    }
}

#[test]
fn ten_greedy_ones_leave_room_for_another_network() {
    for capacity in CAPACITIES {
        let budget = Budget::of(capacity);
        let (crowd, other) = (NetworkShare::new(budget), NetworkShare::new(budget));
        let other_share = other.container(2);
        let shares: Vec<_> = (0..10).map(|_| crowd.container(2)).collect();
        let _held: Vec<_> = shares.iter().map(greedy).collect();
        let before = greedy(&other_share);
        assert!(before.len() > GUARANTEED + capacity / 50, "{} of {capacity}", before.len());
        drop(before);
        let late = greedy(&other.container(2)).len();
        assert!(late > capacity / 50, "{late} of {capacity}");
    }
}

#[test]
fn an_attached_container_is_counted_even_if_nothing_is_left() {
    let budget = Budget::of(10);
    let network = NetworkShare::new(budget);
    let containers: Vec<_> = (0..20).map(|_| network.container(2)).collect();
    assert_eq!((budget.taken().0, budget.free()), (40, 0));
    assert!(containers.iter().skip(5).all(|share| share.take().is_none()));
    drop(containers);
    assert_eq!(budget.taken(), (0, 0));
}

#[test]
fn the_embedders_own_are_left_to_it() {
    let budget = Budget::of(0);
    assert!(budget.set(Census { limit: 256, open: 56 }, None));
    assert_eq!(budget.capacity(), 175);
    assert!(budget.set(Census { limit: 256, open: 56 }, Some(100)));
    assert_eq!(budget.capacity(), 100);
    // Refused, and the others go on as before.
    assert!(!budget.set(Census { limit: 256, open: 56 }, Some(200)));
    assert_eq!(budget.capacity(), 100);
    assert!(budget.set(Census { limit: 1 << 20, open: 56 }, None));
    assert_eq!(budget.capacity(), (1 << 20) - 56 - RESERVE);
}

#[test]
fn a_later_census_tells_flows_from_the_embedders_own() {
    let budget = Budget::of(0);
    assert!(budget.set(Census { limit: 1000, open: 200 }, Some(0)));
    let network = NetworkShare::new(budget);
    let flows = network.charge(300);
    assert!(budget.set(Census { limit: 1000, open: 500 }, Some(0)));
    assert_eq!(budget.capacity(), 800);
    // The flows have no descriptors of their own.
    assert!(budget.set(Census { limit: 1000, open: 210 }, Some(0)));
    assert_eq!(budget.capacity(), 800);
    assert!(budget.set(Census { limit: 1000, open: 600 }, Some(0)));
    assert_eq!(budget.capacity(), 700);
    drop(flows);
    assert!(budget.set(Census { limit: 1000, open: 100 }, Some(0)));
    assert_eq!(budget.capacity(), 900);
}

#[test]
fn a_limit_that_is_raised_is_noticed() {
    let budget = Budget::with(100, || Ok(1000));
    let permits = greedy(&NetworkShare::new(budget).container(2));
    assert!(permits.len() > 800, "{}", permits.len());
}

#[test]
fn the_census_of_this_process_is_plausible() {
    let before = Census::take().unwrap();
    let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    let after = Census::take().unwrap();
    // Other tests open and close descriptors meanwhile.
    assert!(
        before.open > 2 && after.open >= files.len() && after.open <= after.limit,
        "{before:?} {after:?}"
    );
}

/// Containers in networks that all want more than there is. In every round each gives some permits back, and takes what
/// it can get.
fn settle(capacity: usize, networks: &[usize]) -> Vec<Vec<usize>> {
    let budget = Budget::of(capacity);
    let networks = networks.iter().map(|containers| {
        let network = NetworkShare::new(budget);
        (0..*containers).map(|_| (network.container(2), Vec::new())).collect::<Vec<_>>()
    });
    let mut networks: Vec<_> = networks.collect();
    for _ in 0..200 {
        for (share, held) in networks.iter_mut().flatten() {
            held.truncate(held.len() - held.len() / 4);
            held.extend(greedy(share));
        }
    }
    networks.iter().map(|network| network.iter().map(|(_, held)| held.len()).collect()).collect()
}

#[test]
fn the_greedy_come_to_equal_shares() {
    for capacity in [850, 64_000] {
        for networks in [&[5][..], &[1, 1, 1], &[4, 4]] {
            let shares = settle(capacity, networks);
            let shares: Vec<usize> = shares.into_iter().flatten().collect();
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(*most * 10 <= *least * 15, "{shares:?} of {capacity}");
        }
        // Networks are equal, however many containers they have.
        let networks = settle(capacity, &[1, 4]);
        let [one, four] = [0, 1].map(|network| networks[network].iter().sum::<usize>());
        assert!(one * 2 >= four && four * 2 >= one, "{networks:?} of {capacity}");
    }
}

proptest! {
    /// Any containers of any networks take and give back in any order.
    #[test]
    fn nothing_is_lost_and_nobody_gets_more_than_a_share(
        capacity in 0_usize..2000,
        steps in proptest::collection::vec((0_usize..6, 0_usize..200, any::<bool>()), 0..100),
    ) {
        let budget = Budget::of(capacity);
        let networks = [(); 2].map(|()| NetworkShare::new(budget));
        let containers: Vec<_> = (0..6).map(|index| networks[index % 2].container(2)).collect();
        let (links, promised) = budget.taken();
        let mut held: Vec<Vec<Permit>> = (0..6).map(|_| Vec::new()).collect();
        for (container, count, takes) in steps {
            if takes {
                held[container].extend(std::iter::from_fn(|| containers[container].take()).take(count));
                prop_assert!(held[container].len() <= GUARANTEED + capacity * 32 / 37 + 1);
            } else {
                let left = held[container].len().saturating_sub(count);
                held[container].truncate(left);
            }
            let permits: usize = held.iter().map(Vec::len).sum();
            let (used, spare) = budget.taken();
            prop_assert_eq!(used, links + permits);
            prop_assert!(used + spare <= capacity.max(links + promised));
        }
        drop(held);
        drop(containers);
        prop_assert_eq!(budget.taken(), (0, 0));
    }

    /// Guarantees are kept against everything that others do.
    #[test]
    fn a_guarantee_holds(capacity in 200_usize..2000, others in 1_usize..6) {
        let budget = Budget::of(capacity);
        let network = NetworkShare::new(budget);
        let modest = network.container(2);
        let others: Vec<_> = (0..others).map(|_| network.container(2)).collect();
        let _held: Vec<_> = others.iter().map(greedy).collect();
        let taken: Vec<_> = std::iter::from_fn(|| modest.take()).take(GUARANTEED).collect();
        prop_assert_eq!(taken.len(), GUARANTEED);
    }
}
