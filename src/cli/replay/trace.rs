//! Reads an access trace: who touched which key, in order.
//!
//! Floor 5, part of `replay`. Knows the file format (CSV with the header `agent_id,seq,key,op` and
//! an optional `refs`, plain or gzip) and nothing of what is done with it.
//!
//! Invariants
//! - every process of a [`Trace`] has at least one access, and there is at least one process.
//! - processes stand in the order of their first access; the accesses of one stand in the order of
//!   `seq`, equal numbers in the order of the file.
//! - every key has 1 to [`KEY_BYTES_MAX`] bytes, so that it can be a key of an agent.
//! - memory is bounded by [`ACCESSES_MAX`] and [`KEYS_BYTES_MAX`] whatever the file unpacks to.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use csv::ByteRecord;
use flate2::bufread::MultiGzDecoder;

/// Longest key of an agent, in bytes.
pub(super) const KEY_BYTES_MAX: usize = 1024;
/// Most accesses of one trace.
pub(super) const ACCESSES_MAX: usize = 50_000_000;
/// Most bytes of all keys of one trace together.
pub(super) const KEYS_BYTES_MAX: usize = 1 << 30;

const COLUMNS: [&str; 4] = ["agent_id", "seq", "key", "op"];
const REFS: &str = "refs";
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The accesses of a file, by process.
#[derive(Debug)]
pub(super) struct Trace {
    /// The keys, each once.
    pub(super) keys: Keys,
    /// The accesses of each process.
    pub(super) processes: Vec<Vec<Access>>,
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// Which key; an index into [`Trace::keys`].
    pub(super) key: u32,
    /// Was it a write?
    pub(super) write: bool,
}

/// Keys end to end in one buffer: a hundred thousand small allocations are not worth having.
#[derive(Debug, Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Why a file is not a trace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum TraceError {
    #[error("{}: can't open the trace: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{}: line {line}: can't read on: {source}", path.display())]
    Read {
        path: PathBuf,
        line: u64,
        source: csv::Error,
    },
    #[error(
        "{}: line 1: the header is {found:?}; a trace begins with agent_id,seq,key,op and may add refs",
        path.display()
    )]
    Header { path: PathBuf, found: String },
    #[error("{}: line {line}: {problem}", path.display())]
    Row {
        path: PathBuf,
        line: u64,
        problem: RowProblem,
    },
    #[error("{}: no accesses after the header", path.display())]
    Empty { path: PathBuf },
}

/// What is wrong with one line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub(super) enum RowProblem {
    #[error("{found} fields where the header has {expected}")]
    Fields { found: usize, expected: usize },
    #[error("agent_id is empty")]
    Agent,
    #[error("seq is {found:?}; write a number from 0 to 18446744073709551615")]
    Seq { found: String },
    #[error("a key of {bytes} bytes; keys have 1 to {KEY_BYTES_MAX}")]
    Key { bytes: usize },
    #[error("op is {found:?}; write \"read\" or \"write\"")]
    Op { found: String },
    #[error(
        "too long: a trace has at most {ACCESSES_MAX} accesses and {KEYS_BYTES_MAX} bytes of keys"
    )]
    TooLong,
}

impl Trace {
    /// Reads a file, gzip or plain: its first bytes tell.
    pub(super) fn load(path: &Path) -> Result<Self, TraceError> {
        let opened = |source| TraceError::Open {
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(opened)?);
        let packed = file.fill_buf().map_err(opened)?.starts_with(&GZIP_MAGIC);
        if packed {
            Self::read(MultiGzDecoder::new(file), path)
        } else {
            Self::read(file, path)
        }
    }

    /// Reads the text of a trace; `path` is what errors call it.
    pub(super) fn read(text: impl Read, path: &Path) -> Result<Self, TraceError> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text);
        let mut line = 1;
        let failed = |line, source| TraceError::Read {
            path: path.to_owned(),
            line,
            source,
        };
        let header = reader
            .byte_headers()
            .map_err(|source| failed(line, source))?;
        let columns = header.len();
        check_header(header, path)?;
        let mut reading = Reading::default();
        let mut record = ByteRecord::new();
        while reader
            .read_byte_record(&mut record)
            .map_err(|source| failed(line, source))?
        {
            line = record.position().map_or(line, csv::Position::line);
            reading
                .add(&record, columns)
                .map_err(|problem| TraceError::Row {
                    path: path.to_owned(),
                    line,
                    problem,
                })?;
        }
        reading.finish().ok_or_else(|| TraceError::Empty {
            path: path.to_owned(),
        })
    }

    /// How many accesses there are.
    pub(super) fn access_count(&self) -> usize {
        self.processes.iter().map(Vec::len).sum()
    }
}

impl Keys {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of one.
    pub(super) fn get(&self, key: u32) -> &[u8] {
        let at = key as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..self.ends[at]]
    }

    fn push(&mut self, key: &[u8]) {
        self.bytes.extend_from_slice(key);
        self.ends.push(self.bytes.len());
    }
}

fn check_header(header: &ByteRecord, path: &Path) -> Result<(), TraceError> {
    let mut expected = COLUMNS.to_vec();
    if header.len() > COLUMNS.len() {
        expected.push(REFS);
    }
    if header
        .iter()
        .eq(expected.iter().map(|name| name.as_bytes()))
    {
        return Ok(());
    }
    let found: Vec<_> = header.iter().map(text).collect();
    Err(TraceError::Header {
        path: path.to_owned(),
        found: found.join(","),
    })
}

/// What has been read so far.
#[derive(Default)]
struct Reading {
    keys: Keys,
    key_of: HashMap<Box<[u8]>, u32>,
    process_of: HashMap<Box<[u8]>, usize>,
    rows: Vec<(u64, usize, Access)>,
}

impl Reading {
    fn add(&mut self, record: &ByteRecord, columns: usize) -> Result<(), RowProblem> {
        if record.len() != columns {
            return Err(RowProblem::Fields {
                found: record.len(),
                expected: columns,
            });
        }
        let (agent, seq, key, op) = (&record[0], &record[1], &record[2], &record[3]);
        if agent.is_empty() {
            return Err(RowProblem::Agent);
        }
        let seq = std::str::from_utf8(seq)
            .ok()
            .and_then(|seq| seq.parse().ok())
            .ok_or_else(|| RowProblem::Seq { found: text(seq) })?;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(RowProblem::Key { bytes: key.len() });
        }
        let write = match op {
            b"read" => false,
            b"write" => true,
            _ => return Err(RowProblem::Op { found: text(op) }),
        };
        if self.rows.len() == ACCESSES_MAX || self.keys.bytes.len() + key.len() > KEYS_BYTES_MAX {
            return Err(RowProblem::TooLong);
        }
        let key = self.key(key);
        let process = self.process(agent);
        self.rows.push((seq, process, Access { key, write }));
        Ok(())
    }

    fn key(&mut self, key: &[u8]) -> u32 {
        if let Some(id) = self.key_of.get(key) {
            return *id;
        }
        // Fits: there are fewer keys than ACCESSES_MAX.
        let id = self.keys.len() as u32;
        self.keys.push(key);
        self.key_of.insert(key.into(), id);
        id
    }

    fn process(&mut self, agent: &[u8]) -> usize {
        if let Some(process) = self.process_of.get(agent) {
            return *process;
        }
        let process = self.process_of.len();
        self.process_of.insert(agent.into(), process);
        process
    }

    fn finish(mut self) -> Option<Trace> {
        if self.rows.is_empty() {
            return None;
        }
        self.rows.sort_by_key(|(seq, _, _)| *seq);
        // Numbered by place in the file so far; the order of `seq` decides.
        let mut place = vec![usize::MAX; self.process_of.len()];
        let mut processes = Vec::with_capacity(place.len());
        for (_, process, access) in self.rows {
            if place[process] == usize::MAX {
                place[process] = processes.len();
                processes.push(Vec::new());
            }
            processes[place[process]].push(access);
        }
        Some(Trace {
            keys: self.keys,
            processes,
        })
    }
}

/// A field for an error message: as text, and not too much of it.
fn text(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).into_owned();
    if bytes.len() > SHOWN {
        shown + "..."
    } else {
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read(text: &str) -> Result<Trace, TraceError> {
        Trace::read(text.as_bytes(), Path::new("t.csv"))
    }

    /// Every refusal goes through here.
    fn check_refused(text: &str, message: &str) {
        let error = read(text).expect_err(text).to_string();
        assert!(error.starts_with("t.csv: "), "{error}");
        assert!(error.contains(message), "{error:?} for {text:?}");
    }

    #[test]
    fn accesses_are_grouped_by_process_in_order() {
        let trace = read(
            "agent_id,seq,key,op\nb,3,/x,read\na,1,/y,write\nb,2,\"/with,comma\",read\na,4,/x,read\n",
        )
        .unwrap();
        let shown: Vec<Vec<_>> = trace
            .processes
            .iter()
            .map(|process| {
                process
                    .iter()
                    .map(|access| (trace.keys.get(access.key), access.write))
                    .collect()
            })
            .collect();
        let expected: [Vec<(&[u8], bool)>; 2] = [
            vec![(b"/y", true), (b"/x", false)],
            vec![(b"/with,comma", false), (b"/x", false)],
        ];
        assert_eq!(shown, expected);
        assert_eq!((trace.keys.len(), trace.access_count()), (3, 4));
    }

    #[test]
    fn refs_are_accepted_and_what_is_not_a_trace_is_refused() {
        assert!(read("agent_id,seq,key,op,refs\na,0,k,read,x|y\na,1,k,read,\n").is_ok());
        let head = "agent_id,seq,key,op\n";
        for (text, message) in [
            ("", "line 1: the header is \"\""),
            (
                "agent,seq,key,op\n",
                "line 1: the header is \"agent,seq,key,op\"",
            ),
            ("agent_id,seq,key\n", "may add refs"),
            ("agent_id,seq,key,op,ref\n", "line 1"),
            ("agent_id,seq,key,op,refs,more\n", "line 1"),
            ("agent_id,seq,key,op\n", "no accesses"),
            (
                "agent_id,seq,key,op,refs\na,0,k,read\n",
                "line 2: 4 fields where the header has 5",
            ),
        ] {
            check_refused(text, message);
        }
        for (row, message) in [
            ("a,1,k", "3 fields where the header has 4"),
            (",1,k,read", "agent_id is empty"),
            ("a,-1,k,read", "seq is \"-1\""),
            ("a,x,k,read", "seq is \"x\""),
            ("a,1,,read", "a key of 0 bytes"),
            ("a,1,k,READ", "op is \"READ\"; write \"read\" or \"write\""),
            ("a,1,k,delete", "op is \"delete\""),
        ] {
            check_refused(
                &format!("{head}a,0,k,read\n{row}\n"),
                &format!("line 3: {message}"),
            );
        }
        let long = "k".repeat(KEY_BYTES_MAX);
        assert!(read(&format!("{head}a,0,{long},read\n")).is_ok());
        check_refused(&format!("{head}a,0,{long}k,read\n"), "a key of 1025 bytes");
    }

    #[test]
    fn a_line_number_counts_lines_within_quotes() {
        check_refused(
            "agent_id,seq,key,op\na,0,\"two\nlines\",read\na,1,k,raed\n",
            "line 4: op is \"raed\"",
        );
    }

    #[test]
    fn files_may_be_gzip_and_must_be_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv.gz");
        assert!(matches!(Trace::load(&path), Err(TraceError::Open { .. })));
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"agent_id,seq,key,op\n").unwrap();
        for seq in 0..1000 {
            writeln!(packed, "a,{seq},k{},read", seq * 7919 % 1000).unwrap();
        }
        let packed = packed.finish().unwrap();
        std::fs::write(&path, &packed).unwrap();
        assert_eq!(Trace::load(&path).unwrap().access_count(), 1000);
        std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
        assert!(matches!(Trace::load(&path), Err(TraceError::Read { .. })));
        std::fs::write(&path, b"agent_id,seq,key,op\na,0,k,read\n").unwrap();
        assert_eq!(Trace::load(&path).unwrap().access_count(), 1);
    }
}
