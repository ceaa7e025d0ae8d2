//! A list of changes to a tree: puts and deletes by key.
//!
//! Floor 1. The same list carries what a caller changes in the leaves and what that changes in the
//! levels above. It keeps its memory when it is cleared.

use crate::id::{KEY_BYTES_MAX, ObjectId};

use super::error::ChangeError;
use super::value::{self, Stored, Value};

/// Puts and deletes to be applied to a tree.
///
/// ```
/// use helios::state::tree::{Changes, Value};
/// let mut changes = Changes::default();
/// changes.put(b"step", Value::Inline(b"7")).unwrap();
/// changes.delete(b"draft").unwrap();
/// changes.sort();
/// assert_eq!(changes.iter().next(), Some((&b"draft"[..], None)));
/// ```
#[derive(Debug, Default)]
pub struct Changes {
    keys: Vec<u8>,
    payloads: Vec<u8>,
    list: Vec<Change>,
}

impl Clone for Changes {
    fn clone(&self) -> Self {
        Self {
            keys: self.keys.clone(),
            payloads: self.payloads.clone(),
            list: self.list.clone(),
        }
    }

    /// Into the memory that is there.
    fn clone_from(&mut self, other: &Self) {
        self.keys.clone_from(&other.keys);
        self.payloads.clone_from(&other.payloads);
        self.list.clone_from(&other.list);
    }
}

#[derive(Clone, Copy, Debug)]
struct Change {
    key_at: usize,
    payload_at: usize,
    /// The code of what is put; `None` deletes.
    code: Option<u32>,
    key_bytes: u16,
    payload_bytes: u16,
}

/// What a change does, as an entry stores it: code and payload; `None` deletes.
pub(crate) type Put<'a> = Option<(u32, &'a [u8])>;

impl Changes {
    /// Adds a put. Of several changes to a key, the last one counts.
    ///
    /// # Errors
    /// A key that is empty or too long, a value in a form that its length does not have.
    pub fn put(&mut self, key: &[u8], value: Value<'_>) -> Result<(), ChangeError> {
        check_key(key)?;
        if !value.is_canonical() {
            return Err(ChangeError::ValueForm(value.bytes() as usize));
        }
        let stored = Stored::of(&value);
        self.push(key, Some((stored.code, stored.payload())));
        Ok(())
    }

    /// Adds a delete. Deleting a key that is not there changes nothing.
    ///
    /// # Errors
    /// A key that is empty or too long.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), ChangeError> {
        check_key(key)?;
        self.push(key, None);
        Ok(())
    }

    /// Brings the changes into the order of their keys, and keeps the last one of each key.
    pub fn sort(&mut self) {
        let keys = &self.keys;
        let key = |change: &Change| &keys[change.key_at..][..usize::from(change.key_bytes)];
        // Without memory of its own; where a key was added tells the order of its changes.
        self.list.sort_unstable_by(|a, b| {
            let later_first = b.key_at.cmp(&a.key_at);
            key(a).cmp(key(b)).then(later_first)
        });
        self.list.dedup_by(|later, first| key(later) == key(first));
    }

    /// The changes: a key, and the value it gets, or `None` where it is deleted.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&[u8], Option<Value<'_>>)> {
        (0..self.list.len()).map(|no| {
            let put = self.get(no);
            (
                self.key(no),
                put.map(|(code, bytes)| value::decode(code, bytes)),
            )
        })
    }

    /// Changes in the list.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Forgets them, and keeps the memory.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.payloads.clear();
        self.list.clear();
    }

    pub(crate) fn key(&self, no: usize) -> &[u8] {
        let change = &self.list[no];
        &self.keys[change.key_at..][..usize::from(change.key_bytes)]
    }

    pub(crate) fn get(&self, no: usize) -> Put<'_> {
        let change = &self.list[no];
        let payload = &self.payloads[change.payload_at..][..usize::from(change.payload_bytes)];
        change.code.map(|code| (code, payload))
    }

    pub(crate) fn is_sorted(&self) -> bool {
        (1..self.len()).all(|no| self.key(no - 1) < self.key(no))
    }

    /// Adds a child to a list for an inner level.
    pub(crate) fn put_child(&mut self, key: &[u8], id: &ObjectId, keys: u32) {
        let stored = Stored::child(id, keys);
        self.push(key, Some((stored.code, stored.payload())));
    }

    pub(crate) fn push(&mut self, key: &[u8], put: Put<'_>) {
        let payload = put.map_or(&[][..], |(_, payload)| payload);
        self.list.push(Change {
            key_at: self.keys.len(),
            payload_at: self.payloads.len(),
            code: put.map(|(code, _)| code),
            key_bytes: key.len() as u16,
            payload_bytes: payload.len() as u16,
        });
        self.keys.extend_from_slice(key);
        self.payloads.extend_from_slice(payload);
    }
}

fn check_key(key: &[u8]) -> Result<(), ChangeError> {
    match key.len() {
        1..=KEY_BYTES_MAX => Ok(()),
        other => Err(ChangeError::KeyLength(other)),
    }
}
