//! Tests that dependencies in `src/` run in one direction: the graph of which unit uses which must
//! have no circle. No two types may have the same name either.
//! `cargo test --test direction -- --nocapture` prints the graph.
//!
//! The units of a folder are its files and its folders, and those may not use one another in a
//! circle; `src/` is such a folder, so the rule holds for the modules of the crate as well as for
//! the files of each module. A folder's own `mod.rs` (or `lib.rs`) is its face: it declares its
//! units, passes their names on and calls them, and they use what it defines, as Rust demands; so
//! it is no unit of its own folder. A name that a face passes on counts as used from where it is
//! defined. Code for tests alone (`cfg(test)`, `cfg(any(test, fuzzing))`) is no part of the
//! program.

#![expect(clippy::print_stdout, reason = "the graph is what is asked for with --nocapture")]

mod graph;
mod sources;

use graph::Graph;
use sources::{Sources, Use};
use std::collections::BTreeMap;
use std::path::Path;

/// Returns the graph of each folder's units, by the path of the folder's module.
fn folders(sources: &Sources) -> BTreeMap<Vec<String>, Graph> {
    let mut folders: BTreeMap<Vec<String>, Graph> = BTreeMap::new();
    for Use { file, from, to, text } in sources.uses() {
        // The two paths part in the folder whose units they are.
        let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
        if let (Some(user), Some(used)) = (from.get(shared), to.get(shared)) {
            let proof = format!("{file}: {text}");
            folders.entry(from[..shared].to_vec()).or_default().add(user, used, &proof);
        }
    }
    folders
}

#[test]
fn no_module_and_no_file_is_used_by_what_it_uses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = Sources::read(root, "src/lib.rs");
    let folders = folders(&sources);
    let mut circles = String::new();
    let mut count = 0;
    for (folder, graph) in &folders {
        let name = ["src"].into_iter().chain(folder.iter().map(String::as_str));
        let name = name.collect::<Vec<_>>().join("/");
        println!("{name}/\n{graph}");
        for circle in graph.circles() {
            count += 1;
            circles += &format!("in {name}/, {circle}");
        }
    }
    println!("{} files, {count} circles", sources.count());
    assert!(folders.contains_key(&[][..]), "no arrow was found at all");
    assert!(circles.is_empty(), "{count} circles:\n{circles}");
}

#[test]
fn no_two_types_have_one_name() {
    let sources = Sources::read(Path::new(env!("CARGO_MANIFEST_DIR")), "src/lib.rs");
    let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, file) in sources.types() {
        files.entry(name).or_default().push(file);
    }
    println!("{} types", files.len());
    assert!(files.contains_key("Snapshot"), "the types were not found");
    files.retain(|_, files| files.len() > 1);
    assert!(files.is_empty(), "these stand more than once: {files:#?}");
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    let found = || -> Vec<String> {
        let folders = folders(&Sources::read(folder.path(), "src/lib.rs"));
        folders.values().flat_map(Graph::circles).map(|circle| circle.route()).collect()
    };
    write("src/lib.rs", "mod a; mod b;");
    write("src/a/mod.rs", "mod x; mod y; pub use x::X;");
    write("src/a/x.rs", "use crate::b::B; pub struct X;");
    write("src/a/y.rs", "use super::X; pub struct Y;");
    write("src/b.rs", "pub struct B;");
    assert_eq!(found(), [""; 0]);

    for back in [
        "use crate::{a::{X as Renamed}};",
        "use super::a;",
        "fn f() { let _ = crate::a::X; }",
        "fn f() { println!(\"{:?}\", crate::a::X); }",
        "mod inner { use super::super::a::X; }",
        "use crate::a::*;",
    ] {
        write("src/b.rs", back);
        assert_eq!(found(), ["a → b → a"], "{back}");
    }
    write("src/b.rs", "#[cfg(test)] mod tests { use crate::a::X; }");
    assert_eq!(found(), [""; 0]);

    // Here `y` uses `X` by the name that the face passes on.
    write("src/a/x.rs", "use super::y::Y; pub struct X;");
    assert_eq!(found(), ["x → y → x"]);
}
