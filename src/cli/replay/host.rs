//! The runtime that a replay drives: its own, or one that is served by another process.
//!
//! Floor 5, part of `replay`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use hdrhistogram::Histogram;
use helios::Runtime;
use helios::client::Session;
use helios::config::Config;
use helios::metrics::{Stats, latency_histogram};

use super::folder;
use super::port;
use super::port::Seat;
use super::process::Process;
use super::report::MemoryUse;

/// Where in a replay's folder the runtime has its data directory.
const STATE: &str = "data";

/// A runtime to drive.
pub(super) enum Host {
    /// In this process, on a fresh folder.
    Own(Box<Own>),
    /// In another process.
    Other(Box<Other>),
}

/// A runtime in this process.
pub(super) struct Own {
    runtime: Runtime,
    folder: PathBuf,
}

/// A runtime in another process.
pub(super) struct Other {
    socket: PathBuf,
    lane: Seat,
    process: Option<Process>,
    /// What it said of its configuration.
    configured: Stats,
}

impl Host {
    /// Starts a runtime on an empty folder within the configured data directory.
    pub(super) fn start(mut config: Config) -> anyhow::Result<Self> {
        let folder = folder::fresh(&config.data_dir)?;
        let state = folder.join(STATE);
        // A socket that was left at its default stays with the state.
        if config.socket == Config::at(&config.data_dir).socket {
            config.socket = Config::at(&state).socket;
        }
        config.data_dir = state;
        let runtime = Runtime::start(config)?;
        Ok(Self::Own(Box::new(Own { runtime, folder })))
    }

    /// Attaches to a runtime that listens on this socket.
    pub(super) fn attach(socket: &Path) -> anyhow::Result<Self> {
        let session = Session::connect(socket)
            .with_context(|| format!("can't connect to {}", socket.display()))?;
        let mut lane = port::attach_commons(&session).context("can't attach the commons")?;
        let process = session.runtime_pid().map(|id| Process { id });
        let configured = lane.stats()?;
        Ok(Self::Other(Box::new(Other {
            socket: socket.to_owned(),
            lane,
            process,
            configured,
        })))
    }

    /// Where agents connect.
    pub(super) fn socket(&self) -> PathBuf {
        match self {
            Self::Own(own) => own.runtime.socket().to_owned(),
            Self::Other(other) => other.socket.clone(),
        }
    }

    /// The cores that agents are to keep to; empty where they may go anywhere.
    pub(super) fn agent_cores(&self) -> Vec<u32> {
        let placement = match self {
            Self::Own(own) => &own.runtime.resolved().placement,
            Self::Other(_) => return Vec::new(),
        };
        match placement.is_pinned() {
            true => placement.agents.iter().map(|core| core.0).collect(),
            false => Vec::new(),
        }
    }

    /// Bytes that L1 and L2 have been given for so many agents; of a runtime elsewhere, what they
    /// hold now.
    pub(super) fn cache_bytes(&mut self, agents: u32) -> anyhow::Result<u64> {
        Ok(match self {
            Self::Own(own) => {
                let window_bytes = own.runtime.resolved().config.l1_window_bytes;
                let windows_bytes = u64::from(agents) * u64::from(window_bytes);
                windows_bytes + own.runtime.memory().l2_capacity_bytes
            }
            Self::Other(other) => {
                let stats = other.lane.stats()?;
                stats.l1_bytes + stats.l2_bytes
            }
        })
    }

    /// How many shards there are, where that is known: older runtimes don't say.
    pub(super) fn shards(&self) -> Option<usize> {
        match self {
            Self::Own(own) => Some(own.runtime.shards()),
            Self::Other(other) => Some(other.configured.shards as usize).filter(|&some| some > 0),
        }
    }

    /// Who does the disk work.
    pub(super) fn io(&self) -> String {
        match self {
            Self::Own(own) => own.runtime.io_backend().to_string(),
            Self::Other(other) => match other.configured {
                Stats { shards: 0, .. } => "unknown".to_owned(),
                Stats { io_uring: 0, .. } => "threads".to_owned(),
                _ => "glommio".to_owned(),
            },
        }
    }

    /// The process it runs in.
    pub(super) fn process(&self) -> Option<Process> {
        match self {
            Self::Own(_) => Some(Process {
                id: std::process::id(),
            }),
            Self::Other(other) => other.process,
        }
    }

    /// What its shards have counted.
    pub(super) fn stats(&mut self) -> anyhow::Result<Stats> {
        Ok(match self {
            Self::Own(own) => own.runtime.stats(),
            Self::Other(other) => other.lane.stats()?,
        })
    }

    /// What each step of its collections took; of a runtime in another process nothing is known.
    pub(super) fn collection_steps(&self) -> Histogram<u64> {
        match self {
            Self::Own(own) => own.runtime.collection_steps(),
            Self::Other(_) => latency_histogram(),
        }
    }

    /// What its memory is used for.
    pub(super) fn memory(&mut self) -> anyhow::Result<MemoryUse> {
        let resident = self.process().and_then(Process::resident);
        let rss_bytes = resident.map(|resident| resident.total_bytes());
        let stats = self.stats()?;
        Ok(match self {
            Self::Own(own) => {
                let memory = own.runtime.memory();
                MemoryUse {
                    rss_bytes,
                    shared_bytes: Some(memory.shared_bytes),
                    l1_bytes: memory.l1_bytes,
                    l2_bytes: memory.l2_bytes,
                    index_bytes: memory.index_bytes,
                    budget_bytes: Some(memory.budget_bytes),
                }
            }
            Self::Other(other) => MemoryUse {
                rss_bytes,
                shared_bytes: resident.map(|resident| resident.shared_bytes),
                l1_bytes: stats.l1_bytes,
                l2_bytes: stats.l2_bytes,
                index_bytes: stats.index_bytes,
                budget_bytes: Some(other.configured.memory_max_bytes).filter(|&some| some > 0),
            },
        })
    }

    /// Bytes that its files take on the disk, where they are known.
    pub(super) fn disk_bytes(&self) -> Option<u64> {
        match self {
            Self::Own(own) => Some(folder::disk_bytes(&own.folder)),
            Self::Other(_) => None,
        }
    }

    /// Stops a runtime of our own; its state is removed unless it is to be looked at.
    pub(super) fn stop(self, keep_state: bool) -> anyhow::Result<()> {
        if let Self::Own(own) = self {
            own.runtime.shutdown()?;
            if !keep_state {
                folder::remove(&own.folder)?;
            }
        }
        Ok(())
    }
}
