//! Holds so many MB of device 0 until it is killed: `SIMGPU_DIR=.. hold 4000`. Says "held" once it does.

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
