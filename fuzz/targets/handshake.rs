//! The fuzz target `handshake`: see `fuzz/inside/handshake.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(
    init: helios::fuzzing::write_if_asked("handshake", &[]),
    |bytes: &[u8]| helios::fuzzing::handshake(bytes)
);
