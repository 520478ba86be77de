//! Chooses the servers to ask. Pure but for reading one file: the caller supplies the time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nsnet_stack::wire::DNS_PORT;

/// The upstream servers: those of a resolv.conf(5) that may change, or a fixed list.
#[derive(Debug)]
pub(crate) struct Servers {
    file: Option<Watched>,
    settings: Settings,
    /// Queries planned so far, for `rotate`.
    planned: usize,
}

impl Servers {
    /// The host's own, from `/etc/resolv.conf`.
    pub(crate) fn system() -> Self {
        Self::from_file(Path::new(SYSTEM_FILE))
    }

    /// The servers of the resolv.conf(5) at `path`. The file need not exist. Until it names a server, queries go to
    /// 127.0.0.1, as resolv.conf(5) says.
    pub(crate) fn from_file(path: &Path) -> Self {
        Self::from_file_with_port(path, DNS_PORT)
    }

    /// Exactly these servers, with the default timeout and attempts. With none, every query fails.
    pub(crate) fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self { file: None, settings: Settings::default_for(servers.into()), planned: 0 }
    }

    /// For tests, which may not bind port 53: resolv.conf(5) cannot name a port.
    pub(super) fn from_file_with_port(path: &Path, port: u16) -> Self {
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let file = Watched {
            path: path.to_owned(),
            port,
            checked: None,
            seen: None,
            scoped_by_name: false,
            problem: None,
        };
        Self { file: Some(file), settings: Settings::default_for([local].into()), planned: 0 }
    }

    /// The plan for the next query. Looks at the file at most once per [`CHECK_INTERVAL`].
    pub(super) fn plan(&mut self, now: Instant) -> Plan {
        if let Some(fresh) = self.file.as_mut().and_then(|file| file.poll(now, &self.settings)) {
            self.settings = fresh;
        }
        let first = if self.settings.rotate { self.planned } else { 0 };
        self.planned = self.planned.wrapping_add(1);
        Plan { settings: self.settings.clone(), first }
    }
}

/// The servers, timeout and attempts for one query.
#[derive(Debug)]
pub(super) struct Plan {
    settings: Settings,
    first: usize,
}

impl Plan {
    /// The servers in the order to ask them.
    pub(super) fn servers(&self) -> impl Iterator<Item = SocketAddr> {
        let servers = &self.settings.servers;
        let start = self.first.checked_rem(servers.len()).unwrap_or(0);
        servers[start..].iter().chain(&servers[..start]).copied()
    }

    /// How long to wait for one server.
    pub(super) fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// How often to go through the list.
    pub(super) fn attempts(&self) -> u32 {
        self.settings.attempts
    }
}

#[derive(Debug, Clone)]
struct Settings {
    servers: Arc<[SocketAddr]>,
    timeout: Duration,
    attempts: u32,
    rotate: bool,
}

impl Settings {
    /// The defaults of resolv.conf(5): `RES_TIMEOUT` and `RES_DFLRETRY`.
    fn default_for(servers: Arc<[SocketAddr]>) -> Self {
        Self { servers, timeout: Duration::from_secs(5), attempts: 2, rotate: false }
    }
}

/// A resolv.conf(5) and its last known state.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    port: u16,
    checked: Option<Instant>,
    seen: Option<Fingerprint>,
    /// The file contains a scope like `%eth0`. The interface's number may change while the file does not.
    scoped_by_name: bool,
    /// The problem that has been logged already.
    problem: Option<Problem>,
}

impl Watched {
    /// The new settings, if they change. With any fault in the file, `current` stays: a file is commonly missing for a
    /// moment while a DHCP client or VPN rewrites it.
    fn poll(&mut self, now: Instant, current: &Settings) -> Option<Settings> {
        if self.checked.is_some_and(|last| now.saturating_duration_since(last) < CHECK_INTERVAL) {
            return None;
        }
        self.checked = Some(now);
        match self.read() {
            Ok(FileContent::AsBefore) => None,
            Ok(FileContent::Settings(settings)) => {
                tracing::debug!(path = %self.path.display(), servers = ?settings.servers, "DNS servers read");
                self.problem = None;
                Some(settings)
            }
            Err(problem) => {
                if self.problem != Some(problem) {
                    tracing::warn!(
                        path = %self.path.display(), %problem, servers = ?current.servers,
                        "no DNS server can be read from the file; these are asked until it names one"
                    );
                    self.problem = Some(problem);
                }
                None
            }
        }
    }

    fn read(&mut self) -> Result<FileContent, Problem> {
        // Cleared first, so that a file that comes back is read again even if it is unchanged.
        let before = self.seen.take();
        // Opening or reading a FIFO or a device could otherwise stall the engine.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        let fingerprint = Fingerprint::of(&file)?;
        self.seen = Some(fingerprint);
        if before == Some(fingerprint) && !self.scoped_by_name {
            return Ok(FileContent::AsBefore);
        }
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        self.scoped_by_name = false;
        let servers: Arc<[_]> =
            addresses(&text).filter_map(|word| self.server(word)).take(MAX_SERVERS).collect();
        if servers.is_empty() {
            return Err(Problem::NoServer);
        }
        let (options, _errors) = resolv_conf::Config::parse_with_errors(text.as_bytes());
        Ok(FileContent::Settings(Settings {
            servers,
            timeout: Duration::from_secs(options.timeout.clamp(1, MAX_TIMEOUT).into()),
            attempts: options.attempts.clamp(1, MAX_ATTEMPTS),
            rotate: options.rotate,
        }))
    }

    /// An address as resolv.conf(5) writes it, perhaps with a scope. `None` if it is not an address, or the interface
    /// of its scope does not exist.
    fn server(&mut self, word: &str) -> Option<SocketAddr> {
        let Some((address, scope)) = word.split_once('%') else {
            return Some(SocketAddr::new(word.parse::<IpAddr>().ok()?, self.port));
        };
        let address: Ipv6Addr = address.parse().ok()?;
        let index = match scope.parse() {
            Ok(index) => index,
            Err(_) => {
                self.scoped_by_name = true;
                if_nametoindex(scope).ok()?
            }
        };
        Some(SocketAddrV6::new(address, self.port, 0, index).into())
    }
}

/// The addresses of the `nameserver` lines. The crate `resolv-conf` reads only the options, because it refuses scopes
/// with interface names such as `br-lan` and `eth0.7`.
fn addresses(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split([';', '#']).next()?.split_whitespace();
        if words.next()? == "nameserver" { words.next() } else { None }
    })
}

enum FileContent {
    AsBefore,
    Settings(Settings),
}

/// Why a file names no server. It is compared, so that each problem is logged when it begins and not every second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Unreadable(io::ErrorKind),
    #[error("not a regular file")]
    NotAFile,
    #[error("no usable nameserver line")]
    NoServer,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Unreadable(error.kind())
    }
}

/// Attributes that tell one state of the file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Fingerprint {
    fn of(file: &File) -> Result<Self, Problem> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(Problem::NotAFile);
        }
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// The shortest time between two looks at the file. glibc looks on every query, which costs a stat each.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const SYSTEM_FILE: &str = "/etc/resolv.conf";
/// Far above any real file, so that a wrong path costs no memory.
const MAX_FILE: u64 = 64 * 1024;
/// `MAXNS`, resolv.conf(5): the host's own resolver does not ask more.
const MAX_SERVERS: usize = 3;
/// "The value for this option is silently capped to 30", resolv.conf(5), in seconds.
const MAX_TIMEOUT: u32 = 30;
/// "The value for this option is silently capped to 5", resolv.conf(5).
const MAX_ATTEMPTS: u32 = 5;

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use proptest::prelude::*;

    use super::*;

    /// A file of the test's own, removed when the test ends.
    pub(in crate::dns) struct TempFile(PathBuf);

    impl TempFile {
        pub(in crate::dns) fn new(text: &str) -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("nsnet-resolv-{}-{number}.conf", std::process::id());
            let file = Self(std::env::temp_dir().join(name));
            file.replace(text);
            file
        }

        pub(in crate::dns) fn path(&self) -> &Path {
            &self.0
        }

        /// Replaces the file as DHCP clients do: a new one takes the place of the old one.
        pub(in crate::dns) fn replace(&self, text: &str) {
            let new = self.0.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &self.0).unwrap();
        }

        fn remove(&self) {
            fs::remove_file(&self.0).unwrap();
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test has to begin some time")]
    fn begin() -> Instant {
        Instant::now()
    }

    #[track_caller]
    fn assert_asks(servers: &mut Servers, now: Instant, expected: &[&str]) {
        let asked: Vec<_> = servers.plan(now).servers().map(|server| server.to_string()).collect();
        assert_eq!(asked, expected);
    }

    #[test]
    fn servers_are_asked_in_the_order_of_the_file() {
        let file = TempFile::new(
            "# nameserver 203.0.113.9\nsearch example.com\nnameserver 203.0.113.1 # first\n\
             nameserver nonsense\nnameserver\t2001:db8::1\n options edns0 timeout:3 attempts:4\n",
        );
        let mut servers = Servers::from_file(file.path());
        assert_asks(&mut servers, begin(), &["203.0.113.1:53", "[2001:db8::1]:53"]);
        let plan = servers.plan(begin());
        assert_eq!((plan.timeout(), plan.attempts()), (Duration::from_secs(3), 4));
    }

    #[test]
    fn only_three_servers_count() {
        let file = TempFile::new(
            "nameserver 203.0.113.1\nnameserver 203.0.113.2\nnameserver 203.0.113.3\nnameserver 203.0.113.4\n",
        );
        assert_eq!(Servers::from_file(file.path()).plan(begin()).servers().count(), 3);
    }

    #[test]
    fn options_are_capped_as_the_manual_says() {
        let file = TempFile::new("nameserver 203.0.113.1\noptions timeout:4000000000 attempts:0\n");
        let plan = Servers::from_file(file.path()).plan(begin());
        assert_eq!((plan.timeout(), plan.attempts()), (Duration::from_secs(30), 1));
    }

    #[test]
    fn scope_becomes_the_interface_index() {
        let file =
            TempFile::new("nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%no-such.7\n");
        let index = if_nametoindex("lo").unwrap();
        let mut servers = Servers::from_file(file.path());
        assert_asks(&mut servers, begin(), &[&format!("[fe80::1%{index}]:53"), "[fe80::2%7]:53"]);
    }

    #[test]
    fn rotate_starts_one_further_each_time() {
        let file = TempFile::new("nameserver 203.0.113.1\nnameserver 203.0.113.2\noptions rotate\n");
        let mut servers = Servers::from_file(file.path());
        let now = begin();
        assert_asks(&mut servers, now, &["203.0.113.1:53", "203.0.113.2:53"]);
        assert_asks(&mut servers, now, &["203.0.113.2:53", "203.0.113.1:53"]);
        assert_asks(&mut servers, now, &["203.0.113.1:53", "203.0.113.2:53"]);
    }

    #[test]
    fn changed_file_is_noticed_after_the_interval() {
        let file = TempFile::new("nameserver 203.0.113.1\n");
        let mut servers = Servers::from_file(file.path());
        let now = begin();
        assert_asks(&mut servers, now, &["203.0.113.1:53"]);
        file.replace("nameserver 203.0.113.2\n");
        assert_asks(&mut servers, now, &["203.0.113.1:53"]);
        assert_asks(&mut servers, now + CHECK_INTERVAL, &["203.0.113.2:53"]);
    }

    #[test]
    fn last_good_servers_survive_a_file_without_any() {
        let file = TempFile::new("nameserver 203.0.113.1\n");
        let mut servers = Servers::from_file(file.path());
        let now = begin();
        assert_asks(&mut servers, now, &["203.0.113.1:53"]);
        file.replace("# rewritten by a VPN\n");
        assert_asks(&mut servers, now + CHECK_INTERVAL, &["203.0.113.1:53"]);
        file.remove();
        assert_asks(&mut servers, now + CHECK_INTERVAL * 2, &["203.0.113.1:53"]);
        file.replace("nameserver 203.0.113.2\n");
        assert_asks(&mut servers, now + CHECK_INTERVAL * 3, &["203.0.113.2:53"]);
    }

    #[test]
    fn without_a_file_the_local_machine_is_asked() {
        let file = TempFile::new("");
        let mut servers = Servers::from_file(file.path());
        assert_asks(&mut servers, begin(), &["127.0.0.1:53"]);
        file.remove();
        assert_asks(&mut Servers::from_file(file.path()), begin(), &["127.0.0.1:53"]);
        assert_asks(&mut Servers::from_file(Path::new("/dev/zero")), begin(), &["127.0.0.1:53"]);
        assert_asks(&mut Servers::from_file(&std::env::temp_dir()), begin(), &["127.0.0.1:53"]);
    }

    #[test]
    fn fifo_does_not_stall() {
        let file = TempFile::new("");
        file.remove();
        nix::sys::stat::mknod(file.path(), nix::sys::stat::SFlag::S_IFIFO, nix::sys::stat::Mode::S_IRWXU, 0)
            .unwrap();
        assert_asks(&mut Servers::from_file(file.path()), begin(), &["127.0.0.1:53"]);
    }

    #[test]
    fn fixed_servers_stay() {
        let mut servers = Servers::fixed(vec!["203.0.113.1:5353".parse().unwrap()]);
        assert_asks(&mut servers, begin(), &["203.0.113.1:5353"]);
        assert_asks(&mut Servers::fixed(Vec::new()), begin(), &[]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_file_is_read_without_panic(text in "(nameserver|options|[a-z:%. 0-9\n#;])*") {
            let file = TempFile::new(&text);
            prop_assert!(Servers::from_file(file.path()).plan(begin()).servers().count() >= 1);
        }
    }
}
