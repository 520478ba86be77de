//! The source of one crate: its root, and what each top-level module imports.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use syn::ItemMod;

use crate::Result;
use crate::imports::{self, Child, Import};
use crate::root::Root;

/// How a file is read. Tests keep their files in memory.
pub(crate) type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// The source of a library.
pub(crate) struct CrateSource<'a> {
    directory: PathBuf,
    read: Read<'a>,
}

/// An import and the file it stands in.
pub(crate) struct Located {
    pub(crate) import: Import,
    pub(crate) file: PathBuf,
}

impl<'a> CrateSource<'a> {
    /// `directory` is the one that `lib.rs` is in.
    pub(crate) fn new(directory: PathBuf, read: Read<'a>) -> Self {
        Self { directory, read }
    }

    pub(crate) fn root(&self) -> Result<Root> {
        let path = self.directory.join("lib.rs");
        Ok(Root::new(self.parse(&path)?.items))
    }

    /// What a top-level module imports, all modules below it included.
    pub(crate) fn imports(&self, module: &ItemMod) -> Result<Vec<Located>> {
        let lib = self.directory.join("lib.rs");
        let declaration = imports::find_in_declaration(module);
        let mut imports: Vec<Located> = locate(declaration.imports, &lib).collect();
        let mut declared = children(&[], &lib, declaration.children);
        while let Some(module) = declared.pop() {
            let (file, text) = self.text_of(&module)?;
            let found = imports::find(&parse(&file, &text)?.items, module.name.len());
            declared.extend(children(&module.name, &file, found.children));
            imports.extend(locate(found.imports, &file));
        }
        Ok(imports)
    }

    /// A module's text is in `a/b.rs`, in `a/b/mod.rs`, or where the declaration says.
    fn text_of(&self, module: &Declared) -> Result<(PathBuf, String)> {
        let path = module.name.iter().fold(self.directory.clone(), |path, name| path.join(name));
        let candidates = match &module.file {
            Some(file) => vec![file.clone()],
            None => vec![path.with_extension("rs"), path.join("mod.rs")],
        };
        for file in candidates {
            match (self.read)(&file) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{}: {error}", file.display()).into()),
                Ok(text) => return Ok((file, text)),
            }
        }
        Err(format!("the file of the module {} is missing", module.name.join("::")).into())
    }

    fn parse(&self, file: &Path) -> Result<syn::File> {
        let text = (self.read)(file).map_err(|error| format!("{}: {error}", file.display()))?;
        parse(file, &text)
    }
}

/// A module in a file of its own.
struct Declared {
    /// From the root.
    name: Vec<String>,
    /// Where the declaration says that it is.
    file: Option<PathBuf>,
}

/// What the module `name`, whose text is in `file`, declares.
fn children(name: &[String], file: &Path, children: Vec<Child>) -> Vec<Declared> {
    let declared = children.into_iter().map(|child| Declared {
        name: [name, &child.name].concat(),
        file: child.file.map(|path| file.with_file_name(path)),
    });
    declared.collect()
}

fn parse(file: &Path, text: &str) -> Result<syn::File> {
    syn::parse_file(text).map_err(|error| {
        let line = error.span().start().line;
        format!("{}:{line}: {error}", file.display()).into()
    })
}

fn locate(imports: Vec<Import>, file: &Path) -> impl Iterator<Item = Located> {
    imports.into_iter().map(|import| Located { import, file: file.to_owned() })
}
