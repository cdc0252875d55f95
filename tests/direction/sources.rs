//! The modules of a crate, read from their files, and the paths that each of them names.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMod, ItemUse, Macro, Meta, UseTree};

/// The path from the crate's root to a module, or to something in it.
type Names = Vec<String>;

/// A use of one module by another.
pub struct Use {
    /// The file in which the use stands, relative to the crate's folder.
    pub file: String,
    pub from: Names,
    pub to: Names,
    /// The used path as it is written.
    pub text: String,
}

/// The contents of one file.
#[derive(Default)]
struct Module {
    file: String,
    /// Paths in the file, as they are written, each after the inline modules that it stands in.
    paths: Vec<(Names, Names)>,
    /// Paths that a `use` at the file's top level has brought in, by their names there.
    brought_in: BTreeMap<String, Names>,
    /// Names of the types that the file defines.
    types: Names,
}

/// The modules of a crate, by their paths.
pub struct Sources {
    modules: BTreeMap<Names, Module>,
}

impl Sources {
    pub fn read(root: &Path, main: &str) -> Sources {
        let mut sources = Sources { modules: BTreeMap::new() };
        let folder = root.join(main).parent().expect("a file in a folder").to_owned();
        sources.read_file(root, &root.join(main), &folder, Vec::new());
        sources
    }

    /// Returns the number of files.
    pub fn count(&self) -> usize {
        self.modules.len()
    }

    /// Reads a module's file and then the files of its children, which are in `folder`.
    fn read_file(&mut self, root: &Path, path: &Path, folder: &Path, names: Names) {
        let text = std::fs::read_to_string(path).expect("a source file can be read");
        let file = syn::parse_file(&text).expect("a source file is Rust");
        let mut reader = Reader::default();
        reader.visit_file(&file);
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        let module = Module { file: shown, ..reader.module };
        for child in reader.children {
            let flat = folder.join(format!("{child}.rs"));
            let nested = folder.join(&child);
            let path: PathBuf = if flat.exists() { flat } else { nested.join("mod.rs") };
            self.read_file(root, &path, &nested, [&names[..], &[child]].concat());
        }
        self.modules.insert(names, module);
    }

    /// Returns the name of each type, with the file that defines it.
    pub fn types(&self) -> impl Iterator<Item = (&str, &str)> {
        self.modules.values().flat_map(|module| {
            module.types.iter().map(|name| (name.as_str(), module.file.as_str()))
        })
    }

    /// Returns every path in a module that leads to a module of the crate.
    pub fn uses(&self) -> impl Iterator<Item = Use> {
        self.modules.iter().flat_map(move |(from, module)| {
            module.paths.iter().filter_map(move |(inline, path)| {
                let to = self.module_of(self.absolute(from, inline, path)?);
                let (file, from) = (module.file.clone(), from.clone());
                Some(Use { file, from, to, text: path.join("::") })
            })
        })
    }

    /// Returns a path from the crate's root. `None` if the path leads into another crate, or begins
    /// with a name that a `use` has brought in: that `use` counts itself.
    fn absolute(&self, from: &[String], inline: &[String], path: &[String]) -> Option<Names> {
        let mut at = [from, inline].concat();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &rest[1..]),
            "self" => rest = &rest[1..],
            "super" => {}
            child => {
                let child = [&at[..], &[child.to_owned()]].concat();
                self.modules.contains_key(&child).then_some(())?;
            }
        }
        while rest.first().is_some_and(|name| name == "super") {
            at.pop();
            rest = &rest[1..];
        }
        Some([&at[..], rest].concat())
    }

    /// Returns the module in which a path ends, past the names that are only passed on.
    fn module_of(&self, mut path: Names) -> Names {
        // A name may be passed on through several modules; the bound is for names that lead in a
        // circle.
        for _ in 0..16 {
            let len = (0..=path.len()).rev().find(|len| self.modules.contains_key(&path[..*len]));
            let (module, rest) = path.split_at(len.unwrap_or(0));
            let brought_in =
                rest.first().and_then(|name| self.modules[module].brought_in.get(name));
            match brought_in.and_then(|named| self.absolute(module, &[], named)) {
                Some(origin) => path = [&origin[..], &rest[1..]].concat(),
                None => return module.to_vec(),
            }
        }
        path
    }
}

/// A visitor that collects the contents of one file.
#[derive(Default)]
struct Reader {
    module: Module,
    children: Vec<String>,
    inline: Names,
}

impl Reader {
    fn note(&mut self, path: Names) {
        self.module.paths.push((self.inline.clone(), path));
    }

    fn read_tree(&mut self, tree: &UseTree, mut before: Names) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.read_tree(&path.tree, before);
            }
            UseTree::Name(name) => self.bring_in(&name.ident, &name.ident, before),
            UseTree::Rename(name) => self.bring_in(&name.ident, &name.rename, before),
            UseTree::Glob(_) => self.note(before),
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.read_tree(tree, before.clone()));
            }
        }
    }

    fn bring_in(&mut self, name: &syn::Ident, here: &syn::Ident, mut path: Names) {
        let mut here = here.to_string();
        if name != "self" {
            path.push(name.to_string());
        } else if here == "self" {
            here = path.last().cloned().unwrap_or_default();
        }
        if self.inline.is_empty() {
            self.module.brought_in.insert(here, path.clone());
        }
        self.note(path);
    }

    /// Notes the paths within a macro's arguments, which have no syntax tree.
    fn read_tokens(&mut self, tokens: TokenStream) {
        let mut path = Names::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
                TokenTree::Ident(name) if colons == 2 && !path.is_empty() => {
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Ident(name) => {
                    self.note(std::mem::replace(&mut path, vec![name.to_string()]));
                    colons = 0;
                }
                other => {
                    self.note(std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.read_tokens(group.stream());
                    }
                }
            }
        }
        self.note(path);
    }
}

impl<'a> Visit<'a> for Reader {
    fn visit_item(&mut self, item: &'a Item) {
        let attributes = match item {
            Item::Mod(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            _ => &Vec::new(),
        };
        let name = match item {
            Item::Struct(item) => Some(&item.ident),
            Item::Enum(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        self.module.types.extend(name.map(syn::Ident::to_string));
        if !attributes.iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        let name = item.ident.to_string();
        match &item.content {
            None => self.children.push(name),
            Some(_) => {
                self.inline.push(name);
                visit::visit_item_mod(self, item);
                self.inline.pop();
            }
        }
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        self.read_tree(&item.tree, Vec::new());
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.note(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'a Macro) {
        self.read_tokens(item.tokens.clone());
        visit::visit_macro(self, item);
    }
}

/// Reports whether an attribute is `#[cfg(test)]` or `#[cfg(any(test, fuzzing))]`.
fn is_for_tests(attribute: &Attribute) -> bool {
    match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
        }
        _ => false,
    }
}
