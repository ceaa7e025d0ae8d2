//! Checked configuration: parsed here, resolved against the machine above, then frozen.
//!
//! Floor 0: nothing of the project is imported, nothing of the machine is asked (no core count, no
//! clock). Reading a named file is the only I/O. What depends on the machine (which cores, which
//! user is meant by a name) is asked one floor up, which comes back with [`Config::error`] so that
//! its refusals name file, line and key too.
//!
//! Invariants
//! - a `Config` that passed [`Config::validate`] holds only values inside the ranges below;
//!   [`Config::parse`] returns no other.
//! - every key has a unit, a range, a default and a line in `runtime-config/helios.toml`, which
//!   parses to exactly [`Config::default`].
//! - every error is one line: file, line, key, what was found, what to write instead.

mod access;
mod error;
mod parse;
mod units;

use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use access::{Access, AccessRule, Who};
pub use error::{ConfigError, Origin, Problem, ranges_text};
pub use parse::KEYS;
pub use units::{duration_text, parse_duration, parse_size, size_text};

/// Most shards of one runtime.
pub const SHARDS_MAX: u16 = 64;
/// Longest path of a Unix socket, in bytes: `sockaddr_un` has 108 with the closing zero.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Least memory a runtime accepts, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;
/// Most memory a runtime accepts, in bytes (16 TiB: a slip of a unit, not a machine).
pub const MEMORY_BYTES_MAX: u64 = 16 << 40;
/// Sizes an agent's L1 window may have, in bytes; powers of two.
pub const L1_WINDOW_BYTES: RangeInclusive<u32> = (8 << 10)..=(4 << 20);
/// Sizes a segment may have, in bytes; powers of two. Offsets within one are 32 bits.
pub const SEGMENT_BYTES: RangeInclusive<u32> = (1 << 20)..=(1 << 30);
/// Longest time a power-safe write may be held back for company.
pub const GROUP_COMMIT_INTERVAL_MAX: Duration = Duration::from_millis(100);
/// Most access rules; each is tried in turn at every attach.
pub const ACCESS_RULES_MAX: usize = 256;

/// What an operator or an embedding host asks for. Plain data: build it, [`validate`] it, hand it
/// over by value.
///
/// ```
/// use helios::config::{Config, Durability};
/// let config = Config { durability: Durability::Power, ..Config::at("state") };
/// config.validate()?;
/// # Ok::<(), helios::config::ConfigError>(())
/// ```
///
/// [`validate`]: Config::validate
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the segments live. Default `helios-data`.
    pub data_dir: PathBuf,
    /// Where agents connect, at most 107 bytes as written, relative to the working directory.
    /// Default `helios.sock` in the data directory.
    pub socket: PathBuf,
    /// How many shards, 1 to 64. Default: chosen for the machine.
    pub shards: Choice<u16>,
    /// CPU of each shard in turn, by the kernel's number. Default: chosen for the machine.
    pub shard_cores: Choice<Vec<u32>>,
    /// CPU of the prefetcher and the I/O core. Default: chosen for the machine.
    pub prefetch_core: Choice<u32>,
    /// The memory that the runtime divides up, in bytes: L2 takes a quarter, indexes at most half;
    /// the rest is left to windows and lanes, which nothing counts yet. 16 MiB to 16 TiB, default
    /// 192 MiB.
    pub memory_max: u64,
    /// L1 window of one agent, in bytes: a power of two from 8 KiB to 4 MiB, default 32 KiB.
    pub l1_window_bytes: u32,
    /// One segment file, in bytes: a power of two from 1 MiB to 1 GiB, default 64 MiB.
    pub segment_bytes: u32,
    /// What a write promises that names nothing else. Default [`Durability::Process`].
    pub durability: Durability,
    /// How long a power-safe write may wait for company, 0 to 100 ms. Default 0: a sync starts as
    /// soon as the last one ended, so that load alone makes groups.
    pub group_commit_interval: Duration,
    /// Who does the disk work that may block. Default [`Io::Auto`].
    pub io: Io,
    /// Who may attach to which agents, beside the runtime's own user. Default: nobody. With a rule
    /// every user can connect to the socket; whom none admits is turned away at once.
    pub access: Vec<AccessRule>,
    /// Where the values were written, for error messages. Leave it at its default.
    pub origin: Origin,
}

impl Default for Config {
    fn default() -> Self {
        Self::at("helios-data")
    }
}

impl Config {
    /// The defaults, with everything that lives in files under `data_dir`.
    #[must_use]
    pub fn at(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            socket: data_dir.join("helios.sock"),
            data_dir,
            shards: Choice::Auto,
            shard_cores: Choice::Auto,
            prefetch_core: Choice::Auto,
            memory_max: 192 << 20,
            l1_window_bytes: 32 << 10,
            segment_bytes: 64 << 20,
            durability: Durability::Process,
            group_commit_interval: Duration::ZERO,
            io: Io::Auto,
            access: Vec::new(),
            origin: Origin::default(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// A file that is missing, unreadable, too large or not UTF-8, and all that
    /// [`Config::parse`] refuses.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        parse::load(path)
    }

    /// Checks the text of a file; `file_name` is what errors call it.
    ///
    /// # Errors
    /// Bad TOML, an unknown key, a value of the wrong type or unit, and all that
    /// [`Config::validate`] refuses.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        parse::parse(text, file_name)
    }

    /// Checks every range. [`Config::parse`] has done so; a host that fills in the struct calls it,
    /// and so does the runtime at start.
    ///
    /// # Errors
    /// The first key whose value is out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_paths()?;
        self.validate_sizes()?;
        self.validate_cores()?;
        let interval = self.group_commit_interval;
        if interval > GROUP_COMMIT_INTERVAL_MAX {
            let problem = Problem::DurationRange {
                max: GROUP_COMMIT_INTERVAL_MAX,
            };
            return Err(self.error("group_commit_interval", duration_text(interval), problem));
        }
        access::validate(self)
    }

    /// An error about a key of this configuration, with file and line where they are known. Meant
    /// for those who resolve it against the machine.
    #[must_use]
    pub fn error(&self, key: &str, value: impl ToString, problem: Problem) -> ConfigError {
        self.origin.error(key, value.to_string(), problem)
    }

    fn validate_paths(&self) -> Result<(), ConfigError> {
        for (key, path) in [("data_dir", &self.data_dir), ("socket", &self.socket)] {
            let bytes = path.as_os_str().as_bytes();
            if bytes.is_empty() || bytes.contains(&0) {
                return Err(self.error(key, quoted(path), Problem::NotAPath));
            }
        }
        let bytes = self.socket.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            let problem = Problem::SocketPathTooLong { bytes };
            return Err(self.error("socket", quoted(&self.socket), problem));
        }
        Ok(())
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let window = widen(&L1_WINDOW_BYTES);
        let segment = widen(&SEGMENT_BYTES);
        let memory = (MEMORY_BYTES_MIN, MEMORY_BYTES_MAX);
        for (key, bytes, (min, max), power_of_two) in [
            ("memory_max", self.memory_max, memory, false),
            ("l1_window_bytes", self.l1_window_bytes.into(), window, true),
            ("segment_bytes", self.segment_bytes.into(), segment, true),
        ] {
            let problem = if bytes < min || bytes > max {
                Problem::SizeRange { min, max }
            } else if power_of_two && !bytes.is_power_of_two() {
                Problem::NotAPowerOfTwo { min, max }
            } else {
                continue;
            };
            return Err(self.error(key, size_text(bytes), problem));
        }
        Ok(())
    }

    fn validate_cores(&self) -> Result<(), ConfigError> {
        let shards = match self.shards {
            Choice::Fixed(count) if count == 0 || count > SHARDS_MAX => {
                return Err(self.error("shards", count, Problem::NotAShardCount));
            }
            Choice::Fixed(count) => Some(usize::from(count)),
            Choice::Auto => None,
        };
        let Choice::Fixed(cores) = &self.shard_cores else {
            return Ok(());
        };
        let refuse = |problem| Err(self.error("shard_cores", format!("{cores:?}"), problem));
        if cores.is_empty() || cores.len() > usize::from(SHARDS_MAX) {
            return refuse(Problem::NotACoreList);
        }
        if let Some(core) = first_repeated(cores) {
            return refuse(Problem::CoreTwice { core });
        }
        match shards {
            Some(shards) if cores.len() > shards => refuse(Problem::MoreCoresThanShards {
                cores: cores.len(),
                shards,
            }),
            _ => Ok(()),
        }
    }
}

/// What may be left to the runtime: `"auto"`, or a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice<T> {
    /// The runtime chooses.
    #[default]
    Auto,
    /// The operator has chosen.
    Fixed(T),
}

/// What an acknowledged write has survived when its reply arrives; a later one includes the
/// earlier. The numbers are those of records and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Durability {
    /// In the runtime's memory: lost with the runtime.
    Volatile = 1,
    /// In the page cache: survives the death of the runtime (kill -9), not a power cut.
    Process = 2,
    /// On the disk (fdatasync): survives a power cut.
    Power = 3,
}

impl Durability {
    /// The one with this number, if there is one.
    #[must_use]
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Volatile),
            2 => Some(Self::Process),
            3 => Some(Self::Power),
            _ => None,
        }
    }

    /// Its name in configuration and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Process => "process",
            Self::Power => "power",
        }
    }
}

/// Who does the disk work that may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    /// io_uring where the kernel grants it, threads elsewhere.
    #[default]
    Auto,
    /// io_uring through glommio; refused at start where it can't run.
    Glommio,
    /// A few plain threads.
    Threads,
}

fn widen(range: &RangeInclusive<u32>) -> (u64, u64) {
    (u64::from(*range.start()), u64::from(*range.end()))
}

fn quoted(path: &Path) -> String {
    format!("{:?}", path.to_string_lossy())
}

fn first_repeated(cores: &[u32]) -> Option<u32> {
    (1..cores.len())
        .find(|&at| cores[..at].contains(&cores[at]))
        .map(|at| cores[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(config: Config) -> String {
        config.validate().expect_err("refused").to_string()
    }

    #[test]
    fn a_host_is_told_the_key_without_a_file() {
        let base = Config::default;
        assert!(base().validate().is_ok());
        let cases = [
            (
                Config {
                    memory_max: 5,
                    ..base()
                },
                "memory_max = 5B: out of range; write a size from 16MiB to 16TiB",
            ),
            (
                Config {
                    l1_window_bytes: 12 << 10,
                    ..base()
                },
                "l1_window_bytes = 12KiB: not a power of two; write one from 8KiB to 4MiB",
            ),
            (
                Config {
                    segment_bytes: u32::MAX,
                    ..base()
                },
                "segment_bytes = 4294967295B: out of range; write a size from 1MiB to 1GiB",
            ),
            (
                Config {
                    group_commit_interval: Duration::from_secs(1),
                    ..base()
                },
                "group_commit_interval = 1s: out of range; write a duration from 0us to 100ms",
            ),
            (
                Config {
                    shards: Choice::Fixed(257),
                    ..base()
                },
                "shards = 257: not a number of shards; write \"auto\" or a number from 1 to 64",
            ),
            (
                Config {
                    shard_cores: Choice::Fixed(vec![1, 2, 1]),
                    ..base()
                },
                "shard_cores = [1, 2, 1]: core 1 stands there twice; write each core once",
            ),
            (
                Config {
                    shards: Choice::Fixed(1),
                    shard_cores: Choice::Fixed(vec![0, 1]),
                    ..base()
                },
                "shard_cores = [0, 1]: lists 2 cores for shards = 1; list at most one core for each shard",
            ),
            (
                Config {
                    data_dir: PathBuf::new(),
                    ..base()
                },
                "data_dir = \"\": not a path",
            ),
        ];
        for (config, message) in cases {
            assert_eq!(refusal(config), message);
        }
        let deep = "d".repeat(SOCKET_PATH_BYTES_MAX);
        assert!(
            Config {
                socket: deep.clone().into(),
                ..base()
            }
            .validate()
            .is_ok()
        );
        let message = refusal(Config {
            socket: (deep + "d").into(),
            ..base()
        });
        assert!(
            message.contains("108 bytes; a socket path has at most 107"),
            "{message}"
        );
    }

    #[test]
    fn durability_numbers_come_back() {
        for number in 0..=u8::MAX {
            let back = Durability::from_u8(number).map(|durability| durability as u8);
            assert_eq!(back, (1..=3).contains(&number).then_some(number));
        }
        assert!(Durability::Volatile < Durability::Process);
        assert!(Durability::Process < Durability::Power);
    }
}
