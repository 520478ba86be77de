//! What a package must not be built of.

use crate::metadata::Metadata;
use crate::policy::Policy;
use crate::{Finding, Result};

/// Checks that none of `names` is among the normal dependencies of a package of the workspace, direct or indirect.
pub(crate) fn check(package: &str, names: &[&str]) -> Result<Vec<Finding>> {
    let metadata = Metadata::read(&Policy::read()?.graph.targets)?;
    let findings = impurities(&metadata, package, names)?;
    if findings.is_empty() {
        println!("{package}: built of none of {}", names.join(", "));
    }
    Ok(findings)
}

fn impurities(metadata: &Metadata, package: &str, names: &[&str]) -> Result<Vec<Finding>> {
    let mut members = metadata.workspace_members.iter();
    let id = members
        .find(|id| metadata.package(id).is_some_and(|member| member.name == package))
        .ok_or_else(|| format!("the workspace has no package {package}"))?;
    let chains = metadata.built_of(id).into_values();
    let impure = chains.filter(|chain| chain.last().is_some_and(|name| names.contains(name)));
    Ok(impure.map(|chain| format!("{package} is not pure: {}", chain.join(" → "))).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// `pure` → `middle` → `tokio`, and `pure` → `nix` in tests only.
    fn metadata() -> Metadata {
        let package = |name: &str| json!({ "id": name, "name": name, "version": "1.0.0" });
        let edge = |name: &str, kind: Option<&str>| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        serde_json::from_value(json!({
            "packages": [package("pure"), package("middle"), package("tokio"), package("nix")],
            "workspace_members": ["pure"],
            "resolve": { "nodes": [
                { "id": "pure", "deps": [edge("middle", None), edge("nix", Some("dev"))] },
                { "id": "middle", "deps": [edge("tokio", None)] },
                { "id": "tokio", "deps": [] },
                { "id": "nix", "deps": [] },
            ] },
        }))
        .unwrap()
    }

    #[test]
    fn an_indirect_dependency_is_found_with_its_chain() {
        let findings = impurities(&metadata(), "pure", &["tokio", "socket2"]).unwrap();
        assert_eq!(findings, ["pure is not pure: pure → middle → tokio"]);
    }

    #[test]
    fn what_only_tests_depend_on_does_not_count() {
        assert_eq!(impurities(&metadata(), "pure", &["nix"]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_unknown_package_is_an_error() {
        let error = impurities(&metadata(), "stack", &["tokio"]).unwrap_err().to_string();
        assert_eq!(error, "the workspace has no package stack");
    }
}
