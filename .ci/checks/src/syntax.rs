//! What this program reads off Rust's syntax: paths, and whether only tests compile something.

use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::{Attribute, Expr, ExprLit, Lit, Meta, UseTree};

/// A path as it is written: `["crate", "link", "Frame"]`. A glob import ends in `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) words: Vec<String>,
    /// Of its last word.
    pub(crate) line: usize,
}

impl Path {
    fn of(ident: &Ident) -> Self {
        Self { words: vec![ident.to_string()], line: ident.span().start().line }
    }

    fn push(&mut self, ident: &Ident) {
        self.words.push(ident.to_string());
        self.line = ident.span().start().line;
    }
}

impl From<&syn::Path> for Path {
    fn from(path: &syn::Path) -> Self {
        let mut words = path.segments.iter().map(|segment| &segment.ident);
        let mut result = words.next().map_or(Self { words: Vec::new(), line: 0 }, Self::of);
        words.for_each(|word| result.push(word));
        result
    }
}

/// The paths that a `use` names, each with the name it has from there on.
pub(crate) fn used(tree: &UseTree) -> Vec<(Path, String)> {
    match tree {
        UseTree::Path(path) => {
            let mut below = used(&path.tree);
            below.iter_mut().for_each(|(path_below, _)| path_below.words.insert(0, path.ident.to_string()));
            below
        }
        UseTree::Name(name) => vec![(Path::of(&name.ident), name.ident.to_string())],
        UseTree::Rename(rename) => vec![(Path::of(&rename.ident), rename.rename.to_string())],
        UseTree::Glob(glob) => {
            let line = glob.star_token.spans[0].start().line;
            vec![(Path { words: vec!["*".into()], line }, "*".into())]
        }
        UseTree::Group(group) => group.items.iter().flat_map(used).collect(),
    }
}

/// The paths of two words and more that stand in the tokens of a macro or an attribute.
pub(crate) fn paths_in(tokens: &TokenStream) -> Vec<Path> {
    let mut paths = Vec::new();
    let mut path: Option<Path> = None;
    let mut colons = 0;
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(word) => match &mut path {
                Some(path) if colons == 2 => path.push(&word),
                Some(_) | None => paths.extend(path.replace(Path::of(&word))),
            },
            TokenTree::Punct(punct) if punct.as_char() == ':' && path.is_some() => {
                colons += 1;
                continue;
            }
            TokenTree::Group(group) => {
                paths.extend(path.take());
                paths.extend(paths_in(&group.stream()));
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => paths.extend(path.take()),
        }
        colons = 0;
    }
    paths.extend(path);
    paths.retain(|path| path.words.len() > 1);
    paths
}

/// Whether only tests compile what has these attributes: `#[cfg(test)]`, `#[cfg(all(test, ..))]`.
pub(crate) fn is_test_only(attributes: &[Attribute]) -> bool {
    let conditions = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    conditions.filter_map(|attribute| attribute.parse_args::<Meta>().ok()).any(|condition| match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) => {
            let is_test = |token| matches!(token, TokenTree::Ident(word) if word == "test");
            list.path.is_ident("all") && list.tokens.into_iter().any(is_test)
        }
        Meta::NameValue(_) => false,
    })
}

/// The file that `#[path = ".."]` names.
pub(crate) fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    let Meta::NameValue(pair) = &attribute.meta else { return None };
    let Expr::Lit(ExprLit { lit: Lit::Str(file), .. }) = &pair.value else { return None };
    Some(file.value())
}
