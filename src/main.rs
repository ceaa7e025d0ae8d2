//! The `helios` program: one file per subcommand.

use std::process::ExitCode;

mod cli;

/// Counts allocations per thread, so that the shards can say how many a request cost.
#[global_allocator]
static ALLOCATOR: helios::metrics::CountingAllocator = helios::metrics::CountingAllocator;

fn main() -> ExitCode {
    cli::main()
}
