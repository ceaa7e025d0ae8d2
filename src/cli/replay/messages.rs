//! What the replay and its workers say to each other: one JSON object a line, orders on a worker's
//! standard input, answers on its standard output.
//!
//! Floor 5, part of `replay`. Data only. Both ends are the same program, so there is no version.

use std::path::PathBuf;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::scenario::Deal;
use super::tally::Tally;

/// What a worker is told to do. It does one thing at a time and ends when its input does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Read the trace and work out what the agents will do.
    Load {
        trace: PathBuf,
        deal: Deal,
        worker: u32,
        think: f64,
    },
    /// Connect and attach a lane for each agent, running on this CPU from now on.
    Attach { socket: PathBuf, core: Option<u32> },
    /// Write what must be there at first.
    Preload,
    /// Let the agents go on for so long.
    Walk { seconds: f64 },
    /// Detach and end.
    Finish,
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// Still at it; any number of these may come before the others.
    Progress(Progress),
    /// The order has been carried out; the one answer to [`Order::Load`].
    Loaded(Loaded),
    /// To [`Order::Attach`].
    Attached,
    /// To [`Order::Preload`].
    Preloaded,
    /// To [`Order::Walk`].
    Walked(Box<Walked>),
    /// Something can't be done; the worker ends.
    Failed { message: String },
}

/// How far a worker is with its order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// How much is done: keys written, or operations.
    pub(super) done: u64,
}

/// What a worker found in the trace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Loaded {
    /// Processes in the trace.
    pub(super) processes: u64,
    /// Accesses in the trace.
    pub(super) accesses: u64,
    /// Keys of the commons.
    pub(super) commons: u64,
    /// Bytes of these keys and their values.
    pub(super) commons_bytes: u64,
    /// Values that this worker will preload.
    pub(super) preload_keys: u64,
    /// Bytes of these values.
    pub(super) preload_bytes: u64,
    /// Bytes of all values of its agents, once all are written.
    pub(super) footprint_bytes: u64,
}

/// What came of one walk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Walked {
    /// Accesses made: where the walk stands, for those who repeat it.
    pub(super) accesses: u64,
    /// From its start to its end.
    pub(super) seconds: f64,
    /// Bytes of keys and values that the agents' states hold at its end.
    pub(super) state_bytes: u64,
    /// What was counted.
    pub(super) tally: Tally,
}

/// A histogram as pairs of (value, count).
pub(super) mod pairs {
    use super::{Deserialize, Histogram, Serialize};
    use helios::metrics::latency_histogram;
    use serde::{Deserializer, Serializer, de::Error};

    pub(in super::super) fn serialize<S: Serializer>(
        histogram: &Histogram<u64>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let pairs: Vec<(u64, u64)> = histogram
            .iter_recorded()
            .map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
            .collect();
        pairs.serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Histogram<u64>, D::Error> {
        let pairs = Vec::<(u64, u64)>::deserialize(from)?;
        let mut histogram = latency_histogram();
        for (value, count) in pairs {
            histogram.record_n(value, count).map_err(D::Error::custom)?;
        }
        Ok(histogram)
    }
}
