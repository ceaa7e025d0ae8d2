//! The SPSC mesh between cores.
