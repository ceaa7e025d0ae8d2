//! The actor that owns a set of agents.
