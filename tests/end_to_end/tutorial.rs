//! The steps by which a typical tutorial on container networks verifies its work, in its order: there with root, veth and
//! NAT, here without.
//!
//! Where a tutorial pings the container from the host, another container does: the host has no route into a network
//! that exists in one of its processes only.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;

use nsnet::host::{Member, Network};

use crate::world::{
    Carriage, Container, DNS, GATEWAY, PATIENCE, SERVER, World, eventually, example, in_both_carriages,
    output, server,
};

in_both_carriages! {
    a_tutorials_checks_pass,
}

fn a_tutorials_checks_pass(world: &World) {
    let IpAddr::V4(outside) = SERVER[0] else { panic!("{} is not IPv4", SERVER[0]) };
    let page = server::http(world.listen(SERVER[0]), "from outside\n");
    let names = server::dns(world.dns(SERVER[0]), outside);
    let builder = Network::builder().containers_reach_each_other().dns_servers(vec![names]);
    let network = Arc::new(builder.build().unwrap());
    let web = Container::member(&network, world.carriage(), Member::named("web"));
    let listener = web.inside(|| TcpListener::bind("[::]:8080")).unwrap();
    server::http(listener, "from the neighbour\n");
    let shell = |script: &str| output_inside(&network, world.carriage(), script);

    // The namespace exists, and it is not the host's.
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(shell("readlink /proc/self/ns/net").trim(), own.to_string_lossy());

    // The loopback and the device are up; the device has its addresses.
    for device in ["lo", "tun0"] {
        let link = shell(&format!("ip -oneline link show dev {device}"));
        assert!(link.contains(",UP,LOWER_UP>"), "{link}");
    }
    let addresses = shell("ip -oneline addr show dev tun0");
    for address in ["inet 10.0.2.101/24", "inet6 fd00::101/64"] {
        assert!(addresses.contains(address), "{addresses}");
    }

    // The default routes lead to the gateway.
    for (family, gateway) in ["-4", "-6"].into_iter().zip(GATEWAY) {
        let route = shell(&format!("ip {family} route show default"));
        assert!(route.starts_with(&format!("default via {gateway} dev tun0")), "{route}");
    }

    // Names are resolved, and a page is fetched by its name.
    let resolv_conf = shell("cat /etc/resolv.conf");
    for address in DNS {
        assert!(resolv_conf.contains(&format!("nameserver {address}\n")), "{resolv_conf}");
    }
    let url = format!("http://page.test:{}/", page.port());
    assert_eq!(shell(&format!("curl -sS -4 -m 10 {url}")), "from outside\n");

    // So is that of a neighbour, of either family.
    for family in ["-4", "-6"] {
        assert_eq!(shell(&format!("curl -sS {family} -m 10 http://web:8080/")), "from the neighbour\n");
        let ping = shell(&format!("ping {family} -c 2 -i 0.2 -W 5 web"));
        assert!(ping.contains(" 0% packet loss"), "{ping}");
    }

    // And the neighbour reaches the container.
    let next = Container::member(&network, world.carriage(), Member::named("next"));
    for subnet in ["10.0.2.", "fd00::"] {
        let addresses = output(next.command("ip").args(["-oneline", "addr", "show", "dev", "tun0"]));
        let words = addresses.split_whitespace();
        let address =
            words.filter_map(|word| word.split_once('/')).find(|(word, _)| word.starts_with(subnet));
        let (address, _) = address.unwrap_or_else(|| panic!("{addresses}"));
        output(web.command("ping").args(["-n", "-c", "2", "-i", "0.2", "-W", "5", address]));
    }
}

/// What a script says that runs in a new container, which is gone when this returns.
#[track_caller]
fn output_inside(network: &Network, carriage: Carriage, script: &str) -> String {
    let mut command = Command::new(example("rootless-shell"));
    if carriage == Carriage::Shuttled {
        command.arg("--shuttle");
    }
    command.args(["--", "bash", "-c", script]).stdout(Stdio::piped());
    let member = Member::new().ipv4(Ipv4Addr::new(10, 0, 2, 101)).ipv6("fd00::101".parse().unwrap());
    let mut attached = None;
    eventually("the one before has given its addresses back", || {
        attached = network.attach(&mut command, member.clone()).ok();
        attached.is_some()
    });
    let mut attachment = attached.unwrap();
    let child = command.spawn().unwrap();
    attachment.wait_ready(PATIENCE).unwrap();
    let said = child.wait_with_output().unwrap();
    attachment.close();
    assert!(said.status.success(), "{script}: {}", said.status);
    String::from_utf8(said.stdout).unwrap()
}
