//! The fuzz target `segments`: see `fuzz/inside/segments.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: helios::fuzzing::write_if_asked("segments", &[]),
    |bytes: &[u8]| helios::fuzzing::segments(bytes)
);
