//! The subcommands of the helios program.
