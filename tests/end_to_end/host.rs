//! Reaching the host, as far as the embedder opens it.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::sync::mpsc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};
use nsnet::host::{DialError, DirectDialer, FilterDialer, Flow, HostPorts, Network, Service};
use std::os::fd::AsRawFd;

use crate::world::{
    AT_ONCE, Carriage, GATEWAY, HOST, PATIENCE, SERVER, World, accept, assert_errno, example,
    in_both_carriages, output, server, within,
};

in_both_carriages! {
    chosen_ports_of_the_loopback_are_reached_at_the_gateway,
    chosen_protocol_is_the_only_one,
    own_address_is_reached_at_its_chosen_port_only,
    all_ports_of_an_own_address_are_reached,
    dialer_decides_on_what_is_open,
    shell_opens_ports_and_knows_the_host_by_name,
    urgent_bytes_stay_in_the_stream,
}

const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

fn http_at(address: impl Into<IpAddr>) -> SocketAddr {
    server::http(TcpListener::bind((address.into(), 0)).unwrap(), "of the host\n")
}

fn fetch(url: &str) -> Vec<String> {
    ["curl", "-sS", "-m", "10", url].map(str::to_owned).to_vec()
}

fn chosen_ports_of_the_loopback_are_reached_at_the_gateway(world: &World) {
    for (loopback, gateway) in LOOPBACK.into_iter().zip(GATEWAY) {
        let loopback: IpAddr = loopback.parse().unwrap();
        let (open, closed) = (http_at(loopback).port(), http_at(loopback).port());
        let container = world.container_of(Network::builder().open_host(HostPorts::loopback().port(open)));
        let url = format!("http://{}/", SocketAddr::new(gateway, open));
        assert_eq!(output(container.command("curl").args(&fetch(&url)[1..])), "of the host\n");
        within(AT_ONCE, || assert_errno(container.connect((gateway, closed).into()), Errno::ECONNREFUSED));
    }
}

fn chosen_protocol_is_the_only_one(world: &World) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server::udp_echo(socket).port();
    let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let container = world.container_of(Network::builder().open_host(HostPorts::loopback().port(port).udp()));
    let inside = container.udp((GATEWAY[0], port).into());
    inside.send(b"hello").unwrap();
    assert_eq!(inside.recv(&mut [0; 16]).unwrap(), 5);
    within(AT_ONCE, || assert_errno(container.connect((GATEWAY[0], port).into()), Errno::ECONNREFUSED));
}

fn own_address_is_reached_at_its_chosen_port_only(world: &World) {
    for address in HOST {
        let (open, closed) = (http_at(address), http_at(address));
        let container = world.container_of(Network::builder().open_host(open));
        let url = format!("http://{open}/");
        assert_eq!(output(container.command("curl").args(&fetch(&url)[1..])), "of the host\n");
        within(AT_ONCE, || container.connect(closed)).expect_err("that port is the host's");
        within(AT_ONCE, || container.connect((GATEWAY[0], open.port()).into()))
            .expect_err("the loopback is another matter");
    }
}

fn all_ports_of_an_own_address_are_reached(world: &World) {
    let container = world.container_of(Network::builder().open_host(HostPorts::at(HOST[0])));
    for _ in 0..2 {
        container.connect(http_at(HOST[0])).unwrap();
        let inside = container.udp(server::udp_echo(UdpSocket::bind((HOST[0], 0)).unwrap()));
        inside.send(b"hello").unwrap();
        assert_eq!(inside.recv(&mut [0; 16]).unwrap(), 5);
    }
    within(AT_ONCE, || container.connect(http_at(HOST[1]))).expect_err("another address of the host");
}

fn dialer_decides_on_what_is_open(world: &World) {
    let (told, flows) = mpsc::channel();
    let own = http_at(HOST[0]);
    let dialer = FilterDialer::new(DirectDialer::new(), move |flow: &Flow| {
        told.send(flow.clone()).unwrap();
        Err(DialError::Prohibited)
    });
    let container = world.container_of(Network::builder().dialer(dialer).open_host(own));
    within(AT_ONCE, || container.connect(own)).expect_err("the Dialer says no");
    let flow = flows.recv_timeout(PATIENCE).unwrap();
    assert_eq!((flow.service, flow.destination, flow.target), (Service::HostAddress, own, own));
}

fn shell_opens_ports_and_knows_the_host_by_name(world: &World) {
    let shell = |options: &[&str], command: &[String]| {
        let mut shell = Command::new(example("rootless-shell"));
        if world.carriage() == Carriage::Shuttled {
            shell.arg("--shuttle");
        }
        shell.args(options).arg("--").args(command);
        shell
    };
    let loopback = http_at([127, 0, 0, 1]).port();
    let by_name = fetch(&format!("http://host.nsnet.internal:{loopback}/"));
    assert_eq!(output(&mut shell(&["--open-host", &loopback.to_string()], &by_name)), "of the host\n");
    let closed = shell(&[], &by_name).status().unwrap();
    assert_eq!(closed.code(), Some(6), "CURLE_COULDNT_RESOLVE_HOST");
    let own = http_at(HOST[0]);
    let by_address = fetch(&format!("http://{own}/"));
    for opened in [own.to_string(), HOST[0].to_string()] {
        assert_eq!(output(&mut shell(&["--open-host", &opened], &by_address)), "of the host\n");
    }
}

/// Where a kernel would take them out of the stream, RFC 6093.
fn urgent_bytes_stay_in_the_stream(world: &World) {
    let container = world.container();
    let listener = world.listen(SERVER[0]);
    let inside = container.connect(listener.local_addr().unwrap()).unwrap();
    let outside = accept(&listener);
    for (sender, mut receiver) in [(&outside, &inside), (&inside, &outside)] {
        for (byte, flags) in [(b"1", MsgFlags::empty()), (b"!", MsgFlags::MSG_OOB), (b"2", MsgFlags::empty())]
        {
            let mut received = [0];
            send(sender.as_raw_fd(), byte, flags).unwrap();
            receiver.read_exact(&mut received).unwrap();
            assert_eq!(&received, byte);
        }
    }
}
