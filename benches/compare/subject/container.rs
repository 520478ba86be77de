//! The first process of a namespace. It holds the namespace for those who enter later.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use nsnet::container::{Namespaces, TunDevice};
use serde::{Deserialize, Serialize};

use crate::actor::{Say, say};
use crate::error::{Context, Result};
use crate::world::{PROBE_PORT, SERVER};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Container {
    /// Not a client: a place in the world.
    Place,
    /// Others provide the network.
    Guest,
    /// nsnet's container side, in a user namespace of its own.
    Nsnet { shuttle: bool },
}

impl Container {
    pub(crate) fn run(self) -> Result<()> {
        let namespaces = match self {
            Self::Place | Self::Guest => Namespaces::new().network(),
            Self::Nsnet { .. } => Namespaces::new().user().network(),
        };
        namespaces.enter()?;
        adjust_namespace()?;
        say(&Say::Entered(std::process::id()))?;
        // Frames are copied, if they are, as long as this lives.
        let _shuttle = match self {
            Self::Nsnet { shuttle } => {
                let mut device = TunDevice::open()?;
                device.configure()?;
                if shuttle {
                    Some(device.shuttle()?)
                } else {
                    device.hand_over()?;
                    None
                }
            }
            Self::Place | Self::Guest => None,
        };
        if self != Self::Place {
            connect_to_server();
            say(&Say::Connected)?;
        }
        loop {
            thread::park();
        }
    }
}

/// Tries until it works. Whoever waits for it has a clock of his own.
fn connect_to_server() {
    /// Shorter than the kernel's second SYN, which comes after a second and would be counted as the subject's time.
    const ATTEMPT: Duration = Duration::from_millis(50);
    const PAUSE: Duration = Duration::from_micros(500);
    let server = SocketAddr::new(SERVER, PROBE_PORT);
    while TcpStream::connect_timeout(&server, ATTEMPT).is_err() {
        thread::sleep(PAUSE);
    }
}

/// Makes the namespace of the caller like every other: the same congestion control, whatever this machine's default is,
/// and so many ports that they do not limit connection rates.
pub(crate) fn adjust_namespace() -> Result<()> {
    let settings = [
        ("tcp_congestion_control", congestion_control()?),
        ("ip_local_port_range", "10000 65000".to_owned()),
    ];
    for (name, value) in settings {
        let path = format!("/proc/sys/net/ipv4/{name}");
        std::fs::write(&path, value).context(&path)?;
    }
    Ok(())
}

/// The congestion control of every namespace: the first of [`PREFERRED`] that this machine allows its users, or else any
/// that it allows. A namespace can have no other, not even one that root has made.
pub(crate) fn congestion_control() -> Result<String> {
    let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let list = std::fs::read_to_string(path).context(path)?;
    let allowed: Vec<&str> = list.split_whitespace().collect();
    let preferred = PREFERRED.iter().find(|name| allowed.contains(name));
    let chosen = preferred.or(allowed.first()).ok_or_else(|| format!("{path}: it allows none"))?;
    Ok((*chosen).to_owned())
}

/// Neither of them paces, as bbr does: a single stream's pace would be measured then.
const PREFERRED: [&str; 2] = ["cubic", "reno"];
