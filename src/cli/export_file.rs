//! The file that carries an agent's history: frames, each checked, in a chain.
//!
//! Floor 5. `EXPORT.md` beside this file is the layout. A frame's check covers all frames before it, so
//! that none can be changed, dropped or moved; the last frame says that it is the last. One frame is in
//! memory at a time.
//!
//! Invariants
//! - bytes of a file never cause a panic; whatever is wrong is said with its offset.

use std::io::{self, Read, Write};

use helios::id::{AGENT_NAME_BYTES_MAX, KEY_BYTES_MAX, OBJECT_ID_BYTES, ObjectId};

/// What a file begins with; the version follows.
const MAGIC: [u8; 8] = *b"HELIOSXP";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 8;
const CHECK_BYTES: usize = 16;
/// Most bytes of a value in one frame.
pub(super) const PART_BYTES_MAX: usize = 256 << 10;
/// Most bytes of a frame between header and check.
const BODY_BYTES_MAX: usize = PART_BYTES_MAX + (4 << 10);

const KIND_AGENT: u8 = 1;
const KIND_CHECKPOINT: u8 = 2;
const KIND_PUT: u8 = 3;
const KIND_PART: u8 = 4;
const KIND_DELETE: u8 = 5;
const KIND_BRANCH: u8 = 6;
const KIND_TAG: u8 = 7;
const KIND_END: u8 = 8;

/// What one frame says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Frame<'a> {
    /// The first: whose history it is.
    Agent { name: &'a str },
    /// A checkpoint; what changed since its base follows.
    Checkpoint {
        /// An earlier one of the file; none: the empty state.
        base: Option<ObjectId>,
        /// As `CHECKPOINT.md` says.
        bytes: &'a [u8],
    },
    /// A key and its value, or the first part of it.
    Put {
        key: &'a [u8],
        value_bytes: u32,
        part: &'a [u8],
    },
    /// The next part of a value.
    Part { part: &'a [u8] },
    /// A key that is gone.
    Delete { key: &'a [u8] },
    /// A branch.
    Branch {
        name: &'a str,
        head: Option<ObjectId>,
    },
    /// A tag.
    Tag { name: &'a str, target: ObjectId },
    /// The last.
    End(Counts),
}

/// What a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub(super) struct Counts {
    pub(super) checkpoints: u64,
    /// Keys that were put or deleted, over all checkpoints.
    pub(super) changes: u64,
    /// Bytes of their values.
    pub(super) value_bytes: u64,
}

/// Why a file is no export.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFile {
    #[error("the file is no export of an agent: it does not begin with {:?}", MAGIC.escape_ascii().to_string())]
    NotAnExport,
    #[error(
        "the file has version {found}, this program knows up to {VERSION}; use the newer program"
    )]
    Newer { found: u32 },
    #[error("the file ends at byte {offset}, in the middle: it was cut; get a whole copy")]
    Truncated { offset: u64 },
    #[error("the file is damaged at byte {offset}: {what}; get an undamaged copy")]
    Damaged { offset: u64, what: &'static str },
    #[error("reading the file at byte {offset}")]
    Io { offset: u64, source: io::Error },
}

/// The check of a frame behind the check before it.
fn check(before: &[u8; CHECK_BYTES], frame: &[u8], scratch: &mut Vec<u8>) -> [u8; CHECK_BYTES] {
    scratch.clear();
    scratch.extend_from_slice(before);
    scratch.extend_from_slice(frame);
    let id = ObjectId::of_blob(scratch);
    *id.as_bytes().first_chunk().expect("an id is longer")
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header
}

/// Writes a file.
pub(super) struct Writer<W> {
    to: W,
    last: [u8; CHECK_BYTES],
    frame: Vec<u8>,
    scratch: Vec<u8>,
    counts: Counts,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(mut to: W) -> io::Result<Self> {
        let header = header();
        to.write_all(&header)?;
        Ok(Self {
            to,
            last: header,
            frame: Vec::new(),
            scratch: Vec::new(),
            counts: Counts::default(),
            bytes: HEADER_BYTES as u64,
        })
    }

    /// Appends a frame. [`Frame::End`] is [`Writer::finish`]'s.
    pub(super) fn push(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        match frame {
            Frame::Checkpoint { .. } => self.counts.checkpoints += 1,
            Frame::Put { part, .. } => {
                self.counts.changes += 1;
                self.counts.value_bytes += part.len() as u64;
            }
            Frame::Part { part } => self.counts.value_bytes += part.len() as u64,
            Frame::Delete { .. } => self.counts.changes += 1,
            _ => {}
        }
        self.frame.clear();
        self.frame.resize(FRAME_HEADER_BYTES, 0);
        let kind = frame.encode(&mut self.frame);
        let body_bytes = (self.frame.len() - FRAME_HEADER_BYTES) as u32;
        self.frame[0] = kind;
        self.frame[4..FRAME_HEADER_BYTES].copy_from_slice(&body_bytes.to_le_bytes());
        self.last = check(&self.last, &self.frame, &mut self.scratch);
        self.to.write_all(&self.frame)?;
        self.to.write_all(&self.last)?;
        self.bytes += (self.frame.len() + CHECK_BYTES) as u64;
        Ok(())
    }

    /// Puts a key with its value, in as many frames as it takes.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let (part, mut rest) = value.split_at(value.len().min(PART_BYTES_MAX));
        self.push(&Frame::Put {
            key,
            value_bytes: value.len() as u32,
            part,
        })?;
        while !rest.is_empty() {
            let (part, more) = rest.split_at(rest.len().min(PART_BYTES_MAX));
            self.push(&Frame::Part { part })?;
            rest = more;
        }
        Ok(())
    }

    /// Ends the file: what it holds, and its bytes.
    pub(super) fn finish(mut self) -> io::Result<(W, Counts, u64)> {
        self.push(&Frame::End(self.counts))?;
        self.to.flush()?;
        Ok((self.to, self.counts, self.bytes))
    }
}

impl<'a> Frame<'a> {
    /// Appends the body; the kind.
    fn encode(&self, out: &mut Vec<u8>) -> u8 {
        let id = |id: &Option<ObjectId>| id.map_or([0; OBJECT_ID_BYTES], |id| *id.as_bytes());
        match self {
            Self::Agent { name } => {
                out.extend_from_slice(name.as_bytes());
                KIND_AGENT
            }
            Self::Checkpoint { base, bytes } => {
                out.extend_from_slice(&id(base));
                out.extend_from_slice(bytes);
                KIND_CHECKPOINT
            }
            Self::Put {
                key,
                value_bytes,
                part,
            } => {
                out.extend_from_slice(&value_bytes.to_le_bytes());
                out.extend_from_slice(&(key.len() as u32).to_le_bytes());
                out.extend_from_slice(key);
                out.extend_from_slice(part);
                KIND_PUT
            }
            Self::Part { part } => {
                out.extend_from_slice(part);
                KIND_PART
            }
            Self::Delete { key } => {
                out.extend_from_slice(key);
                KIND_DELETE
            }
            Self::Branch { name, head } => {
                out.extend_from_slice(&id(head));
                out.extend_from_slice(name.as_bytes());
                KIND_BRANCH
            }
            Self::Tag { name, target } => {
                out.extend_from_slice(target.as_bytes());
                out.extend_from_slice(name.as_bytes());
                KIND_TAG
            }
            Self::End(counts) => {
                for count in [counts.checkpoints, counts.changes, counts.value_bytes] {
                    out.extend_from_slice(&count.to_le_bytes());
                }
                KIND_END
            }
        }
    }

    fn decode(kind: u8, body: &'a [u8]) -> Result<Self, &'static str> {
        let name = |bytes: &'a [u8]| std::str::from_utf8(bytes).map_err(|_| "a name is no text");
        let id = || body.split_first_chunk().ok_or("a frame is too short");
        let some = |id: &[u8; OBJECT_ID_BYTES]| {
            (*id != [0; OBJECT_ID_BYTES]).then_some(ObjectId::from_bytes(*id))
        };
        Ok(match kind {
            KIND_AGENT if (1..=AGENT_NAME_BYTES_MAX).contains(&body.len()) => {
                Self::Agent { name: name(body)? }
            }
            KIND_CHECKPOINT => {
                let (base, bytes) = id()?;
                let base = some(base);
                Self::Checkpoint { base, bytes }
            }
            KIND_PUT => {
                let short = "a frame is too short";
                let (value_bytes, rest) = body.split_first_chunk().ok_or(short)?;
                let (key_bytes, rest) = rest.split_first_chunk().ok_or(short)?;
                let key_bytes = u32::from_le_bytes(*key_bytes) as usize;
                let (key, part) = rest.split_at_checked(key_bytes).ok_or(short)?;
                Self::Put {
                    key: checked(key)?,
                    value_bytes: u32::from_le_bytes(*value_bytes),
                    part,
                }
            }
            KIND_PART => Self::Part { part: body },
            KIND_DELETE => Self::Delete {
                key: checked(body)?,
            },
            KIND_BRANCH => {
                let (head, rest) = id()?;
                let (head, name) = (some(head), name(rest)?);
                Self::Branch { name, head }
            }
            KIND_TAG => {
                let (target, rest) = id()?;
                let (target, name) = (ObjectId::from_bytes(*target), name(rest)?);
                Self::Tag { name, target }
            }
            KIND_END => {
                let (numbers, rest) = body.as_chunks::<8>();
                let &[checkpoints, changes, value_bytes] = numbers else {
                    return Err("the last frame has another length");
                };
                if !rest.is_empty() {
                    return Err("the last frame has another length");
                }
                Self::End(Counts {
                    checkpoints: u64::from_le_bytes(checkpoints),
                    changes: u64::from_le_bytes(changes),
                    value_bytes: u64::from_le_bytes(value_bytes),
                })
            }
            _ => return Err("a frame of a kind that this version does not know"),
        })
    }
}

fn checked(key: &[u8]) -> Result<&[u8], &'static str> {
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(key),
        _ => Err("a key has a length that keys can't have"),
    }
}

/// Reads a file, frame by frame.
pub(super) struct Reader<R> {
    from: R,
    /// Where the next frame begins.
    offset: u64,
    last: [u8; CHECK_BYTES],
    frame: Vec<u8>,
    scratch: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(from: R) -> Result<Self, BadFile> {
        let mut reader = Self {
            from,
            offset: 0,
            last: header(),
            frame: Vec::new(),
            scratch: Vec::new(),
        };
        let got = reader.fill(HEADER_BYTES)?;
        let found = &reader.frame[..got];
        if got < HEADER_BYTES || found[..8] != MAGIC {
            return Err(BadFile::NotAnExport);
        }
        let version = u32::from_le_bytes(found[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(BadFile::Newer { found: version });
        }
        if *found != header() {
            return Err(reader.damaged("its header"));
        }
        reader.offset = HEADER_BYTES as u64;
        reader.frame.clear();
        Ok(reader)
    }

    /// Where the last frame that was read began.
    pub(super) fn damaged(&self, what: &'static str) -> BadFile {
        let bytes = self.frame.len() as u64;
        BadFile::Damaged {
            offset: self.offset.saturating_sub(bytes),
            what,
        }
    }

    /// The next frame.
    pub(super) fn next(&mut self) -> Result<Frame<'_>, BadFile> {
        self.frame.clear();
        let got = self.fill(FRAME_HEADER_BYTES)?;
        if got < FRAME_HEADER_BYTES {
            return Err(self.truncated(got));
        }
        let body_bytes = u32::from_le_bytes(self.frame[4..8].try_into().expect("4 bytes")) as usize;
        let at = |what| BadFile::Damaged {
            offset: self.offset,
            what,
        };
        if self.frame[1..4] != [0; 3] || body_bytes > BODY_BYTES_MAX {
            return Err(at("no frame begins here"));
        }
        let rest = body_bytes + CHECK_BYTES;
        let got = self.fill(rest)?;
        if got < rest {
            return Err(self.truncated(FRAME_HEADER_BYTES + got));
        }
        let end = FRAME_HEADER_BYTES + body_bytes;
        let (frame, found) = self.frame.split_at(end);
        let wanted = check(&self.last, frame, &mut self.scratch);
        let offset = self.offset;
        if wanted != *found {
            return Err(BadFile::Damaged {
                offset,
                what: "a frame's bytes, or one before it is missing",
            });
        }
        self.last = wanted;
        self.offset += self.frame.len() as u64;
        let (kind, body) = (self.frame[0], &self.frame[FRAME_HEADER_BYTES..end]);
        Frame::decode(kind, body).map_err(|what| BadFile::Damaged { offset, what })
    }

    /// Whether the file ends here.
    pub(super) fn is_at_end(&mut self) -> Result<bool, BadFile> {
        self.frame.clear();
        Ok(self.fill(1)? == 0)
    }

    /// Reads `bytes` more bytes; how many there were.
    fn fill(&mut self, bytes: usize) -> Result<usize, BadFile> {
        let start = self.frame.len();
        let read = (&mut self.from)
            .take(bytes as u64)
            .read_to_end(&mut self.frame);
        let offset = self.offset + start as u64;
        read.map_err(|source| BadFile::Io { offset, source })
    }

    fn truncated(&self, got: usize) -> BadFile {
        BadFile::Truncated {
            offset: self.offset + got as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        let id = ObjectId::of_blob(b"id");
        writer.push(&Frame::Agent { name: "planner" }).unwrap();
        let (base, bytes) = (Some(id), &b"checkpoint"[..]);
        writer.push(&Frame::Checkpoint { base, bytes }).unwrap();
        writer.put(b"key", b"value").unwrap();
        writer.put(b"large", &vec![7; PART_BYTES_MAX + 10]).unwrap();
        writer.push(&Frame::Delete { key: b"gone" }).unwrap();
        let (name, head) = ("main", None);
        writer.push(&Frame::Branch { name, head }).unwrap();
        let (name, target) = ("v1", id);
        writer.push(&Frame::Tag { name, target }).unwrap();
        let (file, counts, bytes) = writer.finish().unwrap();
        assert_eq!(bytes, file.len() as u64);
        assert_eq!((counts.checkpoints, counts.changes), (1, 3));
        file
    }

    /// Reads a file to its end; how many frames it has.
    fn read(file: &[u8]) -> Result<usize, BadFile> {
        let mut reader = Reader::new(file)?;
        for frames in 1.. {
            if let Frame::End(_) = reader.next()? {
                return match reader.is_at_end()? {
                    true => Ok(frames),
                    false => Err(reader.damaged("bytes behind the end")),
                };
            }
        }
        unreachable!("files end")
    }

    #[test]
    fn a_file_reads_back_frame_by_frame() {
        let file = example();
        let mut reader = Reader::new(&*file).unwrap();
        let id = ObjectId::of_blob(b"id");
        assert_eq!(reader.next().unwrap(), Frame::Agent { name: "planner" });
        let (base, bytes) = (Some(id), &b"checkpoint"[..]);
        assert_eq!(reader.next().unwrap(), Frame::Checkpoint { base, bytes });
        let (key, value_bytes, part) = (&b"key"[..], 5, &b"value"[..]);
        let put = Frame::Put {
            key,
            value_bytes,
            part,
        };
        assert_eq!(reader.next().unwrap(), put);
        assert!(
            matches!(reader.next().unwrap(), Frame::Put { part, .. } if part.len() == PART_BYTES_MAX)
        );
        assert_eq!(reader.next().unwrap(), Frame::Part { part: &[7; 10] });
        assert_eq!(reader.next().unwrap(), Frame::Delete { key: b"gone" });
        assert_eq!(read(&file).unwrap(), 9);
    }

    #[test]
    fn no_bit_and_no_byte_can_be_changed_cut_or_moved() {
        let file = example();
        // Every byte of the small frames, some of the large value's.
        let places =
            (0..file.len()).filter(|at| *at < 300 || at % 4099 == 0 || at + 300 > file.len());
        for at in places {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << (at % 8);
            let error = read(&damaged).unwrap_err();
            if let BadFile::Damaged { offset, .. } | BadFile::Truncated { offset } = error {
                assert!(offset <= damaged.len() as u64, "{at}: {error}");
            }
            assert!(read(&file[..at]).is_err(), "cut to {at}");
        }
        let longer = [&*file, &[0]].concat();
        assert!(read(&longer).is_err());
        // A frame that is left out breaks the chain, though each that stays is whole.
        let first = HEADER_BYTES + FRAME_HEADER_BYTES + "planner".len() + CHECK_BYTES;
        let second = FRAME_HEADER_BYTES + OBJECT_ID_BYTES + "checkpoint".len() + CHECK_BYTES;
        let without = [&file[..first], &file[first + second..]].concat();
        let error = read(&without).unwrap_err();
        assert!(
            matches!(error, BadFile::Damaged { offset, .. } if offset == first as u64),
            "{error}"
        );
    }

    #[test]
    fn what_is_something_else_is_told_apart() {
        assert!(matches!(
            read(b"SQLite format 3\0").unwrap_err(),
            BadFile::NotAnExport
        ));
        assert!(matches!(read(b"").unwrap_err(), BadFile::NotAnExport));
        let mut newer = example();
        newer[8] = 2;
        assert!(matches!(
            read(&newer).unwrap_err(),
            BadFile::Newer { found: 2 }
        ));
    }
}
