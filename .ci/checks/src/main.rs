//! Checks of this repository that the compiler does not make. `.ci/run` calls them.
//!
//! Each check prints what it found wrong, one finding a line, and fails if there was anything.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]
#![forbid(unsafe_code)]

mod graph;
mod syntax;
mod imports;
mod root;
mod crate_source;
mod layers;
mod metadata;
mod policy;
mod dependencies;
mod purity;

use std::error::Error;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: nsnet-checks CHECK, in the root of the repository

Checks:
  layers DIRECTORY...     In each of these crates, top-level modules import only from those declared above them
  dependencies            Licences, versions and sources of all dependencies are as deny.toml says, and none that
                          users build needs a newer Rust than this workspace
  pure PACKAGE NAME...    The package depends on none of these, directly or indirectly
";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One thing that is wrong.
type Finding = String;

fn main() -> ExitCode {
    match check() {
        Ok(findings) if findings.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            println!();
            findings.iter().for_each(|finding| println!("FAILED: {finding}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("nsnet-checks: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check() -> Result<Vec<Finding>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["layers", ref directories @ ..] if !directories.is_empty() => layers::check(directories),
        ["dependencies"] => dependencies::check(),
        ["pure", package, ref names @ ..] if !names.is_empty() => purity::check(package, names),
        _ => Err(USAGE.into()),
    }
}
