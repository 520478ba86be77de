//! What `deny.toml` demands of dependencies. The file has the form that `cargo deny` reads.

use std::fs;

use serde::Deserialize;

use crate::Result;

const FILE: &str = "deny.toml";

/// The part of the file that is checked here. What it says of advisories only `cargo deny` checks.
#[derive(Debug, Deserialize)]
pub(crate) struct Policy {
    pub(crate) graph: Graph,
    pub(crate) licenses: Licenses,
    pub(crate) bans: Bans,
    pub(crate) sources: Sources,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Graph {
    /// Those that nsnet is built for.
    pub(crate) targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Licenses {
    /// SPDX identifiers.
    pub(crate) allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Bans {
    /// Packages that may be there in a second version.
    pub(crate) skip: Vec<Skip>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Skip {
    /// `name@version`
    #[serde(rename = "crate")]
    pub(crate) package: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Sources {
    /// URLs of indices.
    #[serde(rename = "allow-registry")]
    pub(crate) allow_registry: Vec<String>,
}

impl Policy {
    pub(crate) fn read() -> Result<Self> {
        let text = fs::read_to_string(FILE).map_err(|error| format!("{FILE}: {error}"))?;
        toml::from_str(&text).map_err(|error| format!("{FILE}: {error}").into())
    }
}
