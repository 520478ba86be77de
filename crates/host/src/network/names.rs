//! The host names, search domains and resolver options of a network, checked. Pure.

use std::net::IpAddr;

use super::BuildError;
use crate::addressing::Addressing;
use crate::dns::{HostName, Hosts};

/// Names as the embedder gives them, unchecked.
#[derive(Debug)]
pub(super) struct Names {
    /// Static hosts.
    pub(super) hosts: Vec<(String, Vec<IpAddr>)>,
    /// The name of the host itself.
    pub(super) gateway: String,
    /// Domains in which containers look names up.
    pub(super) search: Vec<String>,
    /// Options of the containers' resolver library.
    pub(super) options: Vec<String>,
}

/// The counterpart of docker's `host.docker.internal`. ICANN reserved `internal` for private names (2024).
const GATEWAY_NAME: &str = "host.nsnet.internal";

impl Default for Names {
    fn default() -> Self {
        Self { hosts: Vec::new(), gateway: GATEWAY_NAME.into(), search: Vec::new(), options: Vec::new() }
    }
}

impl Names {
    /// The names that the network answers itself.
    ///
    /// # Errors
    /// [`BuildError`] if a name is not valid, or a host has no address.
    pub(super) fn hosts(&self, addressing: &Addressing) -> Result<Hosts, BuildError> {
        let mut hosts = Hosts::default();
        for (name, addresses) in &self.hosts {
            if addresses.is_empty() {
                return Err(BuildError::NoAddress(name.clone()));
            }
            hosts.add(&parse(name)?, addresses.iter().copied());
        }
        let gateway = parse(&self.gateway)?;
        let gateways = addressing.subnets().map(|subnet| subnet.gateway);
        hosts.add(&gateway, gateways.filter(|gateway| addressing.host.is_behind(*gateway)));
        hosts.deny(gateway);
        Ok(hosts)
    }

    /// The domains to search.
    ///
    /// # Errors
    /// [`BuildError`] if a domain is not a valid name.
    pub(super) fn search(&self) -> Result<Vec<String>, BuildError> {
        self.search.iter().map(|domain| Ok(parse(domain)?.to_string())).collect()
    }

    /// The options of resolv.conf(5).
    ///
    /// # Errors
    /// [`BuildError`] if an option is not a single word.
    pub(super) fn options(&self) -> Result<Vec<String>, BuildError> {
        let is_word =
            |option: &String| !option.is_empty() && option.bytes().all(|byte| byte.is_ascii_graphic());
        match self.options.iter().find(|option| !is_word(option)) {
            Some(option) => Err(BuildError::DnsOption(option.clone())),
            None => Ok(self.options.clone()),
        }
    }
}

fn parse(name: &str) -> Result<HostName, BuildError> {
    HostName::parse(name)
        .map_err(|problem| BuildError::Name { name: name.to_owned(), problem: problem.to_string() })
}
