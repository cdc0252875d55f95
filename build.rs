//! Links what unwinds the stack into the program. As a library of its own, which Rust's asks for by the name of gcc_s, it
//! takes a tenth of a millisecond of each start.

use std::path::Path;
use std::{env, fs};

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script everything in its environment"
)]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        let folder = env::var("OUT_DIR").expect("cargo names it");
        let script = Path::new(&folder).join("libgcc_s.so");
        fs::write(script, "INPUT(-lgcc_eh -lgcc)\n").expect("cargo has made its folder");
        println!("cargo::rustc-link-search=native={folder}");
    }
}
