//! What a package must not be built of.
//!
//! `cargo tree` answers for the package alone: the features that other members of the workspace turn on do not count.

use std::process::{Command, Stdio};

use crate::{Finding, Result};

/// Checks that none of `names` is among the normal dependencies of a package of the workspace, direct or indirect.
pub(crate) fn check(package: &str, names: &[&str]) -> Result<Vec<Finding>> {
    let findings = impurities(&tree(package)?, package, names);
    if findings.is_empty() {
        println!("{package}: built of none of {}", names.join(", "));
    }
    Ok(findings)
}

/// One line for each package that this one is built of: its depth, its name, its version.
fn tree(package: &str) -> Result<String> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "depth", "--package", package])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo tree --package {package}: {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn impurities(tree: &str, package: &str, names: &[&str]) -> Vec<Finding> {
    let mut chain: Vec<&str> = Vec::new();
    let mut findings = Vec::new();
    for line in tree.lines() {
        let end_of_depth = line.find(|character: char| !character.is_ascii_digit()).unwrap_or(line.len());
        let (depth, rest) = line.split_at(end_of_depth);
        let (Ok(depth), Some(name)) = (depth.parse(), rest.split_whitespace().next()) else { continue };
        chain.truncate(depth);
        chain.push(name);
        if names.contains(&name) {
            findings.push(format!("{package} is not pure: {}", chain.join(" → ")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
0pure v0.1.0 (/repository)
1middle v1.0.0
2tokio v1.0.0
1serde v1.0.0 (*)
";

    #[test]
    fn an_indirect_dependency_is_found_with_its_chain() {
        let findings = impurities(TREE, "pure", &["tokio", "socket2"]);
        assert_eq!(findings, ["pure is not pure: pure → middle → tokio"]);
    }

    #[test]
    fn what_only_sounds_alike_does_not_count() {
        assert!(impurities(TREE, "pure", &["tok", "mid"]).is_empty());
    }

    #[test]
    fn an_unknown_package_is_an_error() {
        assert!(check("no-such-package", &["tokio"]).is_err());
    }
}
