//! In the steady state nothing is allocated per packet.

use nsnet_host::micro::{CASES, Case};

const ROUNDS: usize = 8;

/// What a round may allocate: one datagram is put together in a record of its own, whose buffer is recycled.
fn allowance(case: &Case) -> u64 {
    match case.name {
        "reassemble/60000" => 1,
        _ => 0,
    }
}

fn allocations(mut work: impl FnMut()) -> u64 {
    allocation_counter::measure(&mut work).count_total
}

#[test]
fn no_case_allocates_more_than_it_must() {
    for case in CASES {
        let mut round = case.prepare();
        let counted: Vec<u64> = (0..ROUNDS).map(|_| allocations(&mut round)).collect();
        assert_eq!(counted, [allowance(case); ROUNDS], "{}", case.name);
    }
}

#[test]
fn an_allocation_is_counted() {
    let mut vector = Vec::new();
    assert_eq!(allocations(|| vector = std::hint::black_box(vec![0u8; 100])), 1);
}
