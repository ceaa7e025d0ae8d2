//! Starts, wires and stops everything.
