//! What can go wrong between an agent and its runtime, and what to do about it.

use crate::agent::CloseReason;
use crate::agent::bell::BadSession;
use crate::agent::call::BadName;
use crate::agent::client_lane::{LaneError, SubmitError};
use crate::agent::entry::{BusyReason, Completion, Status};
use crate::agent::frame::RefusalCode;
use crate::agent::socket::SocketError;
use crate::cache::WindowError;
use crate::client::versions::MergeConflict;
use crate::id::{OBJECT_ID_BYTES, ObjectId};
use crate::shared::SharedError;

/// A request that was not carried out, or a runtime that can't be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Not now; nothing was done. Retry after a pause.
    #[error("the runtime is busy ({reason:?}); retry after a pause")]
    Busy {
        /// What is short.
        reason: Option<BusyReason>,
    },
    /// The key does not name what the caller expected; nothing was done.
    #[error("the key names another value by now; read it and decide again")]
    Stale {
        /// What it names; `None` where it is absent.
        current: Option<ObjectId>,
    },
    /// The agent has no such branch or fork.
    #[error("the agent has no such branch or fork; list its branches")]
    NoSuchBranch,
    /// No checkpoint is meant by the revision.
    #[error("there is no such checkpoint, branch or tag in this agent's history")]
    NoSuchRevision,
    /// The branch points at another checkpoint than was expected; nothing was done.
    #[error("the branch points at another checkpoint by now; look at it and decide again")]
    StaleHead {
        /// What it points at.
        current: Option<ObjectId>,
    },
    /// Changes that no checkpoint holds would be lost; nothing was done.
    #[error("{changes} changed keys are in no checkpoint; make one, or say that they may be lost")]
    Unsaved {
        /// Keys written or deleted since.
        changes: u64,
    },
    /// Both sides of a merge changed these keys; nothing was done.
    #[error("the merge has conflicts, {} of them listed; give rules for their prefixes, or change one side", .listed.len())]
    Conflicts {
        /// Those that one reply held.
        listed: Vec<MergeConflict>,
        /// There are more.
        more: bool,
    },
    /// A branch or tag of that name exists.
    #[error("a branch or tag has that name; choose another, or delete it first")]
    NameTaken,
    /// A name that nothing can have.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// Two histories without a checkpoint in common, or whose common ones were pruned, can't be merged.
    #[error("the two histories have no checkpoint in common")]
    Unrelated,
    /// The branch can't be deleted while lanes are on it.
    #[error("{lanes} lanes are on the branch; switch or detach them first")]
    InUse {
        /// How many.
        lanes: u64,
    },
    /// Metadata of a checkpoint that is too large.
    #[error("the metadata is too large or malformed: store it as a value")]
    BadMetadata,
    /// Bytes that are no checkpoint of the state that they are to name; nothing was done.
    #[error(
        "these bytes are no checkpoint of the fork's state: rebuild it from its parent, or get an undamaged copy"
    )]
    WrongState,
    /// The disk is full; nothing was written.
    #[error("the disk of the data directory is full; free space and retry")]
    NoSpace,
    /// A value longer than 64 MiB, or a fork of more changes than one commit takes.
    #[error(
        "too large: split a value of more than 64 MiB over keys; checkpoint a fork of many changes before it is kept"
    )]
    TooLarge,
    /// A key of no bytes, or more than 1,024.
    #[error("a key of {bytes} bytes; keys have 1 to 1,024")]
    KeyLength {
        /// Its length.
        bytes: usize,
    },
    /// The other agent has not been marked public.
    #[error("that agent is not public; attach to it with the public flag first")]
    Forbidden,
    /// No agent of that name.
    #[error("there is no agent of that name")]
    NoSuchAgent,
    /// The stored bytes are damaged; the runtime's log says where.
    #[error("the stored value is damaged; the runtime's log names the place")]
    Corrupt,
    /// The disk failed.
    #[error("the disk failed: {}", std::io::Error::from_raw_os_error(*errno))]
    IoFailed {
        /// The error number of the operating system; 0 if unknown.
        errno: i32,
    },
    /// The runtime takes no writes: it was opened to be read only, or a disk error ended them.
    #[error(
        "the runtime is read-only; if it was not opened so, a disk error made it: see its log, cure it, restart it"
    )]
    ReadOnly,
    /// Parts of a large value did not follow each other.
    #[error("a part of a large value came out of order; byte {expected} was due: start again")]
    UploadOutOfOrder {
        /// The offset that was due.
        expected: u64,
    },
    /// The value changed while it was read in parts, again and again.
    #[error("the value changes faster than it can be read; retry")]
    Changing,
    /// The lane's rings or arenas are full of requests that were not finished.
    #[error("the lane is full: finish some of its requests first")]
    LaneFull,
    /// More keys or bytes than one request takes.
    #[error("the list is too long for one request; split it: {what}")]
    ListTooLong {
        /// What is too much.
        what: String,
    },
    /// The runtime closed the lane.
    #[error("the lane was closed: {reason}")]
    Closed {
        /// Why.
        reason: CloseReason,
    },
    /// The runtime's process is gone.
    #[error("the runtime is gone; start it again and attach anew")]
    RuntimeGone,
    /// The runtime did not answer in time.
    #[error("the runtime did not answer within {seconds} s")]
    NoAnswer {
        /// Seconds waited.
        seconds: u64,
    },
    /// The runtime refused to attach.
    #[error("the runtime refused ({code:?}): {text}")]
    Refused {
        /// Why, for programs.
        code: RefusalCode,
        /// Why, for people.
        text: String,
    },
    /// The socket failed, or what came through it is not the protocol.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The lane's memory is not what was promised.
    #[error(transparent)]
    Lane(LaneError),
    /// The session's memory is not what was promised.
    #[error(transparent)]
    Session(#[from] BadSession),
    /// The window's memory is not what was promised.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// Memory of the runtime can't be mapped.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// A request that the runtime would not take: a bug here.
    #[error("this client made a request that the protocol forbids: {0}")]
    Submit(SubmitError),
    /// A reply that can't be read: client and runtime differ.
    #[error("the runtime's reply can't be read; client and runtime differ")]
    BadReply,
}

impl From<SubmitError> for ClientError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full { .. } => Self::LaneFull,
            other => Self::Submit(other),
        }
    }
}

impl From<LaneError> for ClientError {
    fn from(error: LaneError) -> Self {
        match error {
            LaneError::Closed(reason) => Self::Closed { reason },
            other => Self::Lane(other),
        }
    }
}

impl ClientError {
    /// The error that a completion tells of; none for `Ok` and `NotFound`.
    #[must_use]
    pub fn of(completion: &Completion) -> Option<Self> {
        Some(match completion.status {
            Status::Ok | Status::NotFound => return None,
            Status::Stale => Self::Stale {
                current: present(completion.id),
            },
            Status::Busy => Self::Busy {
                reason: BusyReason::from_byte(completion.detail as u8),
            },
            Status::NoSpace => Self::NoSpace,
            Status::TooLarge => Self::TooLarge,
            Status::Forbidden => Self::Forbidden,
            Status::NoSuchAgent => Self::NoSuchAgent,
            Status::Corrupt => Self::Corrupt,
            Status::IoFailed => Self::IoFailed {
                errno: completion.detail as i32,
            },
            Status::ReadOnly => Self::ReadOnly,
            Status::UploadOutOfOrder => Self::UploadOutOfOrder {
                expected: completion.value_bytes,
            },
            Status::ReplyTooSmall => {
                let what = format!("the reply needs {} bytes", completion.detail);
                Self::ListTooLong { what }
            }
            Status::ShuttingDown => Self::Closed {
                reason: CloseReason::ShuttingDown,
            },
            Status::NoSuchBranch => Self::NoSuchBranch,
            Status::NoSuchRevision => Self::NoSuchRevision,
            Status::StaleHead => Self::StaleHead {
                current: present(completion.id),
            },
            Status::Unsaved => Self::Unsaved {
                changes: completion.value_bytes,
            },
            Status::Conflicts => Self::Conflicts {
                listed: Vec::new(),
                more: completion.more,
            },
            Status::NameTaken => Self::NameTaken,
            Status::BadName => BadName.into(),
            Status::Unrelated => Self::Unrelated,
            Status::InUse => Self::InUse {
                lanes: completion.value_bytes,
            },
            Status::BadMetadata => Self::BadMetadata,
            Status::WrongState => Self::WrongState,
        })
    }
}

/// An id in a completion; none where it is all zero.
fn present(id: ObjectId) -> Option<ObjectId> {
    (id.as_bytes() != &[0; OBJECT_ID_BYTES]).then_some(id)
}
