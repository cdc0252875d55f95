//! Checks that the properties hold for every input in fuzz/corpus: what people and programs really
//! write, and what has broken a property before.

use proptest::test_runner::{Config, RngSeed};
use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

/// Returns settings that give every run the same inputs; the variable `PROPTEST_CASES` asks for
/// more inputs, `PROPTEST_RNG_SEED` for others.
pub fn settings() -> Config {
    let config = Config::default();
    let seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(24_576),
        fixed => fixed,
    };
    Config { rng_seed: seed, failure_persistence: None, ..config }
}

macro_rules! hold_for_the_corpus {
    ($($property:ident),*) => {
        $(#[test]
        fn $property() {
            hold_for(stringify!($property), super::$property);
        })*

        #[test]
        fn every_property_has_inputs_and_a_target_and_there_are_no_others() {
            let properties = [$(stringify!($property)),*];
            assert_eq!(names_in("fuzz/corpus"), properties);
            assert_eq!(names_in("fuzz/targets"), properties.map(|name| format!("{name}.rs")));
        }
    };
}

hold_for_the_corpus!(
    candidate,
    config_json,
    config_toml,
    docker,
    history,
    http,
    ledger,
    lock,
    proc,
    systemd,
    words
);

fn hold_for(name: &str, property: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let inputs = fs::read_dir(&folder).expect("a folder of inputs");
    for input in inputs.map(|entry| entry.expect("an input").path()) {
        let bytes = fs::read(&input).expect("a readable input");
        assert!(catch_unwind(|| property(&bytes)).is_ok(), "{}", input.display());
    }
}

fn names_in(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
    let entries = entries.expect("a folder of the repository");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
