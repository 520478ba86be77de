//! What is counted for one container, and for the network.

use std::io::{Read, Write};

use super::{ADDRESSES, listen, open, pair};
use crate::world::{SERVER, World, eventually, in_both_carriages, server};

in_both_carriages! {
    each_container_counts_for_itself_and_the_network_adds_up,
}

fn each_container_counts_for_itself_and_the_network_adds_up(world: &World) {
    let [first, mut second] = pair(world, open());

    let to_world = server::tcp_echo(world.listen(SERVER[0]));
    let to_second = server::tcp_echo(listen(&second, ADDRESSES[1][0]));
    let streams = [to_world, to_second].map(|server| {
        let mut stream = first.connect(server).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        stream
    });
    let socket = second.udp(server::udp_echo(world.udp(SERVER[0])));
    socket.send(b"hello").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 5);

    let own = [&first, &second].map(|container| container.statistics());
    assert_eq!(own.map(|own| own.tcp.opened), [1, 0]);
    assert_eq!(own.map(|own| own.udp.opened), [0, 1]);
    assert_eq!(own.map(|own| own.between_containers.opened), [1, 0], "counted for the one that opened it");
    // The kernels inside may send something of their own at any time.
    eventually("the network has the sum", || {
        let sum = second.network().statistics();
        let own = [&first, &second].map(|container| container.statistics());
        sum.packets_from_container == own.iter().map(|own| own.packets_from_container).sum::<u64>()
            && sum.bytes_from_container == own.iter().map(|own| own.bytes_from_container).sum::<u64>()
            && sum.packets_to_container == own.iter().map(|own| own.packets_to_container).sum::<u64>()
            && sum.bytes_to_container == own.iter().map(|own| own.bytes_to_container).sum::<u64>()
    });
    let sum = second.network().statistics();
    assert_eq!(
        [sum.tcp, sum.udp, sum.between_containers].map(|flows| (flows.opened, flows.active)),
        [(1, 1); 3]
    );
    assert!(sum.bytes_from_container > second.statistics().bytes_from_container);

    let bytes_of_first = first.statistics().bytes_from_container;
    first.close();
    eventually("the flows of the first container have ended", || {
        let sum = second.network().statistics();
        sum.tcp.active == 0 && sum.between_containers.active == 0
    });
    drop((streams, first));
    let sum = second.network().statistics();
    assert_eq!([sum.tcp, sum.udp, sum.between_containers].map(|flows| flows.opened), [1; 3]);
    assert!(sum.bytes_from_container >= bytes_of_first + own[1].bytes_from_container);

    second.drop_network();
    let after = second.statistics();
    assert_eq!((after.udp.opened, after.udp.active), (1, 0), "read after the end");
    assert!(after.bytes_from_container >= own[1].bytes_from_container);
}
