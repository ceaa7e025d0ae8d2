//! Frames: the messages of the socket, by which sessions and lanes come and go.
//!
//! Floor 1, room `agent`. Bytes in, frames out, and back; the socket is next door.
//!
//! Invariants
//! - decoding never panics, borrows its texts from the bytes, and accepts exactly what encoding
//!   writes: no bytes after the last field, reserved bytes zero.
//! - the 16 bytes of the header, and the whole of `Refused`, are the same in every version, so
//!   that two versions can tell each other why they can't speak.

use crate::agent::CloseReason;
use crate::agent::layout::{BadSizes, LaneSizes, PROTOCOL_VERSION, SHARDS_MAX};
use crate::id::{AGENT_NAME_BYTES_MAX, AgentNo, LaneNo, SessionNo, ShardNo};

/// Largest frame, header and all.
pub const FRAME_BYTES_MAX: usize = 4096;
/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Most bytes of the body of an `Ask` or a `Told`.
pub const BODY_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_HEADER_BYTES;
/// First word of every frame: the bytes `HELI`.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"HELI");
/// Longest text of a `Refused` or `Closing`; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most descriptors beside one frame.
pub const FDS_MAX: usize = 1 + SHARDS_MAX;

/// Flag of `Attach`: make the agent if there is none of the name.
pub const ATTACH_CREATE: u32 = 1;
/// Flag of `Attach`: other agents may read it (set when it is made).
pub const ATTACH_PUBLIC: u32 = 2;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Frame<'a> {
    /// Client: opens a session.
    Hello {
        /// Bits of optional features the client knows; none are defined yet.
        features: u64,
        /// Name of the process, for messages and counters.
        name: &'a str,
    },
    /// Server: the session is open. Descriptors: session region, then each shard's status page.
    Welcome {
        /// Bits of optional features that both know.
        features: u64,
        /// The session.
        session: SessionNo,
        /// Shards, and pages of the session region.
        shards: u16,
    },
    /// Server: no. After a `Hello` the socket is closed.
    Refused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why, and what to do, for people.
        text: &'a str,
    },
    /// Client: opens a lane to an agent.
    Attach {
        /// [`ATTACH_CREATE`], [`ATTACH_PUBLIC`].
        flags: u32,
        /// The agent's name.
        agent: &'a str,
    },
    /// Server: the lane is open. Descriptors: regions C and S, and the agent's window if
    /// `window_bytes` is not 0.
    Attached {
        /// The lane.
        lane: LaneNo,
        /// The agent.
        agent: AgentNo,
        /// The shard that owns it.
        shard: ShardNo,
        /// Sizes of rings and arenas.
        sizes: LaneSizes,
        /// Bytes of the window's region.
        window_bytes: u64,
    },
    /// Client: closes a lane.
    Detach {
        /// The lane.
        lane: LaneNo,
    },
    /// Server: the lane is closed; its regions are the client's to unmap.
    Detached {
        /// The lane.
        lane: LaneNo,
    },
    /// Client: wakes a shard that sleeps.
    Bell {
        /// The shard.
        shard: ShardNo,
    },
    /// Server: a lane that asked for it has a completion.
    Wake {
        /// The lane.
        lane: LaneNo,
    },
    /// Server: the session ends now.
    Closing {
        /// Why, for programs.
        reason: CloseReason,
        /// Why, and what to do, for people.
        text: &'a str,
    },
    /// Client: asks something about agents, be it attached to them or not.
    Ask {
        /// A [`crate::agent::lifecycle::Ask`].
        body: &'a [u8],
    },
    /// Server: the answer to an `Ask`.
    Told {
        /// What the question says that it is.
        body: &'a [u8],
    },
}

/// Why a session or lane was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalCode {
    /// The versions differ.
    Version,
    /// The frame can't be read, or is not expected now.
    Protocol,
    /// The peer's user may not do this.
    NotAllowed,
    /// No agent of that name, and `CREATE` was not set.
    NoSuchAgent,
    /// The runtime has all the sessions or lanes it can have.
    TooMany,
    /// Out of memory or descriptors.
    NoMemory,
    /// The runtime is shutting down.
    ShuttingDown,
    /// The disk failed or is full.
    Disk,
    /// No such lane in this session.
    NoSuchLane,
    /// The shard that owns the agent failed; the runtime has to be restarted.
    ShardFailed,
    /// Lanes are attached to the agent.
    InUse,
    /// A code of a later version.
    Other(u32),
}

impl RefusalCode {
    const KNOWN: [Self; 11] = [
        Self::Version,
        Self::Protocol,
        Self::NotAllowed,
        Self::NoSuchAgent,
        Self::TooMany,
        Self::NoMemory,
        Self::ShuttingDown,
        Self::Disk,
        Self::NoSuchLane,
        Self::ShardFailed,
        Self::InUse,
    ];

    /// The number on the wire, from 1.
    #[must_use]
    pub fn to_code(self) -> u32 {
        match self {
            Self::Other(code) => code,
            known => {
                let at = Self::KNOWN.iter().position(|each| *each == known);
                1 + at.expect("every code is listed") as u32
            }
        }
    }

    /// The meaning of a number.
    #[must_use]
    pub fn from_code(code: u32) -> Self {
        let known = (code as usize)
            .checked_sub(1)
            .and_then(|at| Self::KNOWN.get(at));
        known.copied().unwrap_or(Self::Other(code))
    }
}

/// Bytes that are no frame, or a frame that can't be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Fewer bytes than the header, or than the header says, or than the fields need.
    #[error("frame cut short: {found} bytes of {expected}; send each frame in one message")]
    Truncated {
        /// Bytes needed.
        expected: usize,
        /// Bytes there are.
        found: usize,
    },
    /// More bytes than a frame may have.
    #[error("frame of {bytes} bytes, the largest is {FRAME_BYTES_MAX}: shorten the name or text")]
    Oversized {
        /// Bytes of the frame.
        bytes: usize,
    },
    /// Bytes after the last field.
    #[error("frame with {extra} bytes after its last field; check the layout of this kind")]
    Trailing {
        /// Bytes too many.
        extra: usize,
    },
    /// Not our protocol at all.
    #[error(
        "frame begins with {found:#010x}, not with {FRAME_MAGIC:#010x} (HELI): the peer is no Helios; check the socket path"
    )]
    Magic {
        /// The word found.
        found: u32,
    },
    /// The peer is newer than we are.
    #[error("the peer speaks protocol version {theirs}, newer than ours, {ours}: update this side")]
    Newer {
        /// Our version.
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
    /// The peer is older than we are.
    #[error(
        "the peer speaks protocol version {theirs}, older than ours, {ours}: update the other side"
    )]
    Older {
        /// Our version.
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
    /// No such kind of frame.
    #[error("unknown kind of frame {kind}; this version knows 1 to 12")]
    Kind {
        /// The number found.
        kind: u16,
    },
    /// A name of no bytes.
    #[error("empty {field}: give it 1 to {AGENT_NAME_BYTES_MAX} bytes of UTF-8")]
    NameEmpty {
        /// Which name.
        field: &'static str,
    },
    /// A name, or text, of too many bytes.
    #[error("{field} of {bytes} bytes, at most {max} are allowed: shorten it")]
    NameTooLong {
        /// Which name.
        field: &'static str,
        /// Its length.
        bytes: usize,
        /// Longest allowed.
        max: usize,
    },
    /// A name, or text, that is not UTF-8.
    #[error("{field} is not UTF-8 from byte {at} on: encode it as UTF-8")]
    NameNotUtf8 {
        /// Which name.
        field: &'static str,
        /// First byte that isn't.
        at: usize,
    },
    /// Unknown flags of an `Attach`.
    #[error("attach flags {found:#x}: only 1 (create) and 2 (public) exist, other bits are zero")]
    Flags {
        /// The flags found.
        found: u32,
    },
    /// A number of shards that no runtime has.
    #[error("welcome with {found} shards, not 1 to {SHARDS_MAX}: the runtime is broken")]
    Shards {
        /// The number found.
        found: u16,
    },
    /// Reserved bytes that are not zero.
    #[error("reserved bytes of a frame are not zero; check the layout of this kind")]
    Reserved,
    /// Sizes that no lane has.
    #[error(transparent)]
    Sizes(#[from] BadSizes),
}

impl<'a> Frame<'a> {
    /// The number of the kind on the wire.
    #[must_use]
    pub fn kind(&self) -> u16 {
        match self {
            Self::Hello { .. } => 1,
            Self::Welcome { .. } => 2,
            Self::Refused { .. } => 3,
            Self::Attach { .. } => 4,
            Self::Attached { .. } => 5,
            Self::Detach { .. } => 6,
            Self::Detached { .. } => 7,
            Self::Bell { .. } => 8,
            Self::Wake { .. } => 9,
            Self::Closing { .. } => 10,
            Self::Ask { .. } => 11,
            Self::Told { .. } => 12,
        }
    }

    /// How many descriptors travel beside it.
    #[must_use]
    pub fn fds(&self) -> usize {
        match *self {
            Self::Welcome { shards, .. } => 1 + usize::from(shards),
            Self::Attached { window_bytes, .. } => 2 + usize::from(window_bytes != 0),
            _ => 0,
        }
    }

    /// Writes the frame, with the request number that it asks or answers, and says how long it is.
    ///
    /// # Errors
    /// A name that is empty or too long.
    pub fn encode(
        &self,
        request: u32,
        out: &mut [u8; FRAME_BYTES_MAX],
    ) -> Result<usize, FrameError> {
        let mut w = Writer {
            out,
            at: FRAME_HEADER_BYTES,
        };
        match *self {
            Self::Hello { features, name } => {
                w.put(&features.to_le_bytes());
                w.name("process name", name)?;
            }
            Self::Welcome {
                features,
                session,
                shards,
            } => {
                w.put(&features.to_le_bytes());
                w.put(&session.0.to_le_bytes());
                w.put(&shards.to_le_bytes());
            }
            Self::Refused { code, text } => {
                w.put(&code.to_code().to_le_bytes());
                w.text(text);
            }
            Self::Attach { flags, agent } => {
                w.put(&flags.to_le_bytes());
                w.name("agent name", agent)?;
            }
            Self::Attached {
                lane,
                agent,
                shard,
                sizes,
                window_bytes,
            } => {
                w.put(&lane.0.to_le_bytes());
                w.put(&agent.0.to_le_bytes());
                w.put(&shard.0.to_le_bytes());
                w.put(&[0; 2]);
                w.put(&sizes.ring_slots().to_le_bytes());
                w.put(&sizes.input_bytes().to_le_bytes());
                w.put(&sizes.output_bytes().to_le_bytes());
                w.put(&window_bytes.to_le_bytes());
            }
            Self::Detach { lane } | Self::Detached { lane } | Self::Wake { lane } => {
                w.put(&lane.0.to_le_bytes());
            }
            Self::Bell { shard } => w.put(&shard.0.to_le_bytes()),
            Self::Closing { reason, text } => {
                w.put(&reason.to_code().to_le_bytes());
                w.text(text);
            }
            Self::Ask { body } | Self::Told { body } => {
                if body.len() > BODY_BYTES_MAX {
                    let bytes = FRAME_HEADER_BYTES + body.len();
                    return Err(FrameError::Oversized { bytes });
                }
                w.put(body);
            }
        }
        let bytes = w.at;
        let body = (bytes - FRAME_HEADER_BYTES) as u32;
        w.at = 0;
        w.put(&FRAME_MAGIC.to_le_bytes());
        w.put(&PROTOCOL_VERSION.to_le_bytes());
        w.put(&self.kind().to_le_bytes());
        w.put(&request.to_le_bytes());
        w.put(&body.to_le_bytes());
        Ok(bytes)
    }

    /// Reads one message: the request number and the frame.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn decode(bytes: &'a [u8]) -> Result<(u32, Self), FrameError> {
        if bytes.len() > FRAME_BYTES_MAX {
            let bytes = bytes.len();
            return Err(FrameError::Oversized { bytes });
        }
        let mut r = Reader { bytes, at: 0 };
        let found = r.u32()?;
        if found != FRAME_MAGIC {
            return Err(FrameError::Magic { found });
        }
        let theirs = r.u16()?;
        let kind = r.u16()?;
        let request = r.u32()?;
        let body = r.u32()? as usize;
        // A refusal is read whatever its version: it says what the matter is.
        if kind != 3 {
            let ours = PROTOCOL_VERSION;
            if theirs > ours {
                return Err(FrameError::Newer { ours, theirs });
            }
            if theirs < ours {
                return Err(FrameError::Older { ours, theirs });
            }
        }
        let expected = FRAME_HEADER_BYTES.saturating_add(body);
        if expected > FRAME_BYTES_MAX {
            return Err(FrameError::Oversized { bytes: expected });
        }
        if bytes.len() < expected {
            let found = bytes.len();
            return Err(FrameError::Truncated { expected, found });
        }
        let frame = Self::decode_body(kind, &mut r)?;
        if r.at != bytes.len() || expected != bytes.len() {
            let extra = bytes.len().max(expected) - r.at.min(expected);
            return Err(FrameError::Trailing { extra });
        }
        Ok((request, frame))
    }

    fn decode_body(kind: u16, r: &mut Reader<'a>) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Hello {
                features: r.u64()?,
                name: r.name("process name")?,
            },
            2 => Self::Welcome {
                features: r.u64()?,
                session: SessionNo(r.u64()?),
                shards: match r.u16()? {
                    found if found == 0 || usize::from(found) > SHARDS_MAX => {
                        return Err(FrameError::Shards { found });
                    }
                    shards => shards,
                },
            },
            3 => Self::Refused {
                code: RefusalCode::from_code(r.u32()?),
                text: r.text()?,
            },
            4 => Self::Attach {
                flags: match r.u32()? {
                    found if found & !(ATTACH_CREATE | ATTACH_PUBLIC) != 0 => {
                        return Err(FrameError::Flags { found });
                    }
                    flags => flags,
                },
                agent: r.name("agent name")?,
            },
            5 => Self::Attached {
                lane: LaneNo(r.u32()?),
                agent: AgentNo(r.u32()?),
                shard: ShardNo(r.u16()?),
                sizes: {
                    if r.u16()? != 0 {
                        return Err(FrameError::Reserved);
                    }
                    LaneSizes::new(r.u32()?, r.u32()?, r.u32()?)?
                },
                window_bytes: r.u64()?,
            },
            6 => Self::Detach {
                lane: LaneNo(r.u32()?),
            },
            7 => Self::Detached {
                lane: LaneNo(r.u32()?),
            },
            8 => Self::Bell {
                shard: ShardNo(r.u16()?),
            },
            9 => Self::Wake {
                lane: LaneNo(r.u32()?),
            },
            10 => Self::Closing {
                reason: CloseReason::from_code(r.u32()?),
                text: r.text()?,
            },
            11 => Self::Ask { body: r.rest() },
            12 => Self::Told { body: r.rest() },
            kind => return Err(FrameError::Kind { kind }),
        })
    }
}

struct Writer<'a> {
    out: &'a mut [u8; FRAME_BYTES_MAX],
    at: usize,
}

impl Writer<'_> {
    /// Fields are bounded so that any frame fits: a name or a text and a few numbers.
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn name(&mut self, field: &'static str, name: &str) -> Result<(), FrameError> {
        check_name(field, name.len())?;
        self.put(&(name.len() as u16).to_le_bytes());
        self.put(name.as_bytes());
        Ok(())
    }

    fn text(&mut self, text: &str) {
        let mut len = text.len().min(TEXT_BYTES_MAX);
        while !text.is_char_boundary(len) {
            len -= 1;
        }
        self.put(&(len as u16).to_le_bytes());
        self.put(&text.as_bytes()[..len]);
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let expected = self.at + count;
        let found = self.bytes.len();
        let taken = self.bytes.get(self.at..expected);
        self.at = expected.min(found);
        taken.ok_or(FrameError::Truncated { expected, found })
    }

    fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        Ok(self.take(N)?.try_into().expect("N bytes"))
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_le_bytes)
    }

    fn name(&mut self, field: &'static str) -> Result<&'a str, FrameError> {
        let len = self.u16()?.into();
        check_name(field, len)?;
        self.str(field, len)
    }

    fn text(&mut self) -> Result<&'a str, FrameError> {
        let (field, max) = ("text", TEXT_BYTES_MAX);
        let bytes = self.u16()?.into();
        if bytes > max {
            return Err(FrameError::NameTooLong { field, bytes, max });
        }
        self.str(field, bytes)
    }

    fn str(&mut self, field: &'static str, len: usize) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.take(len)?).map_err(|bad| FrameError::NameNotUtf8 {
            field,
            at: bad.valid_up_to(),
        })
    }
}

fn check_name(field: &'static str, bytes: usize) -> Result<(), FrameError> {
    match bytes {
        0 => Err(FrameError::NameEmpty { field }),
        1..=AGENT_NAME_BYTES_MAX => Ok(()),
        _ => Err(FrameError::NameTooLong {
            field,
            bytes,
            max: AGENT_NAME_BYTES_MAX,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn every_kind() -> Vec<Frame<'static>> {
        vec![
            Frame::Hello {
                features: 1,
                name: "worker",
            },
            Frame::Welcome {
                features: 0,
                session: SessionNo(9),
                shards: 2,
            },
            Frame::Refused {
                code: RefusalCode::NotAllowed,
                text: "not yours",
            },
            Frame::Attach {
                flags: ATTACH_CREATE,
                agent: "größe",
            },
            Frame::Attached {
                lane: LaneNo(3),
                agent: AgentNo(4),
                shard: ShardNo(1),
                sizes: LaneSizes::DEFAULT,
                window_bytes: 65536,
            },
            Frame::Detach { lane: LaneNo(3) },
            Frame::Detached { lane: LaneNo(3) },
            Frame::Bell { shard: ShardNo(1) },
            Frame::Wake { lane: LaneNo(3) },
            Frame::Closing {
                reason: CloseReason::Terminated,
                text: "",
            },
        ]
    }

    fn encoded(frame: &Frame<'_>) -> Vec<u8> {
        let mut out = [0; FRAME_BYTES_MAX];
        let bytes = frame.encode(77, &mut out).unwrap();
        out[..bytes].to_vec()
    }

    #[test]
    fn every_kind_goes_through_its_bytes_and_nothing_shorter_or_longer_does() {
        for frame in every_kind() {
            let mut bytes = encoded(&frame);
            assert_eq!(Frame::decode(&bytes), Ok((77, frame)));
            for cut in 0..bytes.len() {
                let cut = Frame::decode(&bytes[..cut]);
                assert!(matches!(cut, Err(FrameError::Truncated { .. })), "{cut:?}");
            }
            bytes.push(0);
            let longer = Frame::decode(&bytes);
            assert!(
                matches!(longer, Err(FrameError::Trailing { extra: 1 })),
                "{longer:?}"
            );
            bytes[12] += 1; // The header agrees that there is one byte more.
            let longer = Frame::decode(&bytes);
            assert!(
                matches!(longer, Err(FrameError::Trailing { extra: 1 })),
                "{longer:?}"
            );
        }
    }

    #[test]
    fn questions_and_answers_are_whatever_is_left_of_the_frame() {
        for body in [&b""[..], b"question", &[7; BODY_BYTES_MAX]] {
            for frame in [Frame::Ask { body }, Frame::Told { body }] {
                assert_eq!(Frame::decode(&encoded(&frame)), Ok((77, frame)));
            }
        }
        let body = &[7; BODY_BYTES_MAX + 1][..];
        let long = Frame::Told { body }.encode(1, &mut [0; FRAME_BYTES_MAX]);
        assert!(
            matches!(long, Err(FrameError::Oversized { .. })),
            "{long:?}"
        );
    }

    #[test]
    fn each_wrong_header_has_its_error() {
        let good = encoded(&Frame::Detach { lane: LaneNo(1) });
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Frame::decode(&bytes).unwrap_err()
        };
        assert!(matches!(with(0, 0), FrameError::Magic { .. }));
        assert_eq!(with(4, 9), FrameError::Newer { ours: 1, theirs: 9 });
        assert_eq!(with(4, 0), FrameError::Older { ours: 1, theirs: 0 });
        assert_eq!(with(6, 13), FrameError::Kind { kind: 13 });
        assert_eq!(with(6, 0), FrameError::Kind { kind: 0 });
        assert!(matches!(with(13, 0x10), FrameError::Oversized { .. }));
        let long = vec![0; FRAME_BYTES_MAX + 1];
        assert!(matches!(
            Frame::decode(&long),
            Err(FrameError::Oversized { bytes: 4097 })
        ));
    }

    #[test]
    fn a_refusal_is_read_whatever_its_version() {
        let mut bytes = encoded(&Frame::Refused {
            code: RefusalCode::Other(99),
            text: "we speak version 9",
        });
        bytes[4] = 9;
        assert!(Frame::decode(&bytes).is_ok());
    }

    #[test]
    fn names_have_their_limits_and_texts_are_cut_at_a_letter() {
        let mut out = [0; FRAME_BYTES_MAX];
        let long = "a".repeat(256);
        for (name, fits) in [("", false), (&long[..255], true), (&long, false)] {
            let frame = Frame::Attach {
                flags: 0,
                agent: name,
            };
            assert_eq!(frame.encode(0, &mut out).is_ok(), fits);
        }
        let mut bad = encoded(&Frame::Attach {
            flags: 0,
            agent: "ab",
        });
        *bad.last_mut().unwrap() = 0xff;
        let error = Frame::decode(&bad).unwrap_err();
        assert!(matches!(error, FrameError::NameNotUtf8 { at: 1, .. }));
        let bytes = encoded(&Frame::Closing {
            reason: CloseReason::Other(7),
            text: &"é".repeat(600)[..],
        });
        let Ok((_, Frame::Closing { text, .. })) = Frame::decode(&bytes) else {
            panic!("a closing frame");
        };
        assert_eq!(text.len(), 1024);
        let odd = "a".to_owned() + &"é".repeat(600);
        let bytes = encoded(&Frame::Refused {
            code: RefusalCode::Disk,
            text: &odd,
        });
        assert!(matches!(
            Frame::decode(&bytes),
            Ok((_, Frame::Refused { text, .. })) if text.len() == 1023
        ));
    }

    #[test]
    fn codes_go_through_their_numbers() {
        for code in 0..20 {
            assert_eq!(RefusalCode::from_code(code).to_code(), code);
        }
        for code in 1..20 {
            assert_eq!(CloseReason::from_code(code).to_code(), code);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_mean_themselves(
            which in 0usize..10,
            noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            tail in prop::collection::vec(any::<u8>(), 0..40),
            keep: bool,
        ) {
            let mut bytes = if keep { encoded(&every_kind()[which]) } else { vec![] };
            bytes.extend(tail);
            for (at, byte) in noise {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            if let Ok((request, frame)) = Frame::decode(&bytes) {
                let mut out = [0; FRAME_BYTES_MAX];
                let len = frame.encode(request, &mut out).unwrap();
                // The version of a refusal is not kept, nor a closing reason of 0.
                out[4..6].copy_from_slice(&bytes[4..6]);
                if !matches!(frame, Frame::Closing { .. }) {
                    prop_assert_eq!(&out[..len], &bytes[..]);
                }
            }
        }
    }
}
