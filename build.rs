//! Links the stack unwinder statically into gpuctl and into the library of the simulated card. As a
//! library of its own, which Rust's standard library asks for by the name of gcc_s, it would cost a
//! tenth of a millisecond at each start.

use std::path::Path;
use std::{env, fs};

#[allow(
    clippy::disallowed_methods,
    reason = "cargo tells a build script everything in its environment"
)]
fn main() {
    // Nothing but this variable changes what the script does. Without this line, cargo would run
    // the script whenever any file has changed.
    println!("cargo::rerun-if-env-changed=CARGO_CFG_TARGET_ENV");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("gnu") {
        let folder = env::var("OUT_DIR").expect("cargo names it");
        let script = Path::new(&folder).join("libgcc_s.so");
        fs::write(script, "INPUT(-lgcc_eh -lgcc)\n").expect("cargo has made its folder");
        println!("cargo::rustc-link-search=native={folder}");
    }
}
