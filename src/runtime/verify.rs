//! Whether a data directory is what was written: every record, every payload, and what damage means.
//!
//! Floor 4. Shard by shard: recovery tells where the log ends, the segments are read byte by byte, then the
//! tables are built with all that is damaged left out, and looked through from the agents' side. Nothing
//! is changed; no server runs on the directory meanwhile.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::id::{ObjectId, ShardNo};
use crate::runtime::data_dir::DataDir;
use crate::runtime::{DataDirError, RuntimeError, stored_at};
use crate::segment::verify::{Fault, Listener, Read};
use crate::segment::{
    Directory, FilesError, Location, RecoverError, RecoveredRecord, SegmentFiles, read_only, verify,
};
use crate::shard::verify::{Looked, Loss};
use crate::shard::{Tables, TablesError};

/// Something that is not as it was written.
#[derive(Debug)]
#[non_exhaustive]
pub enum Finding {
    /// A runtime can't start on this.
    Log {
        /// The shard.
        shard: ShardNo,
        /// Why not.
        error: RecoverError,
    },
    /// Its records contradict each other.
    Tables {
        /// The shard.
        shard: ShardNo,
        /// How.
        error: TablesError,
    },
    /// A place in a file.
    Fault {
        /// The shard.
        shard: ShardNo,
        /// The place.
        fault: Fault,
    },
    /// What an agent can't read.
    Loss {
        /// The shard.
        shard: ShardNo,
        /// What.
        loss: Loss,
    },
}

impl Finding {
    /// Whether something is damaged; else it is what a power cut may leave, and costs nothing.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Fault { fault, .. } => fault.kind.is_damage(),
            _ => true,
        }
    }
}

/// What was read, over all shards.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verified {
    /// Shards.
    pub shards: u64,
    /// Segments, records and their bytes.
    pub read: Read,
    /// Agents, checkpoints, nodes and keys. Of a shard whose log is damaged nothing.
    pub looked: Looked,
    /// Findings that are damage.
    pub damaged: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Reads all of a data directory. `found` hears of whatever is wrong; `progress` of bytes that were gone
/// through, and of how many there are.
///
/// # Errors
/// [`DataDirError::Served`] where a server runs on it, [`DataDirError::NotThere`]; a file that can't be
/// read at all.
pub fn verify_data_dir(
    path: &Path,
    found: &mut dyn FnMut(&Finding),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, RuntimeError> {
    let started = Instant::now();
    let data_dir = DataDir::open_read_only(path)?;
    let mut shards = Vec::new();
    let mut total = 0;
    for no in (0..data_dir.shards()).map(ShardNo) {
        let path = data_dir.shard(no);
        if !path.is_dir() {
            return Err(DataDirError::NotThere { path }.into());
        }
        let mut files = Directory::read_only(path);
        let listed = files.list().map_err(|error| recover(no, error))?;
        total += listed.iter().map(|file| file.bytes).sum::<u64>();
        shards.push((no, files));
    }
    let mut verified = Verified::default();
    let mut done = 0;
    for (no, files) in &mut shards {
        let mut damaged = 0;
        let mut tell = |finding: Finding| {
            damaged += u64::from(finding.is_damage());
            found(&finding);
        };
        let mut passed = |bytes| {
            done += bytes;
            progress(done, total);
        };
        let (read, looked) = verify_shard(*no, files, &mut tell, &mut passed)?;
        verified.shards += 1;
        verified.damaged += damaged;
        verified.read = Read {
            segments: verified.read.segments + read.segments,
            records: verified.read.records + read.records,
            bytes: verified.read.bytes + read.bytes,
        };
        verified.looked = Looked {
            agents: verified.looked.agents + looked.agents,
            checkpoints: verified.looked.checkpoints + looked.checkpoints,
            nodes: verified.looked.nodes + looked.nodes,
            keys: verified.looked.keys + looked.keys,
        };
    }
    verified.elapsed = started.elapsed();
    Ok(verified)
}

fn recover(shard: ShardNo, error: FilesError) -> RuntimeError {
    let source = error.into();
    RuntimeError::Recover { shard, source }
}

/// One shard of it.
pub(super) fn verify_shard<F: SegmentFiles + ?Sized>(
    no: ShardNo,
    files: &mut F,
    tell: &mut dyn FnMut(Finding),
    progress: &mut dyn FnMut(u64),
) -> Result<(Read, Looked), RuntimeError> {
    let log = match read_only(files, no, &mut |_| {}) {
        Ok(recovered) => Some(recovered.start.segments),
        Err(RecoverError::Files(error)) => return Err(recover(no, error)),
        Err(error) => {
            tell(Finding::Log { shard: no, error });
            None
        }
    };
    let mut damaged: HashMap<Location, Option<ObjectId>> = HashMap::new();
    let mut fault = |fault: Fault| {
        if let Some(at) = fault.payload() {
            damaged.insert(at, fault.id);
        }
        tell(Finding::Fault { shard: no, fault });
    };
    let mut listener = Listener {
        fault: &mut fault,
        progress,
    };
    let read = verify::verify(files, log.as_deref(), &mut listener);
    let read = read.map_err(|error| recover(no, error))?;
    if log.is_none() {
        return Ok((read, Looked::default()));
    }
    let mut tables = Tables::default();
    let mut refused = None;
    let recovered = read_only(files, no, &mut |record| {
        let is_damaged = record.payload.is_some_and(|at| damaged.contains_key(&at));
        let record = RecoveredRecord {
            damaged: record.damaged || is_damaged,
            ..*record
        };
        if refused.is_none() {
            refused = tables.apply(&record).err();
        }
    });
    let recovered = recovered.map_err(|source| RuntimeError::Recover { shard: no, source })?;
    let failed = RefCell::new(None);
    let mut stored = |at: Location| stored_at(files, at, &mut failed.borrow_mut());
    let built = match refused {
        Some(error) => Err(error),
        None => tables.finish(&recovered.start.dropped, &mut stored),
    };
    let mut looked = Looked::default();
    match built {
        Ok(()) => {
            let ids: HashSet<ObjectId> = damaged.into_values().flatten().collect();
            // Behind what the device would not give, nobody knows what is lost.
            let mut lost = |loss: Loss| {
                if failed.borrow().is_none() {
                    tell(Finding::Loss { shard: no, loss });
                }
            };
            looked = crate::shard::verify::verify(&tables, &ids, &mut stored, &mut lost);
        }
        Err(error) => tell(Finding::Tables { shard: no, error }),
    }
    match failed.into_inner() {
        // What the device would not give now may be as good as ever.
        Some(error) => Err(recover(no, error)),
        None => Ok((read, looked)),
    }
}
