//! The program, all of which is in the library, where the fuzzer reaches it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    gpuctl::main()
}
