//! The loops themselves, with errors that are ignored: of each kind some have to be found.

use super::scenarios::SCENARIOS;
use super::*;

/// As if the product took no notice of a call that failed.
const IGNORED: Fault = Fault {
    skip: 0,
    persistent: false,
    no_space: false,
    ignored: true,
};

#[test]
fn an_error_that_is_ignored_is_found() {
    let mut found: BTreeMap<&str, [u32; 2]> = BTreeMap::new();
    for scenario in [&SCENARIOS[0], &SCENARIOS[2]] {
        walk(scenario, IGNORED, |outcome, failed| {
            for call in failed.keys() {
                let counts = found.entry(call).or_default();
                counts[usize::from(outcome.is_err())] += 1;
            }
        });
    }
    println!("not found and found: {found:?}");
    for call in ["create", "read", "sync", "write"] {
        assert!(found[call][1] > 0, "{call}: {found:?}");
    }
}
