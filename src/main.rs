//! The `helios` program.
fn main() {}
