//! L3: append-only segment files.
