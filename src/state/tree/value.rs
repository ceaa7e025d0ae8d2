//! What a key of a tree names, and how an entry stores it.
//!
//! Floor 1. Which of the three forms a value has follows from its length alone, so equal content
//! has equal bytes.

use crate::id::{OBJECT_ID_BYTES, ObjectId};

/// Longest value that is stored in the leaf itself, in bytes.
pub const INLINE_BYTES_MAX: usize = 64;

/// Longest value that is one object, in bytes. Longer ones are split into chunks.
pub const BLOB_BYTES_MAX: u32 = 16 << 10;

/// Bytes of an id with its length.
pub(crate) const REFERENCE_BYTES: usize = OBJECT_ID_BYTES + 4;

const CODE_BLOB: u32 = INLINE_BYTES_MAX as u32 + 1;
const CODE_CHUNKS: u32 = CODE_BLOB + 1;

/// What a key names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value<'a> {
    /// The bytes themselves, at most [`INLINE_BYTES_MAX`].
    Inline(&'a [u8]),
    /// One object: longer than [`INLINE_BYTES_MAX`], at most [`BLOB_BYTES_MAX`].
    Blob {
        /// The id of its bytes.
        id: ObjectId,
        /// Its length.
        bytes: u32,
    },
    /// A tree of chunks ([`crate::state::chunks`]): longer than [`BLOB_BYTES_MAX`].
    Chunks {
        /// The id of its root node.
        id: ObjectId,
        /// Length of the value.
        bytes: u32,
    },
}

impl Value<'_> {
    /// Length of the value, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        match *self {
            Self::Inline(bytes) => bytes.len() as u32,
            Self::Blob { bytes, .. } | Self::Chunks { bytes, .. } => bytes,
        }
    }

    /// Whether a value of this length has this form.
    pub(crate) fn is_canonical(&self) -> bool {
        let inline = INLINE_BYTES_MAX as u32;
        match *self {
            Self::Inline(bytes) => bytes.len() <= INLINE_BYTES_MAX,
            Self::Blob { bytes, .. } => bytes > inline && bytes <= BLOB_BYTES_MAX,
            Self::Chunks { bytes, .. } => bytes > BLOB_BYTES_MAX,
        }
    }
}

/// A value as an entry stores it: the code in the entry's head, and the payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub code: u32,
    bytes: [u8; INLINE_BYTES_MAX],
    len: usize,
}

impl Stored {
    /// A value that [`Value::is_canonical`].
    pub fn of(value: &Value<'_>) -> Self {
        match *value {
            Value::Inline(inline) => {
                let mut bytes = [0; INLINE_BYTES_MAX];
                bytes[..inline.len()].copy_from_slice(inline);
                Self {
                    code: inline.len() as u32,
                    bytes,
                    len: inline.len(),
                }
            }
            Value::Blob { id, bytes } => Self::reference(CODE_BLOB, &id, bytes),
            Value::Chunks { id, bytes } => Self::reference(CODE_CHUNKS, &id, bytes),
        }
    }

    /// What an inner entry stores: a child and the keys below it.
    pub fn child(id: &ObjectId, keys: u32) -> Self {
        Self::reference(0, id, keys)
    }

    fn reference(code: u32, id: &ObjectId, number: u32) -> Self {
        let mut bytes = [0; INLINE_BYTES_MAX];
        bytes[..OBJECT_ID_BYTES].copy_from_slice(id.as_bytes());
        bytes[OBJECT_ID_BYTES..REFERENCE_BYTES].copy_from_slice(&number.to_le_bytes());
        Self {
            code,
            bytes,
            len: REFERENCE_BYTES,
        }
    }

    pub fn payload(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Length of the payload of a leaf's entry; `None` where the code means nothing.
pub(crate) fn payload_bytes(code: u32) -> Option<usize> {
    match code {
        0..CODE_BLOB => Some(code as usize),
        CODE_BLOB | CODE_CHUNKS => Some(REFERENCE_BYTES),
        _ => None,
    }
}

/// The value of a leaf's entry. `payload` has [`payload_bytes`] of the code.
pub(crate) fn decode(code: u32, payload: &[u8]) -> Value<'_> {
    match code {
        CODE_BLOB => {
            let (id, bytes) = reference(payload);
            Value::Blob { id, bytes }
        }
        CODE_CHUNKS => {
            let (id, bytes) = reference(payload);
            Value::Chunks { id, bytes }
        }
        _ => Value::Inline(payload),
    }
}

/// An id and the number behind it. Of fewer bytes than that, what is missing reads as zeros.
pub(crate) fn reference(payload: &[u8]) -> (ObjectId, u32) {
    let (id, number) = payload
        .split_first_chunk()
        .unwrap_or((&[0; OBJECT_ID_BYTES], &[]));
    let number = number
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes));
    (ObjectId::from_bytes(*id), number)
}
