//! What is wrong with a configuration: file, line, key, value, and what to write instead.
//!
//! Floor 0, part of `config`. An error is one line of text, whatever the file contains.

use std::fmt;
use std::io;
use std::time::Duration;

use super::units::{duration_text, size_text};

/// Longest excerpt of a file in a message, in characters.
const EXCERPT_CHARS_MAX: usize = 60;

/// A configuration that is refused. Shown as one line:
/// `helios.toml:12: memory_max = "lots": not a size; write a number with ...`.
#[derive(Debug)]
pub struct ConfigError {
    /// The file as it was named; empty for a configuration made by a program.
    pub file: String,
    /// The line, counted from 1; 0 where there is none.
    pub line: u32,
    /// The key; empty where the trouble is with the file. A rule's key is `access[0].user`.
    pub key: String,
    /// What was found there, as written in the file; empty where that says nothing.
    pub value: String,
    /// What is wrong with it.
    pub problem: Problem,
}

// By hand, not by `thiserror`: which of the four parts are shown depends on which are known.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            key,
            value,
            problem,
        } = self;
        if !file.is_empty() {
            f.write_str(&one_line(file, usize::MAX))?;
            if *line > 0 {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if !key.is_empty() {
            f.write_str(&one_line(key, EXCERPT_CHARS_MAX))?;
            if !value.is_empty() {
                write!(f, " = {}", one_line(value, EXCERPT_CHARS_MAX))?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{problem}")
    }
}

impl std::error::Error for ConfigError {}

/// What is wrong with a value, a key or a file, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file can't be read.
    #[error("cannot be read ({0}); runtime-config/helios.toml in the source shows a whole one")]
    Unreadable(io::Error),
    /// The file is larger than any configuration.
    #[error("larger than {}, so not a configuration", size_text(*.bytes_max))]
    FileTooLarge {
        /// The largest that is read.
        bytes_max: u64,
    },
    /// The file is not UTF-8.
    #[error("not UTF-8 text; save the file as UTF-8")]
    NotUtf8,
    /// The text is not TOML, in the words of its parser.
    #[error("not TOML: {}", one_line(.0, usize::MAX))]
    NotToml(String),
    /// A key that does not exist.
    #[error("unknown key; {}", meant(.close))]
    UnknownKey {
        /// The key that was probably meant.
        close: Option<&'static str>,
    },
    /// A value of the wrong type.
    #[error("not what belongs there; write {0}")]
    WrongType(&'static str),
    /// A word that is none of those allowed.
    #[error("not one of the choices; write {}", either(.0))]
    NotAChoice(&'static [&'static str]),
    /// A key that must be there.
    #[error("missing; write {0}")]
    Missing(&'static str),
    /// A path that is empty or holds a zero byte.
    #[error("not a path")]
    NotAPath,
    /// A path that no socket address can hold.
    #[error(
        "{bytes} bytes; a socket path has at most {}: write a shorter one, or one relative to the \
         working directory",
        super::SOCKET_PATH_BYTES_MAX
    )]
    SocketPathTooLong {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// Text that is not a size.
    #[error(
        "not a size; write a number with B, KiB, MiB, GiB or TiB ({} to {})",
        size_text(*.min), size_text(*.max)
    )]
    NotASize {
        /// Least value, in bytes.
        min: u64,
        /// Largest value, in bytes.
        max: u64,
    },
    /// A size out of its range.
    #[error("out of range; write a size from {} to {}", size_text(*.min), size_text(*.max))]
    SizeRange {
        /// Least value, in bytes.
        min: u64,
        /// Largest value, in bytes.
        max: u64,
    },
    /// A size in its range that is not a power of two.
    #[error("not a power of two; write one from {} to {}", size_text(*.min), size_text(*.max))]
    NotAPowerOfTwo {
        /// Least value, in bytes.
        min: u64,
        /// Largest value, in bytes.
        max: u64,
    },
    /// Text that is not a duration.
    #[error("not a duration; write a number with us, ms or s (0us to {})", duration_text(*.max))]
    NotADuration {
        /// Longest value.
        max: Duration,
    },
    /// A duration out of its range.
    #[error("out of range; write a duration from 0us to {}", duration_text(*.max))]
    DurationRange {
        /// Longest value.
        max: Duration,
    },
    /// Not a number of shards.
    #[error(
        "not a number of shards; write \"auto\" or a number from 1 to {}",
        super::SHARDS_MAX
    )]
    NotAShardCount,
    /// Not a list of cores.
    #[error(
        "not a list of cores; write \"auto\" or 1 to {} core numbers like [1, 2]",
        super::SHARDS_MAX
    )]
    NotACoreList,
    /// Not a core.
    #[error("not a core; write \"auto\" or a core number like 0")]
    NotACore,
    /// One core listed twice.
    #[error("core {core} stands there twice; write each core once")]
    CoreTwice {
        /// That core.
        core: u32,
    },
    /// More cores listed than there are shards.
    #[error("lists {cores} cores for shards = {shards}; list at most one core for each shard")]
    MoreCoresThanShards {
        /// Cores in the list.
        cores: usize,
        /// Value of `shards`.
        shards: usize,
    },
    /// A core that this process may not run on, or that the machine does not have.
    #[error("core {core} is not among those this process may run on: {}", ranges_text(.usable))]
    CoreNotUsable {
        /// The core asked for.
        core: u32,
        /// The cores of this process, in ascending order.
        usable: Vec<u32>,
    },
    /// A user who is not in `/etc/passwd`.
    #[error("no such user in /etc/passwd; write the name of one, or a numeric id")]
    UnknownUser,
    /// A group that is not in `/etc/group`.
    #[error("no such group in /etc/group; write the name of one, or a numeric id")]
    UnknownGroup,
    /// A pattern of agent names that no agent can match.
    #[error("not a pattern of agent names; write 1 to 255 bytes, * standing for any text")]
    NotAPattern,
    /// More access rules than are tried.
    #[error("{count} access rules; write at most {}", super::ACCESS_RULES_MAX)]
    TooManyRules {
        /// Rules found.
        count: usize,
    },
}

/// Where the values of a configuration were written. Two configurations are equal whatever their
/// origins: where a value stands does not make it another value.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    file: String,
    written: Vec<Written>,
}

#[derive(Debug, Clone)]
struct Written {
    key: String,
    line: u32,
    value: String,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Origin {
    pub(super) fn of_file(file: &str) -> Self {
        Self {
            file: file.to_owned(),
            written: Vec::new(),
        }
    }

    /// Notes that `key` was written in `line` as `value`.
    pub(super) fn note(&mut self, key: &str, line: u32, value: &str) {
        let value = one_line(value, EXCERPT_CHARS_MAX);
        self.written.push(Written {
            key: key.to_owned(),
            line,
            value,
        });
    }

    /// An error about `key`; the value is shown as it was written, `value` if it was not.
    pub(super) fn error(&self, key: &str, value: String, problem: Problem) -> ConfigError {
        let written = self.written.iter().find(|written| written.key == key);
        let (line, value) = match written {
            Some(written) => (written.line, written.value.clone()),
            None => (0, value),
        };
        ConfigError {
            file: self.file.clone(),
            line,
            key: key.to_owned(),
            value,
            problem,
        }
    }
}

/// Core numbers, ascending, as the kernel writes them: `0-3,8`.
#[must_use]
pub fn ranges_text(cores: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = cores;
    while let [first, ..] = rest {
        let run = rest
            .iter()
            .zip(*first..=u32::MAX)
            .take_while(|(core, expected)| *core == expected);
        let count = run.count();
        let comma = if text.is_empty() { "" } else { "," };
        text += &match count {
            1 => format!("{comma}{first}"),
            _ => format!("{comma}{first}-{}", rest[count - 1]),
        };
        rest = &rest[count..];
    }
    text
}

/// The text with every run of white space and control characters as one space, cut to size.
fn one_line(text: &str, chars_max: usize) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let line = words
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match line.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

fn meant(close: &Option<&'static str>) -> String {
    match close {
        Some(key) => format!("did you mean {key}?"),
        None => "runtime-config/helios.toml in the source lists them all".to_owned(),
    }
}

fn either(choices: &[&str]) -> String {
    let quoted: Vec<_> = choices.iter().map(|choice| format!("{choice:?}")).collect();
    quoted.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shown_as_ranges() {
        assert_eq!(ranges_text(&[]), "");
        assert_eq!(ranges_text(&[3]), "3");
        assert_eq!(ranges_text(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(ranges_text(&[u32::MAX]), "4294967295");
    }

    #[test]
    fn an_error_stays_one_short_line() {
        let origin = Origin::of_file("odd\nname.toml");
        let value = "long\r\n\t\u{1b}[2J ".repeat(100);
        let line = origin
            .error("shards", value, Problem::NotAShardCount)
            .to_string();
        assert!(
            line.starts_with("odd name.toml: shards = long [2J long"),
            "{line}"
        );
        assert!(
            !line.contains(char::is_control) && line.len() < 200,
            "{line}"
        );
    }
}
