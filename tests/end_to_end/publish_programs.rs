//! Published ports as their users have them: nginx inside, curl outside.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nsnet::host::{Network, Publish};

use crate::world::{
    Carriage, Container, HOST, PATIENCE, SERVER, World, assert_errno, errno, eventually, example,
    in_both_carriages, output,
};

in_both_carriages! {
    nginx_logs_the_clients_own_address,
    curl_says_that_nobody_listens,
    curl_fetches_by_a_unix_socket,
    rootless_shell_publishes_what_it_is_told,
    killed_container_ends_its_connections,
}

fn nginx_logs_the_clients_own_address(world: &World) {
    let scratch = world.scratch();
    let container = world.container();
    let _nginx = Nginx::start(&container, &scratch);
    let published = container.network().publish(Publish::tcp(8080, 80)).unwrap();
    assert_eq!(published.addresses().len(), 2);
    for (address, client) in HOST.into_iter().zip(SERVER) {
        assert_eq!(output(curl(world, (address, 8080).into()).arg("-v")), "a page\n");
        // It is written once the page has been sent.
        eventually("nginx has logged who the client is", || {
            let log = fs::read_to_string(scratch.join("access.log")).unwrap();
            log.lines().last().and_then(|line| line.split(' ').next()) == Some(&*client.to_string())
        });
    }
}

fn curl_says_that_nobody_listens(world: &World) {
    let container = world.container();
    container.network().publish(Publish::tcp(8080, 80)).unwrap();
    for address in HOST {
        let output = curl(world, (address, 8080).into()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // CURLE_COULDNT_CONNECT if the reset comes while it connects, else CURLE_SEND_ERROR or CURLE_RECV_ERROR.
        assert!(matches!(output.status.code(), Some(7 | 55 | 56)), "{said}");
        assert!(said.contains("reset by peer") || said.contains("Couldn't connect"), "{said}");
    }
}

fn curl_fetches_by_a_unix_socket(world: &World) {
    let scratch = world.scratch();
    let container = world.container();
    let _nginx = Nginx::start(&container, &scratch);
    let path = scratch.join("published");
    container.network().publish(Publish::unix(&path, 80)).unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-m", "10", "--unix-socket"]).arg(&path).arg("http://nginx/");
    assert_eq!(output(&mut curl), "a page\n");
}

/// Both transports, a range, an address.
fn rootless_shell_publishes_what_it_is_told(world: &World) {
    let scratch = world.scratch();
    configure(&scratch);
    let nginx = format!("exec nginx -p {0} -c {0}/nginx.conf", scratch.display());
    let mut command = rootless_shell(world);
    command.args([
        "--publish",
        "8000-8001:80",
        "--publish",
        "10.99.0.1:8080:80",
        "--publish",
        "[fd99::1]:8080:80",
    ]);
    let mut shell = Killed(command.args(["--", "sh", "-c", &nginx]).spawn().unwrap());
    // 8001 leads to port 81, where nobody listens.
    for (address, port) in [(HOST[0], 8000), (HOST[1], 8000), (HOST[0], 8080), (HOST[1], 8080)] {
        eventually("nginx answers", || {
            curl(world, (address, port).into()).output().unwrap().stdout == b"a page\n"
        });
    }
    assert_eq!(curl(world, (HOST[0], 8001).into()).output().unwrap().stdout, b"");
    assert!(shell.0.try_wait().unwrap().is_none());
}

/// Its kernel ends what its processes had open; what then still is, ends with the attachment.
fn killed_container_ends_its_connections(world: &World) {
    let scratch = world.scratch();
    configure(&scratch);
    let network = Network::builder().publish(Publish::tcp(8080, 80)).build().unwrap();
    let nginx = format!("exec nginx -p {0} -c {0}/nginx.conf", scratch.display());
    let mut container = world.container_process(network, &nginx);
    let address = SocketAddr::new(HOST[0], 8080);
    let connect = || world.in_server(|| TcpStream::connect_timeout(&address, PATIENCE));
    let fetched = || connect().and_then(|stream| fetch(&stream).map(|()| stream));
    eventually("nginx answers", || fetched().is_ok());
    let stream = fetched().unwrap();
    container.kill();
    container.close();
    match (&stream).read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0),
        Err(error) => assert_eq!(errno(&error), Errno::ECONNRESET),
    }
    eventually("it is reset", || (&stream).write(b"x").is_err());
    assert_errno(fetched(), Errno::ECONNRESET);
}

/// Fetches the page, and leaves the connection open.
fn fetch(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\na page\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    Ok(())
}

fn curl(world: &World, to: SocketAddr) -> Command {
    let mut curl = world.server_command("curl");
    curl.args(["-sS", "-m", "10"]).arg(format!("http://{to}/"));
    curl
}

fn rootless_shell(world: &World) -> Command {
    let mut command = Command::new(example("rootless-shell"));
    if world.carriage() == Carriage::Shuttled {
        command.arg("--shuttle");
    }
    command.stdin(Stdio::null());
    command
}

/// nginx in a container, from when it listens until it is dropped.
struct Nginx {
    _child: Killed,
}

impl Nginx {
    #[track_caller]
    fn start(container: &Container, scratch: &Path) -> Self {
        configure(scratch);
        let mut command = container.command("nginx");
        command.arg("-p").arg(scratch).arg("-c").arg(scratch.join("nginx.conf"));
        let spawned = command.spawn();
        let child =
            spawned.unwrap_or_else(|error| panic!("nginx: {error}; it comes with the package nginx-light"));
        let nginx = Self { _child: Killed(child) };
        let own = |address: &str| {
            container.connect(SocketAddr::new(address.parse::<IpAddr>().unwrap(), 80)).is_ok()
        };
        eventually("nginx listens", || own("127.0.0.1") && own("::1"));
        nginx
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One process, so that it changes to no other user, and nothing outside of `scratch`.
fn configure(scratch: &Path) {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {}/{what};\n", scratch.display()))
        .concat();
    let configuration = format!(
        "user root root;
        daemon off;
        master_process off;
        error_log stderr;
        pid {0}/nginx.pid;
        events {{}}
        http {{
            access_log {0}/access.log;
            {temporary}
            server {{
                listen 80;
                listen [::]:80 ipv6only=on;
                location / {{ return 200 \"a page\\n\"; }}
            }}
        }}
        ",
        scratch.display()
    );
    fs::write(scratch.join("nginx.conf"), configuration).unwrap();
}
