//! The programs people use, inside a container.

use std::net::Ipv4Addr;

use nsnet::host::Network;

use crate::world::{DNS, SERVER, World, in_both_carriages, iperf3, output, server};

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
            let server = world.server_command("iperf3");
            iperf3(server, container.command("iperf3"), SERVER[0], &[&["-P", streams], direction].concat());
        }
    }
}
