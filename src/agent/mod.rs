//! The process boundary.
