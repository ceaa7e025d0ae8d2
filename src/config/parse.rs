//! From TOML to a [`Config`]: types and units here, ranges in [`Config::validate`].
//!
//! Floor 0, part of `config`. serde finds unknown keys; every value is taken with its place in the
//! text and converted here, so that an error names the line, the key and the text that stood there.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::{Spanned, Value};

use super::{
    AccessRule, Choice, Config, ConfigError, Durability, GROUP_COMMIT_INTERVAL_MAX, Io,
    L1_WINDOW_BYTES, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, Origin, Problem, SEGMENT_BYTES, Who,
    parse_duration, parse_size, widen,
};

/// Every key of a configuration file, in the order of the shipped one. Those of a rule in
/// `[[access]]` are `user`, `group` and `agents`.
pub const KEYS: [&str; 12] = [
    "data_dir",
    "socket",
    "shards",
    "shard_cores",
    "prefetch_core",
    "io",
    "memory_max",
    "l1_window_bytes",
    "segment_bytes",
    "durability",
    "group_commit_interval",
    "access",
];
const RULE_KEYS: [&str; 3] = ["user", "group", "agents"];

/// Largest file that is read as a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    data_dir: Option<Spanned<Value>>,
    socket: Option<Spanned<Value>>,
    shards: Option<Spanned<Value>>,
    shard_cores: Option<Spanned<Value>>,
    prefetch_core: Option<Spanned<Value>>,
    io: Option<Spanned<Value>>,
    memory_max: Option<Spanned<Value>>,
    l1_window_bytes: Option<Spanned<Value>>,
    segment_bytes: Option<Spanned<Value>>,
    durability: Option<Spanned<Value>>,
    group_commit_interval: Option<Spanned<Value>>,
    #[serde(default)]
    access: Vec<Spanned<Rule>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    user: Option<Spanned<Value>>,
    group: Option<Spanned<Value>>,
    agents: Option<Spanned<Value>>,
}

pub(super) fn load(path: &Path) -> Result<Config, ConfigError> {
    let name = path.to_string_lossy();
    let refuse = |line, problem| ConfigError {
        file: name.clone().into_owned(),
        line,
        key: String::new(),
        value: String::new(),
        problem,
    };
    let mut bytes = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => return Err(refuse(0, Problem::Unreadable(error))),
        Ok(count) if count as u64 > FILE_BYTES_MAX => {
            return Err(refuse(
                0,
                Problem::FileTooLarge {
                    bytes_max: FILE_BYTES_MAX,
                },
            ));
        }
        Ok(_) => {}
    }
    match str::from_utf8(&bytes) {
        Ok(text) => parse(text, &name),
        Err(error) => Err(refuse(
            line_at(&bytes, error.valid_up_to()),
            Problem::NotUtf8,
        )),
    }
}

pub(super) fn parse(text: &str, file_name: &str) -> Result<Config, ConfigError> {
    let file: Keys = toml::from_str(text).map_err(|error| refused(&error, text, file_name))?;
    let mut reader = Reader {
        text,
        origin: Origin::of_file(file_name),
    };
    let reader = &mut reader;
    let mut config = match reader.path("data_dir", file.data_dir.as_ref())? {
        Some(data_dir) => Config::at(data_dir),
        None => Config::default(),
    };
    if let Some(socket) = reader.path("socket", file.socket.as_ref())? {
        config.socket = socket;
    }
    config.shards = reader.shards(file.shards.as_ref())?;
    config.shard_cores = reader.cores(file.shard_cores.as_ref())?;
    config.prefetch_core = reader.core(file.prefetch_core.as_ref())?;
    const IO: &[&str] = &["auto", "glommio", "threads"];
    if let Some(choice) = reader.choice("io", file.io.as_ref(), IO)? {
        config.io = [Io::Auto, Io::Glommio, Io::Threads][choice];
    }
    let memory = (MEMORY_BYTES_MIN, MEMORY_BYTES_MAX);
    if let Some(bytes) = reader.size("memory_max", file.memory_max.as_ref(), memory)? {
        config.memory_max = bytes;
    }
    let window = widen(&L1_WINDOW_BYTES);
    if let Some(bytes) = reader.size("l1_window_bytes", file.l1_window_bytes.as_ref(), window)? {
        config.l1_window_bytes = saturate(bytes);
    }
    let segment = widen(&SEGMENT_BYTES);
    if let Some(bytes) = reader.size("segment_bytes", file.segment_bytes.as_ref(), segment)? {
        config.segment_bytes = saturate(bytes);
    }
    const DURABILITY: &[&str] = &["volatile", "process", "power"];
    if let Some(choice) = reader.choice("durability", file.durability.as_ref(), DURABILITY)? {
        config.durability = [Durability::Volatile, Durability::Process, Durability::Power][choice];
    }
    let interval = file.group_commit_interval.as_ref();
    if let Some(interval) = reader.duration("group_commit_interval", interval)? {
        config.group_commit_interval = interval;
    }
    for (index, rule) in file.access.iter().enumerate() {
        config.access.push(reader.rule(index, rule)?);
    }
    config.origin = std::mem::take(&mut reader.origin);
    config.validate()?;
    Ok(config)
}

/// Converts values, noting where each was written.
struct Reader<'a> {
    text: &'a str,
    origin: Origin,
}

type Found<'a> = Option<&'a Spanned<Value>>;

impl Reader<'_> {
    /// The value, after a note of its place.
    fn take<'v>(&mut self, key: &str, found: Found<'v>) -> Option<&'v Value> {
        let found = found?;
        let span = found.span();
        let line = line_at(self.text.as_bytes(), span.start);
        self.origin
            .note(key, line, self.text.get(span).unwrap_or(""));
        Some(found.get_ref())
    }

    fn refuse<T>(&self, key: &str, problem: Problem) -> Result<T, ConfigError> {
        Err(self.origin.error(key, String::new(), problem))
    }

    fn path(&mut self, key: &str, found: Found<'_>) -> Result<Option<PathBuf>, ConfigError> {
        match self.take(key, found) {
            None => Ok(None),
            Some(Value::String(path)) => Ok(Some(path.into())),
            Some(_) => self.refuse(key, Problem::WrongType("a path in quotes")),
        }
    }

    fn size(
        &mut self,
        key: &str,
        found: Found<'_>,
        (min, max): (u64, u64),
    ) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.take(key, found) else {
            return Ok(None);
        };
        match value.as_str().and_then(parse_size) {
            Some(bytes) => Ok(Some(bytes)),
            None => self.refuse(key, Problem::NotASize { min, max }),
        }
    }

    fn duration(&mut self, key: &str, found: Found<'_>) -> Result<Option<Duration>, ConfigError> {
        let Some(value) = self.take(key, found) else {
            return Ok(None);
        };
        match value.as_str().and_then(parse_duration) {
            Some(duration) => Ok(Some(duration)),
            None => self.refuse(
                key,
                Problem::NotADuration {
                    max: GROUP_COMMIT_INTERVAL_MAX,
                },
            ),
        }
    }

    /// The place of the word among the choices.
    fn choice(
        &mut self,
        key: &str,
        found: Found<'_>,
        choices: &'static [&'static str],
    ) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.take(key, found) else {
            return Ok(None);
        };
        let word = value.as_str();
        match choices.iter().position(|choice| Some(*choice) == word) {
            Some(place) => Ok(Some(place)),
            None => self.refuse(key, Problem::NotAChoice(choices)),
        }
    }

    fn shards(&mut self, found: Found<'_>) -> Result<Choice<u16>, ConfigError> {
        let fixed = |value: &Value| value.as_integer().and_then(|count| count.try_into().ok());
        self.auto_or("shards", found, fixed, Problem::NotAShardCount)
    }

    fn core(&mut self, found: Found<'_>) -> Result<Choice<u32>, ConfigError> {
        self.auto_or("prefetch_core", found, core_number, Problem::NotACore)
    }

    fn cores(&mut self, found: Found<'_>) -> Result<Choice<Vec<u32>>, ConfigError> {
        let fixed = |value: &Value| value.as_array()?.iter().map(core_number).collect();
        self.auto_or("shard_cores", found, fixed, Problem::NotACoreList)
    }

    fn auto_or<T>(
        &mut self,
        key: &str,
        found: Found<'_>,
        fixed: impl Fn(&Value) -> Option<T>,
        problem: Problem,
    ) -> Result<Choice<T>, ConfigError> {
        match self.take(key, found) {
            None => Ok(Choice::Auto),
            Some(Value::String(word)) if word == "auto" => Ok(Choice::Auto),
            Some(value) => match fixed(value) {
                Some(value) => Ok(Choice::Fixed(value)),
                None => self.refuse(key, problem),
            },
        }
    }

    fn rule(&mut self, index: usize, rule: &Spanned<Rule>) -> Result<AccessRule, ConfigError> {
        let at = |key: &str| format!("access[{index}].{key}");
        let Rule {
            user,
            group,
            agents,
        } = rule.get_ref();
        let line = line_at(self.text.as_bytes(), rule.span().start);
        self.origin.note(&format!("access[{index}]"), line, "");
        let who = match (user, group) {
            (Some(user), None) => Who::User(self.name(&at("user"), user)?),
            (None, Some(group)) => Who::Group(self.name(&at("group"), group)?),
            _ => {
                let problem = Problem::Missing("either user or group, not both");
                return self.refuse(&format!("access[{index}]"), problem);
            }
        };
        let Some(agents) = agents else {
            let problem = Problem::Missing("agents = \"a pattern of their names\"");
            return self.refuse(&format!("access[{index}]"), problem);
        };
        match self.take(&at("agents"), Some(agents)) {
            Some(Value::String(agents)) => Ok(AccessRule {
                who,
                agents: agents.clone(),
            }),
            _ => self.refuse(&at("agents"), Problem::NotAPattern),
        }
    }

    fn name(&mut self, key: &str, found: &Spanned<Value>) -> Result<String, ConfigError> {
        match self.take(key, Some(found)) {
            Some(Value::String(name)) => Ok(name.clone()),
            Some(Value::Integer(id)) => Ok(id.to_string()),
            _ => self.refuse(key, Problem::WrongType("a name in quotes or a numeric id")),
        }
    }
}

/// What serde or the TOML parser refused: an unknown key, or text that is not TOML.
fn refused(error: &toml::de::Error, text: &str, file_name: &str) -> ConfigError {
    let span = error.span().unwrap_or(0..0);
    // At the end of a file the span may lie behind the last line.
    let line = line_at(text.as_bytes(), span.start.min(text.trim_end().len()));
    let found = text.get(span).unwrap_or("");
    let key = found.trim_matches(['"', '\'']);
    let (key, problem) = if error.message().starts_with("unknown field") {
        let known = KEYS.iter().chain(&RULE_KEYS);
        let close = known.copied().find(|known| is_close(known, key));
        (key.to_owned(), Problem::UnknownKey { close })
    } else if error.message().starts_with("invalid type") {
        // Values take any type: only an `access` that is no array of tables comes here.
        (
            "access".to_owned(),
            Problem::WrongType("[[access]] above each rule"),
        )
    } else {
        (String::new(), Problem::NotToml(error.message().to_owned()))
    };
    ConfigError {
        file: file_name.to_owned(),
        line,
        key,
        value: String::new(),
        problem,
    }
}

/// Would one or two slips of the hand make one of the other? Differences in case and between `-`
/// and `_` are none.
fn is_close(known: &str, found: &str) -> bool {
    const SLIPS_MAX: usize = 2;
    let found = found.to_lowercase().replace('-', "_");
    if known.len().abs_diff(found.len()) > SLIPS_MAX || known.len() <= 2 * SLIPS_MAX {
        return known == found;
    }
    // Levenshtein's distance, a row at a time.
    let mut row: Vec<usize> = (0..=known.len()).collect();
    for (i, a) in found.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in known.bytes().enumerate() {
            let swapped = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = swapped.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[known.len()] <= SLIPS_MAX
}

fn core_number(value: &Value) -> Option<u32> {
    value.as_integer()?.try_into().ok()
}

/// A size too large for its field is too large for its range as well, which is checked later.
fn saturate(bytes: u64) -> u32 {
    bytes.try_into().unwrap_or(u32::MAX)
}

fn line_at(text: &[u8], offset: usize) -> u32 {
    let before = &text[..offset.min(text.len())];
    let lines = before.iter().filter(|byte| **byte == b'\n').count();
    u32::try_from(lines).map_or(u32::MAX, |lines| lines + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_those_that_serde_knows() {
        let error = toml::from_str::<Keys>("nonsense = 1")
            .err()
            .expect("unknown")
            .to_string();
        for key in KEYS {
            assert!(error.contains(&format!("`{key}`")), "{key} in {error}");
        }
        assert_eq!(error.matches('`').count(), 2 * (KEYS.len() + 1), "{error}");
    }

    #[test]
    fn slips_are_recognized() {
        for slip in [
            "memory_mx",
            "memory-max",
            "Memory_Max",
            "memmory_max",
            "mmeory_max",
        ] {
            assert!(is_close("memory_max", slip), "{slip}");
        }
        for other in ["memory", "max_memory", "", "oi", "io_"] {
            assert!(
                !is_close("memory_max", other) && !is_close("io", other),
                "{other}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_every_refusal_is_one_line(
            text in "(io|shards|access|user|[a-z\"'é]{0,3})[ =\\[\\]{}\n.]{0,4}[0-9a-z\"\n\\[\\]#]{0,8}"
        ) {
            if let Err(error) = parse(&text, "f") {
                let line = error.to_string();
                prop_assert!(!line.contains(char::is_control), "{:?}", line);
                prop_assert!(error.line as usize <= text.lines().count().max(1), "{:?}", line);
            }
        }
    }
}
