//! The programs people use, inside a container.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use nsnet::host::Network;

use crate::world::{Container, DNS, SERVER, World, in_both_carriages, output, server};

in_both_carriages! {
    curl_fetches_a_page_over_ipv4_and_ipv6,
    curl_says_that_a_closed_port_refuses,
    dig_is_answered_over_udp_and_tcp,
    iperf3_ends_cleanly_in_both_directions_with_one_stream_and_eight [120],
}

fn curl_fetches_a_page_over_ipv4_and_ipv6(world: &World) {
    let container = world.container();
    for (family, address) in ["-4", "-6"].into_iter().zip(SERVER) {
        let server = server::http(world.listen(address), "a page\n");
        let page = output(
            container.command("curl").args(["-sS", family, "-m", "10"]).arg(format!("http://{server}/")),
        );
        assert_eq!(page, "a page\n");
    }
}

fn curl_says_that_a_closed_port_refuses(world: &World) {
    let container = world.container();
    let url = format!("http://{}/", world.closed(SERVER[0]));
    let status = container.command("curl").args(["-sS", "-m", "10", &url]).status().unwrap();
    // CURLE_COULDNT_CONNECT, and not 28, CURLE_OPERATION_TIMEDOUT.
    assert_eq!(status.code(), Some(7));
}

fn dig_is_answered_over_udp_and_tcp(world: &World) {
    let answer = Ipv4Addr::new(203, 0, 113, 7);
    let server = server::dns(world.dns(SERVER[0]), answer);
    let container = world.container_of(Network::builder().dns_servers(vec![server]));
    for address in DNS {
        for transport in ["+notcp", "+tcp"] {
            let at = format!("@{address}");
            let said =
                output(container.command("dig").args([&at, transport, "+short", "+tries=1", "name.test"]));
            assert_eq!(said.trim(), answer.to_string());
        }
    }
}

fn iperf3_ends_cleanly_in_both_directions_with_one_stream_and_eight(world: &World) {
    let container = world.container();
    for streams in ["1", "8"] {
        for direction in [&[][..], &["-R"]] {
            iperf3(world, &container, SERVER[0], &[&["-P", streams], direction].concat());
        }
    }
}

#[track_caller]
fn iperf3(world: &World, container: &Container, address: IpAddr, options: &[&str]) {
    let address = address.to_string();
    let mut server = world
        .server_command("iperf3")
        .args(["-s", "-1", "--forceflush", "-B", &address])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("iperf3: {error}; it comes with the Debian package iperf3"));
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("Server listening")), "iperf3 does not listen");
    let mut client: Command = container.command("iperf3");
    output(client.args(["-c", &address, "-t", "1"]).args(options));
    lines.for_each(drop);
    assert!(server.wait().unwrap().success(), "the server of iperf3 {options:?}");
}
