//! The root of a crate: which top-level modules it has, in which order, and what each name in it stands for.

use std::collections::BTreeMap;

use syn::{Item, ItemMod};

use crate::syntax;

/// `lib.rs`, read.
pub(crate) struct Root {
    /// The top-level modules in the order in which they are declared. Those that only tests compile are left out.
    pub(crate) modules: Vec<ItemMod>,
    reexports: BTreeMap<String, Origin>,
}

/// Where a name at the root comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This top-level module, or something in it.
    Module(String),
    OtherCrate,
}

impl Root {
    pub(crate) fn new(items: Vec<Item>) -> Self {
        let mut root = Self { modules: Vec::new(), reexports: BTreeMap::new() };
        let mut reexported = Vec::new();
        for item in items {
            if let Item::Use(item) = item {
                reexported.extend(syntax::used(&item.tree));
            } else if let Item::Mod(module) = item
                && !syntax::is_test_only(&module.attrs)
            {
                root.modules.push(module);
            }
        }
        for (path, name) in reexported {
            let mut words = path.words.into_iter().skip_while(|word| word == "crate" || word == "self");
            let first = words.next().unwrap_or_default();
            let origin = if root.has(&first) { Origin::Module(first) } else { Origin::OtherCrate };
            root.reexports.insert(name, origin);
        }
        root.reexports.remove("*");
        root
    }

    /// `None` if the name is defined in `lib.rs` itself, or reaches it through a glob.
    pub(crate) fn origin(&self, name: &str) -> Option<Origin> {
        if self.has(name) {
            return Some(Origin::Module(name.to_owned()));
        }
        self.reexports.get(name).cloned()
    }

    fn has(&self, name: &str) -> bool {
        self.modules.iter().any(|module| module.ident == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(text: &str) -> Root {
        Root::new(syn::parse_file(text).unwrap().items)
    }

    fn module(name: &str) -> Option<Origin> {
        Some(Origin::Module(name.to_owned()))
    }

    #[test]
    fn modules_stand_in_the_order_of_their_declarations() {
        let root = root("mod b; #[cfg(test)] mod testing; pub mod a;");
        let names: Vec<String> = root.modules.iter().map(|module| module.ident.to_string()).collect();
        assert_eq!(names, ["b", "a"]);
    }

    #[test]
    fn a_reexport_stands_for_its_module() {
        let root = root("mod a; mod b; pub use a::{B, c::D as E}; pub use crate::b::F;");
        assert_eq!(root.origin("B"), module("a"));
        assert_eq!(root.origin("E"), module("a"));
        assert_eq!(root.origin("F"), module("b"));
        assert_eq!(root.origin("b"), module("b"));
    }

    #[test]
    fn reexports_of_other_crates_belong_to_no_module() {
        assert_eq!(root("mod a; pub use other::A;").origin("A"), Some(Origin::OtherCrate));
    }

    #[test]
    fn a_function_with_the_name_of_its_module_is_found_there() {
        assert_eq!(root("pub mod join; pub use join::join;").origin("join"), module("join"));
    }

    #[test]
    fn what_lib_rs_defines_itself_has_no_origin() {
        assert_eq!(root("mod a; pub use a::*; pub const B: u8 = 0;").origin("B"), None);
    }
}
