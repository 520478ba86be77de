//! The resolv.conf(5) of a container, which either end can write.

use std::fmt::Write as _;

use crate::Setup;

impl Setup {
    /// The content of `/etc/resolv.conf` in the container: a `nameserver` line for each address that answers DNS, then
    /// `search` and `options` where there are any.
    ///
    /// # Examples
    /// ```
    /// # use nsnet_proto::{NamespaceId, Offload, Setup};
    /// # let setup = Setup {
    /// #     device: "tun0".into(),
    /// #     mtu: 1500,
    /// #     addresses: Vec::new(),
    /// #     dns: vec!["10.0.2.3".parse()?],
    /// #     search: vec!["corp.test".into(), "test".into()],
    /// #     dns_options: vec!["ndots:2".into()],
    /// #     offload: Offload::NONE,
    /// #     queues: 1,
    /// #     host_namespace: NamespaceId { device: 0, inode: 0 },
    /// # };
    /// assert_eq!(
    ///     setup.resolv_conf(),
    ///     "# made by nsnet\nnameserver 10.0.2.3\nsearch corp.test test\noptions ndots:2\n"
    /// );
    /// # Ok::<(), std::net::AddrParseError>(())
    /// ```
    #[must_use]
    pub fn resolv_conf(&self) -> String {
        let mut text = String::from("# made by nsnet\n");
        for address in &self.dns {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "nameserver {address}");
        }
        for (keyword, words) in [("search", &self.search), ("options", &self.dns_options)] {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        }
        text
    }
}
