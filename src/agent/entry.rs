//! Submissions and completions: 64 bytes each, encoded, decoded and checked.
//!
//! Floor 1, room `agent`. Values in private memory only: the lanes copy an entry out of shared
//! memory word by word, once, and what is here judges the copy.
//!
//! Invariants
//! - a [`Submission`] that came out of [`Submission::decode`] has every extent inside its arena,
//!   every length within its limit, and zero in every field its operation doesn't use.
//! - decoding never panics, whatever the bytes.

use crate::agent::layout::{COMPARE_BYTES, ENTRY_WORDS, LaneSizes, PART_BYTES_MAX};
use crate::agent::malformed::Malformed;
use crate::config::Durability;
use crate::id::{AGENT_NAME_BYTES_MAX, BranchNo, KEY_BYTES_MAX, ObjectId};

/// What a client asks of the shard; the byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// The value of a key, from byte `arg0` on, as much as the reply extent holds.
    Get = 1,
    /// A whole value of at most 64 KiB.
    Put = 2,
    /// Bytes `arg0..` of a value of `arg1` bytes, in order; the last part commits.
    PutPart = 3,
    /// Removes a key.
    Delete = 4,
    /// Whether a key is there, and its id and size.
    Exists = 5,
    /// Keys under a prefix (the key extent), after a cursor (the value extent), in order; at most
    /// `arg0` of them, 0: as many as the reply holds.
    Scan = 6,
    /// Several keys, packed in the value extent.
    MultiGet = 7,
    /// Several pairs, packed in the value extent.
    MultiPut = 8,
    /// Waits until log sequence `arg0` has the durability asked for; 0: all of this agent's
    /// writes so far.
    Sync = 9,
    /// Counters of the runtime.
    Stats = 10,
    /// Like `Get`, from the public agent whose name is in the value extent.
    GetFrom = 11,
    /// A [`crate::agent::call::Call`] in the value extent; its answer goes to the reply extent.
    Call = 12,
}

impl Op {
    /// All operations, in the order of their bytes.
    pub const ALL: [Self; 12] = [
        Self::Get,
        Self::Put,
        Self::PutPart,
        Self::Delete,
        Self::Exists,
        Self::Scan,
        Self::MultiGet,
        Self::MultiPut,
        Self::Sync,
        Self::Stats,
        Self::GetFrom,
        Self::Call,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// Whether an entry of it may name a branch.
    #[must_use]
    pub const fn has_branch(self) -> bool {
        self.shape().branch
    }

    const fn shape(self) -> Shape {
        const KEY: (u32, u32) = (1, KEY_BYTES_MAX as u32);
        const NONE: Shape = Shape {
            key: (0, 0),
            value: (0, 0),
            reply: false,
            arg0: false,
            arg1: false,
            writes: false,
            compares: false,
            branch: false,
        };
        const READ: Shape = Shape {
            key: KEY,
            reply: true,
            arg0: true,
            ..NONE
        };
        const LIST: Shape = Shape {
            value: (1, PART_BYTES_MAX),
            reply: true,
            branch: true,
            ..NONE
        };
        const WRITE: Shape = Shape {
            key: KEY,
            writes: true,
            compares: true,
            branch: true,
            ..NONE
        };
        match self {
            Self::Get => Shape {
                branch: true,
                ..READ
            },
            Self::Put => Shape {
                value: (0, PART_BYTES_MAX),
                ..WRITE
            },
            Self::PutPart => Shape {
                value: (1, PART_BYTES_MAX),
                arg0: true,
                arg1: true,
                ..WRITE
            },
            Self::Delete => WRITE,
            Self::Exists => Shape {
                key: KEY,
                branch: true,
                ..NONE
            },
            Self::Scan => Shape {
                key: (0, KEY_BYTES_MAX as u32),
                value: (0, KEY_BYTES_MAX as u32),
                branch: true,
                ..READ
            },
            Self::MultiGet => LIST,
            Self::MultiPut | Self::Call => Shape {
                writes: true,
                ..LIST
            },
            Self::Sync => Shape {
                arg0: true,
                writes: true,
                ..NONE
            },
            Self::Stats => Shape {
                reply: true,
                ..NONE
            },
            Self::GetFrom => Shape {
                value: (1, AGENT_NAME_BYTES_MAX as u32),
                ..READ
            },
        }
    }
}

/// Which fields an operation uses, and how long they may be.
struct Shape {
    key: (u32, u32),
    value: (u32, u32),
    reply: bool,
    arg0: bool,
    arg1: bool,
    /// Names a durability.
    writes: bool,
    /// May carry `COMPARE`.
    compares: bool,
    /// May name a branch.
    branch: bool,
}

/// Bit of the flags byte: the value extent begins with the id the key must have now.
pub const FLAG_COMPARE: u8 = 1;

/// Bytes in an arena: offset from its start, and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Extent {
    /// Bytes from the start of the arena.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

impl Extent {
    /// Nothing: what an unused field holds.
    pub const EMPTY: Self = Self { offset: 0, len: 0 };

    const fn word(self) -> u64 {
        self.offset as u64 | (self.len as u64) << 32
    }

    const fn from_word(word: u64) -> Self {
        Self {
            offset: word as u32,
            len: (word >> 32) as u32,
        }
    }

    /// Whether it lies in an arena of `bytes`.
    #[must_use]
    pub const fn fits(self, bytes: u32) -> bool {
        self.offset as u64 + self.len as u64 <= bytes as u64
    }
}

/// One request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Submission {
    /// What to do.
    pub op: Op,
    /// The value extent begins with the 32-byte id that the key must have now (all zero: the key
    /// must be absent). On [`Op::Put`], [`Op::Delete`] and the last [`Op::PutPart`].
    pub compare: bool,
    /// What the write must survive before it is answered; `None`: the runtime's default.
    pub durability: Option<Durability>,
    /// Handed back in the completion; the server gives it no meaning.
    pub user_data: u64,
    /// The key, or a scan's prefix, in the input arena.
    pub key: Extent,
    /// The value and its like, in the input arena.
    pub value: Extent,
    /// Where the reply goes in the output arena, and how much there is room for.
    pub reply: Extent,
    /// See [`Op`].
    pub arg0: u64,
    /// See [`Op`].
    pub arg1: u64,
    /// The branch or fork that it is about, by the number that a call gave; `None`: the one that
    /// the lane is on.
    pub branch: Option<BranchNo>,
}

impl Submission {
    /// A submission of `op` with every other field empty.
    #[must_use]
    pub const fn new(op: Op, user_data: u64) -> Self {
        Self {
            op,
            compare: false,
            durability: None,
            user_data,
            key: Extent::EMPTY,
            value: Extent::EMPTY,
            reply: Extent::EMPTY,
            arg0: 0,
            arg1: 0,
            branch: None,
        }
    }

    /// Where the expected id lies, if the operation compares.
    #[must_use]
    pub fn expected(&self) -> Option<Extent> {
        self.compare.then_some(Extent {
            offset: self.value.offset,
            len: COMPARE_BYTES,
        })
    }

    /// The value extent without the expected id.
    #[must_use]
    pub fn payload(&self) -> Extent {
        let skip = if self.compare { COMPARE_BYTES } else { 0 };
        Extent {
            offset: self.value.offset + skip,
            len: self.value.len - skip,
        }
    }

    /// The entry as 8 words, under `tag`.
    #[must_use]
    pub fn encode(&self, tag: u32) -> [u64; ENTRY_WORDS] {
        let flags = if self.compare { FLAG_COMPARE } else { 0 };
        let durability = self.durability.map_or(0, |d| d as u8);
        let head = u64::from(tag)
            | (self.op as u64) << 32
            | u64::from(flags) << 40
            | u64::from(durability) << 48;
        [
            head,
            self.user_data,
            self.key.word(),
            self.value.word(),
            self.reply.word(),
            self.arg0,
            self.arg1,
            self.branch.map_or(0, |branch| u64::from(branch.0) + 1),
        ]
    }

    /// Reads a private copy of an entry; the tag was already looked at.
    ///
    /// # Errors
    /// The first rule that the entry breaks.
    pub fn decode(words: &[u64; ENTRY_WORDS], sizes: &LaneSizes) -> Result<Self, Malformed> {
        let [_, _, _, _, op, flags, durability, zero] = words[0].to_le_bytes();
        let Some(op) = Op::from_byte(op) else {
            return Err(Malformed::Op { found: op });
        };
        if flags & !FLAG_COMPARE != 0 {
            return Err(Malformed::Flags { op, found: flags });
        }
        if zero != 0 || words[7] > u64::from(u32::MAX) {
            return Err(Malformed::Reserved);
        }
        let submission = Self {
            op,
            compare: flags & FLAG_COMPARE != 0,
            durability: durability_from(durability)?,
            user_data: words[1],
            key: Extent::from_word(words[2]),
            value: Extent::from_word(words[3]),
            reply: Extent::from_word(words[4]),
            arg0: words[5],
            arg1: words[6],
            branch: (words[7] as u32).checked_sub(1).map(BranchNo),
        };
        submission.check(sizes)?;
        Ok(submission)
    }

    /// Whether the server would take it: the client asks before it writes.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self, sizes: &LaneSizes) -> Result<(), Malformed> {
        let shape = self.op.shape();
        if self.compare && !shape.compares {
            return Err(Malformed::Flags {
                op: self.op,
                found: FLAG_COMPARE,
            });
        }
        let id = if self.compare { COMPARE_BYTES } else { 0 };
        let (min, max) = (shape.value.0 + id, shape.value.1 + id);
        check_extent("key", self.key, shape.key, sizes.input_bytes())?;
        check_extent("value", self.value, (min, max), sizes.input_bytes())?;
        let reply_max = if shape.reply { u32::MAX } else { 0 };
        check_extent("reply", self.reply, (0, reply_max), sizes.output_bytes())?;
        let unused = [
            (!shape.arg0 && self.arg0 != 0, "arg0"),
            (!shape.arg1 && self.arg1 != 0, "arg1"),
            (!shape.writes && self.durability.is_some(), "durability"),
            (!shape.branch && self.branch.is_some(), "branch"),
        ];
        for (bad, field) in unused {
            if bad {
                return Err(Malformed::Unused { op: self.op, field });
            }
        }
        if self.op == Op::PutPart {
            self.check_part()?;
        }
        Ok(())
    }

    fn check_part(&self) -> Result<(), Malformed> {
        let len = self.payload().len;
        let end = self.arg0.checked_add(u64::from(len));
        let last = end == Some(self.arg1);
        if end.is_none_or(|end| end > self.arg1) || (self.compare && !last) {
            return Err(Malformed::Part {
                offset: self.arg0,
                len,
                total: self.arg1,
            });
        }
        Ok(())
    }
}

fn check_extent(
    field: &'static str,
    extent: Extent,
    (min, max): (u32, u32),
    arena_bytes: u32,
) -> Result<(), Malformed> {
    let Extent { offset, len } = extent;
    if len < min || len > max || (max == 0 && offset != 0) {
        return Err(Malformed::Length {
            field,
            len,
            min,
            max,
        });
    }
    if !extent.fits(arena_bytes) {
        return Err(Malformed::Place {
            field,
            offset,
            len,
            arena_bytes,
        });
    }
    Ok(())
}

fn durability_from(byte: u8) -> Result<Option<Durability>, Malformed> {
    match byte {
        0 => Ok(None),
        1 => Ok(Some(Durability::Volatile)),
        2 => Ok(Some(Durability::Process)),
        3 => Ok(Some(Durability::Power)),
        found => Err(Malformed::Durability { found }),
    }
}

macro_rules! byte_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$each:meta])* $variant:ident = $byte:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$each])* $variant = $byte),+
        }

        impl $name {
            /// The value of a byte on the wire, if this version knows it.
            #[must_use]
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($byte => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }
    };
}

byte_enum! {
    /// How a request ended.
    Status {
        /// Done.
        Ok = 0,
        /// No such key.
        NotFound = 1,
        /// The key's id is not the expected one; the completion carries the current id, all zero
        /// where the key is absent.
        Stale = 2,
        /// Not now; `detail` is a [`BusyReason`]. Nothing was done.
        Busy = 3,
        /// The disk, or the agent's quota of it, is full. Nothing was written.
        NoSpace = 4,
        /// The value would be longer than a value may be.
        TooLarge = 5,
        /// The other agent is not public.
        Forbidden = 6,
        /// The stored bytes don't have their id.
        Corrupt = 7,
        /// The disk failed; `detail` is the errno.
        IoFailed = 8,
        /// The runtime takes no writes.
        ReadOnly = 9,
        /// A part that is not the next one of its value; `value_bytes` is the offset expected.
        UploadOutOfOrder = 10,
        /// No agent of that name.
        NoSuchAgent = 11,
        /// The reply extent can't hold even an empty answer; `detail` is the bytes needed.
        ReplyTooSmall = 12,
        /// The runtime is closing; nothing was done.
        ShuttingDown = 13,
        /// The agent has no such branch or fork; nothing was done.
        NoSuchBranch = 14,
        /// No checkpoint, or none that the agent may read, is meant by the revision.
        NoSuchRevision = 15,
        /// The branch does not point at what was expected; the completion carries what it points at,
        /// all zero where that is nothing.
        StaleHead = 16,
        /// Changes that no checkpoint holds would be lost, or stand in the way; word 2 is their count.
        Unsaved = 17,
        /// The merge has conflicts, which are in the reply; nothing was done.
        Conflicts = 18,
        /// A branch or tag has that name.
        NameTaken = 19,
        /// No branch and no tag can have that name.
        BadName = 20,
        /// The two histories have no checkpoint in common.
        Unrelated = 21,
        /// Lanes are on the branch, as many as word 2 says.
        InUse = 22,
        /// The metadata is too large or malformed.
        BadMetadata = 23,
        /// The agent has no such superposition; it may have ended by itself.
        NoSuchSet = 32,
        /// The superposition has no such candidate.
        NoSuchCandidate = 33,
        /// A weight or bound that is not a number from 0 to 1e15.
        BadWeight = 34,
        /// Every candidate weighs 0: none can be drawn.
        NothingToDraw = 35,
        /// There are as many as there may be: word 2 says how many.
        LimitReached = 36,
        /// The bytes are no checkpoint of the fork's state; the completion's id is the fork's tree.
        WrongState = 40,
    }
}

byte_enum! {
    /// Why the answer is [`Status::Busy`], in the completion's `detail`.
    BusyReason {
        /// The memory budget is used up.
        Memory = 1,
        /// Too many cold reads are under way.
        ColdReads = 2,
        /// Too many unfinished uploads.
        Uploads = 3,
        /// The shard that owns the other agent has no room for the question.
        Mesh = 4,
        /// The log can't take the write yet.
        Log = 5,
        /// The runtime is out of descriptors.
        Descriptors = 6,
    }
}

byte_enum! {
    /// Where the value was found.
    Tier {
        /// Nowhere, or no value was asked for.
        None = 0,
        /// In the window.
        L1 = 1,
        /// In the shard's memory.
        L2 = 2,
        /// In a segment, resident.
        L3 = 3,
        /// In a segment, read from disk.
        Cold = 4,
    }
}

/// Bit of a completion's flags byte: there is more than the reply holds.
pub const FLAG_MORE: u8 = 1;

/// The answer to one submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// How it ended.
    pub status: Status,
    /// Where the value was found.
    pub tier: Tier,
    /// What a write survives now.
    pub durability: Option<Durability>,
    /// There is more: bytes after those returned, or keys after the last one.
    pub more: bool,
    /// As in the submission.
    pub user_data: u64,
    /// Length of the whole value; of a write or sync, the log sequence.
    pub value_bytes: u64,
    /// Bytes written at the start of the reply extent.
    pub reply_bytes: u32,
    /// More about the status.
    pub detail: u32,
    /// Id of the value; all zero where there is none.
    pub id: ObjectId,
}

impl Completion {
    /// An answer with no value and no reply.
    #[must_use]
    pub const fn new(user_data: u64, status: Status) -> Self {
        Self {
            status,
            tier: Tier::None,
            durability: None,
            more: false,
            user_data,
            value_bytes: 0,
            reply_bytes: 0,
            detail: 0,
            id: ObjectId::from_bytes([0; 32]),
        }
    }

    /// The entry as 8 words, under `tag`.
    #[must_use]
    pub fn encode(&self, tag: u32) -> [u64; ENTRY_WORDS] {
        let flags = if self.more { FLAG_MORE } else { 0 };
        let head = u64::from(tag)
            | (self.status as u64) << 32
            | (self.tier as u64) << 40
            | self.durability.map_or(0, |d| d as u64) << 48
            | u64::from(flags) << 56;
        let id = self.id.as_bytes();
        let part = |at: usize| u64::from_le_bytes(id[at..at + 8].try_into().expect("8 of 32"));
        [
            head,
            self.user_data,
            self.value_bytes,
            u64::from(self.reply_bytes) | u64::from(self.detail) << 32,
            part(0),
            part(8),
            part(16),
            part(24),
        ]
    }

    /// Reads a private copy of an entry; `None` where this version doesn't know a byte of it.
    #[must_use]
    pub fn decode(words: &[u64; ENTRY_WORDS]) -> Option<Self> {
        let [_, _, _, _, status, tier, durability, flags] = words[0].to_le_bytes();
        let mut id = [0; 32];
        for (bytes, word) in id.chunks_exact_mut(8).zip(&words[4..]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        Some(Self {
            status: Status::from_byte(status)?,
            tier: Tier::from_byte(tier)?,
            durability: durability_from(durability).ok()?,
            more: flags & FLAG_MORE != 0,
            user_data: words[1],
            value_bytes: words[2],
            reply_bytes: words[3] as u32,
            detail: (words[3] >> 32) as u32,
            id: ObjectId::from_bytes(id),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(offset: u32, len: u32) -> Extent {
        Extent { offset, len }
    }

    fn filled(op: Op) -> Submission {
        let shape = op.shape();
        let mut made = Submission::new(op, 7);
        made.key = place(64 * u32::from(shape.key.1 > 0), shape.key.0);
        made.value = place(128 * u32::from(shape.value.1 > 0), shape.value.0);
        if op == Op::PutPart {
            made.arg1 = 1;
        }
        made
    }

    #[test]
    fn every_op_goes_through_its_words_and_back() {
        for op in Op::ALL {
            let sent = filled(op);
            let words = sent.encode(5);
            assert_eq!(words[0] as u32, 5);
            assert_eq!(Submission::decode(&words, &LaneSizes::DEFAULT), Ok(sent));
        }
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let sizes = LaneSizes::DEFAULT;
        let end = sizes.input_bytes();
        let ok = |change: &dyn Fn(&mut Submission)| {
            let mut put = filled(Op::Put);
            change(&mut put);
            put.check(&sizes).is_ok()
        };
        assert!(ok(&|s| s.key = place(end - 1, 1)));
        assert!(!ok(&|s| s.key = place(end, 1)));
        assert!(!ok(&|s| s.key = place(u32::MAX, 1)));
        assert!(!ok(&|s| s.key.len = 0));
        assert!(ok(&|s| s.key.len = 1024));
        assert!(!ok(&|s| s.key.len = 1025));
        assert!(ok(&|s| s.value = place(end, 0)));
        assert!(ok(&|s| s.value = place(0, PART_BYTES_MAX)));
        assert!(!ok(&|s| s.value = place(0, PART_BYTES_MAX + 1)));
        assert!(!ok(&|s| s.compare = true), "no room for the expected id");
        assert!(ok(&|s| {
            s.compare = true;
            s.value.len = PART_BYTES_MAX + COMPARE_BYTES;
        }));
        assert!(!ok(&|s| s.reply = place(0, 1)), "a put has no reply");
        assert!(!ok(&|s| s.reply = place(64, 0)), "unused means all zero");
        assert!(!ok(&|s| s.arg0 = 1) && !ok(&|s| s.arg1 = 1));
    }

    #[test]
    fn parts_end_where_their_value_ends() {
        let check = |arg0, len, arg1, compare| {
            let mut part = filled(Op::PutPart);
            (part.arg0, part.arg1, part.compare) = (arg0, arg1, compare);
            part.value.len = len;
            part.check(&LaneSizes::DEFAULT)
        };
        assert_eq!(check(0, 10, 10, false), Ok(()));
        assert_eq!(check(5, 10, 100, false), Ok(()));
        assert!(check(5, 10, 14, false).is_err());
        assert!(check(u64::MAX, 10, u64::MAX, false).is_err());
        assert_eq!(check(5, 32 + 10, 15, true), Ok(()));
        assert!(
            check(5, 32 + 10, 16, true).is_err(),
            "compares before the last"
        );
    }

    proptest! {
        #[test]
        fn any_words_are_refused_or_mean_themselves(words: [u64; 8], small: bool) {
            let mut words = words;
            if small {
                // Random words nearly always fail on the first byte: come closer to valid ones.
                words[0] &= 0x0003_010f_ffff_ffff;
                for word in &mut words[2..7] {
                    *word &= 0x0000_07ff_0003_ffff;
                }
                words[7] = 0;
            }
            if let Ok(submission) = Submission::decode(&words, &LaneSizes::DEFAULT) {
                prop_assert_eq!(submission.encode(words[0] as u32), words);
                prop_assert!(submission.payload().fits(LaneSizes::DEFAULT.input_bytes()));
            }
            if let Some(completion) = Completion::decode(&words) {
                words[0] &= 0x01ff_ffff_ffff_ffff;
                prop_assert_eq!(completion.encode(words[0] as u32), words);
            }
        }
    }
}
