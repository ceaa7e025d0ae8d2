//! A runtime that looks at a data directory and changes nothing: no listener, no repairs, no writes.
//!
//! What it recovers is in memory only: a torn end stays as it lies there, and every write is refused. Lanes
//! are the host's own; forks can be opened, to read at a checkpoint.
//!
//! Invariants
//! - no file in the directory is made, written, renamed or removed, whatever state it is in.
//! - no server runs on the directory meanwhile: the lock is held, shared with others that read.

use super::{DataDir, DataDirError, Opened, Runtime, RuntimeError};
use crate::config::{Choice, Config, Io};
use crate::id::ShardNo;
use crate::topology::{Machine, raise_file_limit, resolve};

impl Runtime {
    /// Opens the data directory of `config` to be read. Its shards are those that the directory has; the
    /// threads keep to no processor, as whoever serves has theirs. A drop ends it.
    ///
    /// # Errors
    /// [`DataDirError::Served`] where a server runs on it, [`DataDirError::NotThere`], and what
    /// recovery refuses.
    pub fn open_read_only(config: Config) -> Result<Self, RuntimeError> {
        let data_dir = DataDir::open_read_only(&config.data_dir)?;
        for no in 0..data_dir.shards() {
            let path = data_dir.shard(ShardNo(no));
            if !path.is_dir() {
                return Err(DataDirError::NotThere { path }.into());
            }
        }
        let config = Config {
            shards: Choice::Fixed(data_dir.shards()),
            shard_cores: Choice::Auto,
            prefetch_core: Choice::Auto,
            io: Io::Threads,
            ..config
        };
        let mut resolved = resolve(config, &Machine::probe()?)?;
        for seat in &mut resolved.placement.shards {
            (seat.core, seat.node, seat.alone) = (None, None, false);
        }
        resolved.placement.io = None;
        raise_file_limit();
        Self::start_in(resolved, data_dir, Opened::ToRead)
    }
}
