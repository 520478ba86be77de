//! What all dependencies have to be like: licences, versions, sources, and the Rust that they need.

use std::collections::BTreeMap;

use spdx::{Expression, Licensee, ParseMode};

use crate::metadata::{Metadata, Package};
use crate::policy::Policy;
use crate::{Finding, Result};

pub(crate) fn check() -> Result<Vec<Finding>> {
    let policy = Policy::read()?;
    let metadata = Metadata::read(&policy.graph.targets)?;
    let mut findings = licences(&metadata.packages, &policy.licenses.allow)?;
    let skipped: Vec<&str> = policy.bans.skip.iter().map(|skip| skip.package.as_str()).collect();
    findings.extend(duplicates(&metadata.packages, &skipped));
    findings.extend(sources(&metadata, &policy.sources.allow_registry));
    findings.extend(rust_versions(&metadata));
    if findings.is_empty() {
        println!("{} packages, as deny.toml wants them", metadata.packages.len());
    }
    Ok(findings)
}

fn licences(packages: &[Package], allowed: &[String]) -> Result<Vec<Finding>> {
    let allowed: Vec<Licensee> =
        allowed.iter().map(|name| Licensee::parse(name)).collect::<std::result::Result<_, _>>()?;
    let is_allowed = |package: &Package| {
        // Old packages write MIT/Apache-2.0.
        let expression =
            Expression::parse_mode(package.license.as_deref().unwrap_or_default(), ParseMode::LAX);
        expression.is_ok_and(|expression| {
            expression.evaluate(|required| allowed.iter().any(|licence| licence.satisfies(required)))
        })
    };
    let others = packages.iter().filter(|package| !is_allowed(package));
    Ok(others
        .map(|package| {
            let licence = package.license.as_deref().unwrap_or("none that Cargo.toml names");
            format!("{}: its licence is {licence}, which deny.toml does not allow", named(package))
        })
        .collect())
}

/// Packages that are there in several versions, and exceptions that are needed no more.
fn duplicates(packages: &[Package], skipped: &[&str]) -> Vec<Finding> {
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in packages {
        by_name.entry(&package.name).or_default().push(named(package));
    }
    by_name.retain(|_, versions| versions.len() > 1);
    let needless = skipped.iter().filter(|skip| !by_name.values().flatten().any(|name| name == *skip));
    let mut findings: Vec<Finding> = needless
        .map(|skip| format!("{skip}: deny.toml tolerates it besides another version, but there is none"))
        .collect();
    for versions in by_name.values_mut() {
        versions.retain(|name| !skipped.contains(&name.as_str()));
        if versions.len() > 1 {
            findings.push(format!("{}: one package in several versions", versions.join(", ")));
        }
    }
    findings
}

fn sources(metadata: &Metadata, allowed: &[String]) -> Vec<Finding> {
    let is_allowed = |package: &&Package| match &package.source {
        Some(source) => {
            source.strip_prefix("registry+").is_some_and(|url| allowed.iter().any(|allowed| allowed == url))
        }
        None => metadata.workspace_members.contains(&package.id),
    };
    let others = metadata.packages.iter().filter(|package| !is_allowed(package));
    others
        .map(|package| {
            let source = package.source.as_deref().unwrap_or("a directory outside the workspace");
            format!("{}: it comes from {source}, which deny.toml does not allow", named(package))
        })
        .collect()
}

/// Packages that users build, and that need a newer Rust than we promise to need.
fn rust_versions(metadata: &Metadata) -> Vec<Finding> {
    let members = metadata.workspace_members.iter().filter_map(|id| metadata.package(id));
    let mut findings = Vec::new();
    for member in
        members.filter(|member| member.publish.as_ref().is_none_or(|registries| !registries.is_empty()))
    {
        let promised = member.rust_version.as_deref().unwrap_or_default();
        for id in metadata.built_of(&member.id).into_keys() {
            let Some(package) = metadata.package(id) else { continue };
            let needed = package.rust_version.as_deref().unwrap_or_default();
            if parts(needed) > parts(promised) {
                findings.push(format!(
                    "{}: it needs Rust {needed}, but {} promises {promised}",
                    named(package),
                    member.name
                ));
            }
        }
    }
    findings
}

/// `1.91` is `[1, 91, 0]`.
fn parts(version: &str) -> [u64; 3] {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

fn named(package: &Package) -> String {
    format!("{}@{}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const REGISTRY: &str = "https://github.com/rust-lang/crates.io-index";

    fn package(name: &str, version: &str) -> Value {
        json!({ "id": format!("{name}@{version}"), "name": name, "version": version, "license": "MIT",
            "source": format!("registry+{REGISTRY}") })
    }

    fn with(mut package: Value, key: &str, value: Value) -> Value {
        package[key] = value;
        package
    }

    fn packages(packages: &[Value]) -> Vec<Package> {
        packages.iter().map(|package| serde_json::from_value(package.clone()).unwrap()).collect()
    }

    /// A workspace of `member`, which depends on `dependency`.
    fn workspace(member: Value, dependency: Value, kind: Value) -> Metadata {
        let edge = json!({ "pkg": dependency["id"], "dep_kinds": [{ "kind": kind }] });
        let nodes = json!([
            { "id": member["id"], "deps": [edge] },
            { "id": dependency["id"], "deps": [] },
        ]);
        let members = json!([member["id"]]);
        serde_json::from_value(json!({
            "packages": [member, dependency], "workspace_members": members, "resolve": { "nodes": nodes },
        }))
        .unwrap()
    }

    #[track_caller]
    fn licence_is_allowed(licence: &str) -> bool {
        let packages = packages(&[with(package("a", "1.0.0"), "license", licence.into())]);
        licences(&packages, &["MIT".into(), "Unicode-3.0".into()]).unwrap().is_empty()
    }

    #[test]
    fn a_licence_is_allowed_if_one_choice_is() {
        assert!(licence_is_allowed("MIT"));
        assert!(licence_is_allowed("GPL-3.0-only OR MIT"));
        assert!(licence_is_allowed("Apache-2.0/MIT"));
        assert!(licence_is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!licence_is_allowed("MIT AND OpenSSL"));
        assert!(!licence_is_allowed("GPL-3.0-only"));
        assert!(!licence_is_allowed("non-standard"));
        assert!(!licence_is_allowed(""));
    }

    #[test]
    fn several_versions_of_a_package_are_found() {
        let packages = packages(&[package("a", "1.0.0"), package("b", "1.0.0"), package("a", "2.0.0")]);
        assert_eq!(duplicates(&packages, &[]), ["a@1.0.0, a@2.0.0: one package in several versions"]);
        assert_eq!(duplicates(&packages, &["a@1.0.0"]), Vec::<String>::new());
    }

    #[test]
    fn an_exception_that_is_not_needed_is_found() {
        let findings = duplicates(&packages(&[package("a", "2.0.0")]), &["a@2.0.0"]);
        assert_eq!(findings, ["a@2.0.0: deny.toml tolerates it besides another version, but there is none"]);
    }

    #[test]
    fn sources_are_the_workspace_and_allowed_registries() {
        let member = with(package("member", "0.1.0"), "source", Value::Null);
        let allowed = [REGISTRY.to_owned()];
        let good = workspace(member.clone(), package("a", "1.0.0"), Value::Null);
        assert_eq!(sources(&good, &allowed), Vec::<String>::new());
        let git = with(package("a", "1.0.0"), "source", "git+https://example.com/a".into());
        let finding = "a@1.0.0: it comes from git+https://example.com/a, which deny.toml does not allow";
        assert_eq!(sources(&workspace(member.clone(), git, Value::Null), &allowed), [finding]);
        let outside = with(package("a", "1.0.0"), "source", Value::Null);
        assert_eq!(sources(&workspace(member, outside, Value::Null), &allowed).len(), 1);
    }

    #[test]
    fn what_users_build_needs_no_newer_rust_than_promised() {
        let member = with(package("member", "0.1.0"), "rust_version", "1.91".into());
        let newer = with(package("a", "1.0.0"), "rust_version", "1.92.1".into());
        assert_eq!(
            rust_versions(&workspace(member.clone(), newer.clone(), Value::Null)),
            ["a@1.0.0: it needs Rust 1.92.1, but member promises 1.91"]
        );
        let same = with(newer.clone(), "rust_version", "1.91.0".into());
        assert!(rust_versions(&workspace(member.clone(), same, Value::Null)).is_empty());
        assert!(rust_versions(&workspace(member.clone(), newer.clone(), "dev".into())).is_empty());
        let unpublished = with(member, "publish", json!([]));
        assert!(rust_versions(&workspace(unpublished, newer, Value::Null)).is_empty());
    }
}
