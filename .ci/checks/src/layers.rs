//! The order of a crate's top-level modules.
//!
//! `lib.rs` states the order: each module imports only from those declared above it. So there is no cycle among them
//! either. An import is a path that starts at the root of the crate ([`crate::imports`]); a name that the root
//! re-exports belongs to the module it comes from. Modules within a top-level module may import each other freely, and
//! tests may import anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::crate_source::{CrateSource, Read};
use crate::graph::Graph;
use crate::root::Origin;
use crate::{Finding, Result};

/// Checks the crates in these directories.
pub(crate) fn check(directories: &[&str]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for directory in directories {
        let layers = Layers::read(&Path::new(directory).join("src"), &|path| fs::read_to_string(path))?;
        let found = layers.findings(directory);
        if found.is_empty() {
            println!("{directory}: {} modules, in order", layers.modules.len());
        }
        findings.extend(found);
    }
    Ok(findings)
}

/// The top-level modules of a crate and which of them import which.
struct Layers {
    /// The lowest first.
    modules: Vec<String>,
    /// Where a module imports another, by their indices: importing, imported.
    imports: BTreeMap<(usize, usize), BTreeSet<String>>,
    /// Imports of names whose module is unknown.
    unknown: Vec<Finding>,
}

impl Layers {
    fn read(directory: &Path, read: Read<'_>) -> Result<Self> {
        let source = CrateSource::new(directory.to_owned(), read);
        let root = source.root()?;
        let modules: Vec<String> = root.modules.iter().map(|module| module.ident.to_string()).collect();
        let mut layers = Self { modules, imports: BTreeMap::new(), unknown: Vec::new() };
        for (index, module) in root.modules.iter().enumerate() {
            for located in source.imports(module)? {
                let name = &located.import.name;
                let place = format!("{}:{}", located.file.display(), located.import.line);
                match root.origin(name) {
                    Some(Origin::Module(origin)) => layers.add(index, &origin, place),
                    Some(Origin::OtherCrate) => {}
                    None => layers.unknown.push(format!(
                        "{place}: crate::{name} is no module, and lib.rs does not re-export it from one by its name"
                    )),
                }
            }
        }
        Ok(layers)
    }

    fn add(&mut self, importing: usize, imported: &str, place: String) {
        let imported = self.modules.iter().position(|module| module == imported);
        if let Some(imported) = imported.filter(|imported| *imported != importing) {
            self.imports.entry((importing, imported)).or_default().insert(place);
        }
    }

    fn findings(&self, name: &str) -> Vec<Finding> {
        let upward: Vec<Finding> = self.upward_imports(name).collect();
        let graph = Graph::new(self.modules.len(), self.imports.keys().copied());
        let cycles = graph.cycles();
        let mut findings = self.unknown.clone();
        if !upward.is_empty() && cycles.is_empty() {
            findings.push(format!("{name}: an order that holds is {}", self.names(&graph.order())));
        }
        findings.extend(upward);
        for cycle in &cycles {
            findings.push(format!("{name}: a cycle of imports joins {}", self.names(cycle)));
        }
        findings
    }

    fn upward_imports(&self, name: &str) -> impl Iterator<Item = Finding> {
        let upward = self.imports.iter().filter(|((importing, imported), _)| importing < imported);
        upward.map(move |((importing, imported), places)| {
            let (importing, imported) = (&self.modules[*importing], &self.modules[*imported]);
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            format!("{name}: `{importing}` imports `{imported}`, declared below it, at {}", places.join(", "))
        })
    }

    fn names(&self, indices: &[usize]) -> String {
        indices.iter().map(|index| self.modules[*index].as_str()).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// What is found in a crate of these files.
    fn findings(files: &[(&str, &str)]) -> Vec<Finding> {
        let read = |path: &Path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path);
            file.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        Layers::read(Path::new("src"), &read).unwrap().findings("it")
    }

    #[test]
    fn imports_from_above_are_in_order() {
        let files = [
            ("src/lib.rs", "mod low; mod high; pub use low::Low; pub use other::Other;"),
            ("src/low.rs", "pub struct Low; fn f(_: crate::Other) {}"),
            ("src/high/mod.rs", "mod part; use crate::low; use crate::Low; use part::Part;"),
            ("src/high/part.rs", "pub struct Part(super::super::low::Low); use super::f;"),
        ];
        assert_eq!(findings(&files), Vec::<String>::new());
    }

    #[test]
    fn an_import_from_below_is_found_and_an_order_proposed() {
        let files = [
            ("src/lib.rs", "mod high;\nmod low;\npub use low::Low;"),
            ("src/high.rs", "use crate::low;\n\nuse crate::Low;"),
            ("src/low.rs", ""),
        ];
        assert_eq!(
            findings(&files),
            [
                "it: an order that holds is low, high",
                "it: `high` imports `low`, declared below it, at src/high.rs:1, src/high.rs:3",
            ]
        );
    }

    #[test]
    fn a_cycle_is_found() {
        let files = [
            ("src/lib.rs", "mod a; mod b; mod c; mod d;"),
            ("src/a.rs", "use crate::c;"),
            ("src/b.rs", "fn f() { super::a::f() }"),
            ("src/c.rs", "use crate::b;"),
            ("src/d.rs", "use crate::a;"),
        ];
        assert_eq!(
            findings(&files),
            ["it: `a` imports `c`, declared below it, at src/a.rs:1", "it: a cycle of imports joins a, b, c",]
        );
    }

    #[test]
    fn a_module_deep_inside_imports_for_its_top_level_module() {
        let files = [
            ("src/lib.rs", "mod a { mod inner; }\nmod b;"),
            ("src/a/inner.rs", "mod innermost;"),
            ("src/a/inner/innermost.rs", "#[path = \"other.rs\"] mod file;\nuse super::super::super::b;"),
            ("src/a/inner/other.rs", "use crate::b;"),
            ("src/b.rs", ""),
        ];
        assert_eq!(
            findings(&files)[1],
            "it: `a` imports `b`, declared below it, at src/a/inner/innermost.rs:2, src/a/inner/other.rs:1"
        );
    }

    #[test]
    fn tests_import_anything() {
        let files = [
            ("src/lib.rs", "mod a; mod b; #[cfg(test)] mod testing;"),
            ("src/a.rs", "#[cfg(test)] mod tests { use crate::b; use crate::testing; }"),
            ("src/b.rs", "use crate::a;"),
        ];
        assert_eq!(findings(&files), Vec::<String>::new());
    }

    #[test]
    fn a_name_of_unknown_origin_is_found() {
        let files =
            [("src/lib.rs", "mod a; pub const B: u8 = 0;"), ("src/a.rs", "use crate::B; use super::*;")];
        let findings = findings(&files);
        assert!(findings[0].starts_with("src/a.rs:1: crate::B is no module"), "{findings:?}");
        assert!(findings[1].starts_with("src/a.rs:1: crate::* is no module"), "{findings:?}");
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let read = |path: &Path| {
            if path.ends_with("lib.rs") { Ok("mod a;".into()) } else { Err(io::ErrorKind::NotFound.into()) }
        };
        let error = Layers::read(Path::new("src"), &read).err().unwrap().to_string();
        assert_eq!(error, "the file of the module a is missing");
    }
}
