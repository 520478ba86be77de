//! What routers have to say: hops, errors, and the MTU of the way.

use std::net::IpAddr;
use std::process::Command;

use crate::world::hops::{END, ROUTERS};
use crate::world::{World, once, output};

once! {
    the_host_sees_three_routers,
}

fn the_host_sees_three_routers(world: &World) {
    let _hops = world.hops();
    for (family, end) in END.into_iter().enumerate() {
        let expected = [ROUTERS[0][family], ROUTERS[1][family], ROUTERS[2][family], end];
        assert_eq!(traceroute(&mut Command::new("traceroute"), end), expected);
    }
}

/// The addresses that traceroute(8) prints, hop by hop.
#[track_caller]
fn traceroute(command: &mut Command, to: IpAddr) -> Vec<IpAddr> {
    let said = output(command.args(["-n", "-q", "1", "-w", "5", &to.to_string()]));
    let hops = said.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok());
    hops.collect()
}
