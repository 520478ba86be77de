//! What `cargo metadata` says about the packages of the workspace and all they depend on.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Result;

/// The part of cargo's answer that is used here, see `cargo metadata --help`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_members: Vec<Id>,
    resolve: Resolve,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
pub(crate) struct Id(String);

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: Id,
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: Option<String>,
    /// `None` for a directory.
    pub(crate) source: Option<String>,
    pub(crate) rust_version: Option<String>,
    /// The registries that it may be published to. `None`: any.
    pub(crate) publish: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: Id,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: Id,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// `None` for a normal one; otherwise `dev` or `build`.
    kind: Option<String>,
}

impl Metadata {
    /// Asks cargo, for builds on these targets.
    pub(crate) fn read(targets: &[String]) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["metadata", "--format-version=1", "--locked", "--all-features"])
            .stderr(Stdio::inherit());
        targets.iter().for_each(|target| {
            command.args(["--filter-platform", target]);
        });
        let output = command.output().map_err(|error| format!("run cargo metadata: {error}"))?;
        if !output.status.success() {
            return Err(format!("cargo metadata: {}", output.status).into());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| format!("read cargo metadata: {error}").into())
    }

    pub(crate) fn package(&self, id: &Id) -> Option<&Package> {
        self.packages.iter().find(|package| package.id == *id)
    }

    /// The packages that a package is built of, in normal dependencies, itself included. Each has the chain of names that
    /// leads there.
    pub(crate) fn built_of(&self, id: &Id) -> BTreeMap<&Id, Vec<&str>> {
        let mut chains = BTreeMap::new();
        let mut to_visit = vec![(id, Vec::new())];
        while let Some((id, mut chain)) = to_visit.pop() {
            let Some(package) = self.package(id).filter(|package| !chains.contains_key(&package.id)) else {
                continue;
            };
            chain.push(package.name.as_str());
            to_visit.extend(self.normal_dependencies(id).map(|dependency| (dependency, chain.clone())));
            chains.insert(&package.id, chain);
        }
        chains
    }

    fn normal_dependencies(&self, id: &Id) -> impl Iterator<Item = &Id> {
        let nodes = self.resolve.nodes.iter().filter(move |node| node.id == *id);
        let dependencies = nodes.flat_map(|node| &node.deps);
        let normal =
            dependencies.filter(|dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        normal.map(|dependency| &dependency.pkg)
    }
}
