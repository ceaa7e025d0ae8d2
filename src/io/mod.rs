//! The I/O core.
