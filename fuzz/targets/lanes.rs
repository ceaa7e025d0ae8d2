//! The fuzz target `lanes`: see `fuzz/inside/lanes.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: helios::fuzzing::write_if_asked("lanes", &[]),
    |bytes: &[u8]| helios::fuzzing::lanes(bytes)
);
