//! Time and allocations of the micro-benchmarks: `cargo bench -p nsnet-host --bench micro [-- FILTER]`.
//!
//! A round of `header` handles six headers, one of `lookup` finds 64 connections, one of `tcp_up` and `tcp_down`
//! moves 1 MiB, both ends included; one of `tcp_request` is a request and its response.

use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher};
use nsnet_host::micro::CASES;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

#[divan::bench(args = CASES.iter().map(|case| case.name))]
fn case(bencher: Bencher<'_, '_>, name: &str) {
    let case = CASES.iter().find(|case| case.name == name).expect("the names are those of the cases");
    let round = case.prepare();
    match case.payload {
        0 => bencher.bench_local(round),
        payload => bencher.counter(BytesCount::new(payload)).bench_local(round),
    }
}
