//! Holds a number of MB on device 0 until it is killed, as in `SIMGPU_DIR=.. hold 4000`. It prints
//! "held" as soon as it holds them.

use simgpu::{Card, Kind};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mb = std::env::args().nth(1).ok_or("how many MB?")?.parse()?;
    let card = Card::open(std::env::var_os("SIMGPU_DIR").ok_or("SIMGPU_DIR is not set")?)?;
    let _claim = card.claim(0, mb, Kind::Compute, "hold")?;
    println!("held");
    loop {
        std::thread::park();
    }
}
