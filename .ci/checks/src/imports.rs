//! What a module takes from the root of its crate: `use crate::link::Frame`, `super::super::link::send()`.
//!
//! Paths are found wherever they stand: in `use`, in code and types, and in the tokens of macros and attributes.
//! Passed over are code that only tests compile, links in documentation, and the `crate` of `pub(in crate::link)`.

use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, Meta, VisRestricted};

use crate::syntax::{self, Path};

/// A name taken from the root of the crate.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// `*` for a glob.
    pub(crate) name: String,
    pub(crate) line: usize,
}

/// What a search has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) imports: Vec<Import>,
    /// Modules declared here whose text stands in files of their own.
    pub(crate) children: Vec<Child>,
}

/// A module in a file of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Child {
    /// Several words if the declaration stands in inline modules.
    pub(crate) name: Vec<String>,
    /// What `#[path = ".."]` says.
    pub(crate) file: Option<String>,
}

/// Searches the text of a module `depth` levels below the root.
pub(crate) fn find(items: &[Item], depth: usize) -> Found {
    let mut search = Search::at(depth);
    items.iter().for_each(|item| search.visit_item(item));
    search.found
}

/// Searches the declaration of a top-level module.
pub(crate) fn find_in_declaration(module: &ItemMod) -> Found {
    let mut search = Search::at(0);
    search.visit_item_mod(module);
    search.found
}

struct Search {
    depth: usize,
    /// The inline modules around what is being searched.
    inline: Vec<String>,
    found: Found,
}

impl Search {
    fn at(depth: usize) -> Self {
        Self { depth, inline: Vec::new(), found: Found::default() }
    }

    /// Notes a path if it leads to the root of the crate.
    fn note(&mut self, path: &Path) {
        let words = path.words.iter().map(String::as_str).skip_while(|word| *word == "self");
        let mut words: &[&str] = &words.collect::<Vec<_>>();
        if let ["crate", rest @ ..] = words {
            words = rest;
        } else {
            let ups = words.iter().take_while(|word| **word == "super").count();
            if ups == 0 || ups < self.depth + self.inline.len() {
                return;
            }
            words = &words[ups..];
        }
        let name = words.first().copied().unwrap_or("*").to_owned();
        self.found.imports.push(Import { name, line: path.line });
    }

    fn note_tokens(&mut self, tokens: &proc_macro2::TokenStream) {
        syntax::paths_in(tokens).iter().for_each(|path| self.note(path));
    }
}

/// Visits what is below a node, unless only tests compile it.
macro_rules! pass_over_tests {
    ($($visit:ident: $node:ident),* $(,)?) => {
        $(fn $visit(&mut self, node: &'ast syn::$node) {
            if !syntax::is_test_only(&node.attrs) {
                visit::$visit(self, node);
            }
        })*
    };
}

impl<'ast> Visit<'ast> for Search {
    pass_over_tests! {
        visit_item_const: ItemConst,
        visit_item_enum: ItemEnum,
        visit_item_fn: ItemFn,
        visit_item_impl: ItemImpl,
        visit_item_macro: ItemMacro,
        visit_item_static: ItemStatic,
        visit_item_struct: ItemStruct,
        visit_item_trait: ItemTrait,
        visit_item_type: ItemType,
        visit_impl_item_const: ImplItemConst,
        visit_impl_item_fn: ImplItemFn,
        visit_impl_item_type: ImplItemType,
        visit_trait_item_fn: TraitItemFn,
        visit_field: Field,
        visit_variant: Variant,
        visit_arm: Arm,
        visit_local: Local,
        visit_expr_block: ExprBlock,
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if syntax::is_test_only(&module.attrs) {
            return;
        }
        self.inline.push(module.ident.to_string());
        match &module.content {
            Some((_, items)) => items.iter().for_each(|item| self.visit_item(item)),
            None => self
                .found
                .children
                .push(Child { name: self.inline.clone(), file: syntax::path_attribute(&module.attrs) }),
        }
        self.inline.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !syntax::is_test_only(&item.attrs) {
            syntax::used(&item.tree).iter().for_each(|(path, _)| self.note(path));
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.note(&path.into());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.note(&(&call.path).into());
        self.note_tokens(&call.tokens);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.note_tokens(&list.tokens);
        }
    }

    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn names(text: &str, depth: usize) -> Vec<String> {
        let file = syn::parse_file(text).unwrap();
        find(&file.items, depth).imports.into_iter().map(|import| import.name).collect()
    }

    #[test]
    fn paths_are_found_in_imports_code_and_types() {
        assert_eq!(names("use crate::a::{B, c::D}; use std::fmt;", 1), ["a", "a"]);
        assert_eq!(names("fn f(x: crate::a::B) -> Vec<crate::c::D> { crate::e::f() }", 1), ["a", "c", "e"]);
        assert_eq!(names("fn f() { use crate::a; a::b() }", 1), ["a"]);
        assert_eq!(names("use crate::*;", 1), ["*"]);
    }

    #[test]
    fn paths_are_found_in_macros_and_attributes() {
        assert_eq!(names("fn f() { vec![1, crate::a::b(), [super::c::D]]; }", 1), ["a", "c"]);
        assert_eq!(names("crate::a! { x: crate::b::C }", 1), ["a", "b"]);
        assert_eq!(names("macro_rules! m { () => { $crate::a::b() } }", 1), ["a"]);
        assert_eq!(names("#[derive(crate::a::B)] struct S;", 1), ["a"]);
        assert_eq!(names("m! { pub(crate) fn f() {} x::crate_a; }", 1), Vec::<String>::new());
    }

    #[test]
    fn super_counts_from_the_module_it_stands_in() {
        assert_eq!(names("use super::a::B;", 1), ["a"]);
        assert_eq!(names("use super::a::B;", 2), Vec::<String>::new());
        assert_eq!(names("use super::super::a::B;", 2), ["a"]);
        assert_eq!(names("mod inner { use super::a; use super::super::b; }", 1), ["b"]);
        assert_eq!(names("use self::super::a::B;", 1), ["a"]);
    }

    #[test]
    fn what_only_tests_compile_is_passed_over() {
        assert_eq!(names("#[cfg(test)] mod tests { use crate::a; }", 1), Vec::<String>::new());
        assert_eq!(names("#[cfg(all(test, unix))] use crate::a;", 1), Vec::<String>::new());
        assert_eq!(names("impl S { #[cfg(test)] fn f() { crate::a::b() } }", 1), Vec::<String>::new());
        assert_eq!(names("#[cfg(any(test, unix))] use crate::a;", 1), ["a"]);
        assert_eq!(names("#[cfg(not(test))] use crate::a;", 1), ["a"]);
    }

    #[test]
    fn visibility_and_documentation_are_no_imports() {
        let text = "/// See [`crate::a`].\n#[doc = \"crate::b\"]\npub(in crate::c) fn f() {}";
        assert_eq!(names(text, 1), Vec::<String>::new());
    }

    #[test]
    fn modules_in_other_files_are_listed() {
        let text = "mod a; mod b { mod c; } #[cfg(test)] mod tests; #[path = \"e.rs\"] mod d;";
        let children = find(&syn::parse_file(text).unwrap().items, 1).children;
        let names: Vec<String> = children.iter().map(|child| child.name.join("::")).collect();
        assert_eq!(names, ["a", "b::c", "d"]);
        assert_eq!(children[2].file.as_deref(), Some("e.rs"));
    }

    #[test]
    fn an_import_has_the_line_of_its_name() {
        let file = syn::parse_file("use crate::{\n    a::B,\n    c::D,\n};").unwrap();
        let lines: Vec<usize> = find(&file.items, 1).imports.iter().map(|import| import.line).collect();
        assert_eq!(lines, [2, 3]);
    }
}
