//! Checked configuration: parse, resolve against the machine, freeze.
