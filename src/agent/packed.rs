//! Lists packed into a value or reply extent: keys, pairs, and the answers to them.
//!
//! Floor 1, room `agent`. Bytes in private memory; nothing here touches a lane. A list is its
//! items one after another to the end of its bytes: no count, no padding, nothing after it.
//!
//! Invariants
//! - parsing walks the whole list before the first item is handed out; the iterators that it
//!   returns can't fail and don't allocate.
//! - no bytes make it panic, and it costs at most one step per item.

use crate::agent::entry::{Status, Tier};
use crate::config::Durability;
use crate::id::{KEY_BYTES_MAX, OBJECT_ID_BYTES, ObjectId};

/// Most keys or pairs in one request.
pub const ITEMS_MAX: usize = 1024;
/// Bytes before each value of a multi-get's reply.
pub const GET_HEAD_BYTES: usize = 40;
/// Bytes of each answer of a multi-put's reply.
pub const PUT_ANSWER_BYTES: usize = 40;
/// Bytes before each key of a scan's reply.
pub const SCAN_HEAD_BYTES: usize = 40;
/// Bytes before each pair of a multi-put.
const PAIR_HEAD_BYTES: usize = 8;

/// Bytes that are not the list they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackedError {
    /// An item ends after the list.
    #[error("the item at byte {at} ends after the list")]
    Truncated {
        /// Where the item begins.
        at: usize,
    },
    /// A key of no bytes, or too many.
    #[error("the key at byte {at} has {bytes} bytes, not 1..={KEY_BYTES_MAX}")]
    Key {
        /// Where the item begins.
        at: usize,
        /// Length of the key.
        bytes: usize,
    },
    /// A byte that this version doesn't know, or zero bytes that aren't.
    #[error("the item at byte {at} has a field of no meaning")]
    Field {
        /// Where the item begins.
        at: usize,
    },
    /// More items than one request may have.
    #[error("more than {ITEMS_MAX} items")]
    TooMany,
    /// No item at all.
    #[error("an empty list")]
    Empty,
}

/// Appends a key to the request of a multi-get: length (u16), bytes.
///
/// # Errors
/// A key that is too short or long; nothing was appended.
pub fn push_key(list: &mut Vec<u8>, key: &[u8]) -> Result<(), PackedError> {
    let bytes = check_key(list.len(), key.len())?;
    list.extend_from_slice(&bytes.to_le_bytes());
    list.extend_from_slice(key);
    Ok(())
}

/// Appends a pair to the request of a multi-put: key length (u16), zero (u16), value length
/// (u32), key, value.
///
/// # Errors
/// A key that is too short or long; nothing was appended.
///
/// # Panics
/// Where the value has 4 GiB; lists are far shorter.
pub fn push_pair(list: &mut Vec<u8>, key: &[u8], value: &[u8]) -> Result<(), PackedError> {
    let key_bytes = check_key(list.len(), key.len())?;
    let value_bytes = u32::try_from(value.len()).expect("a value that fits a list");
    list.extend_from_slice(&key_bytes.to_le_bytes());
    list.extend_from_slice(&[0; 2]);
    list.extend_from_slice(&value_bytes.to_le_bytes());
    list.extend_from_slice(key);
    list.extend_from_slice(value);
    Ok(())
}

/// The keys of a multi-get.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a>(Walk<'a>);

impl<'a> Keys<'a> {
    /// Checks a whole request.
    ///
    /// # Errors
    /// The first item that is wrong; a request of no or too many keys.
    pub fn parse(list: &'a [u8]) -> Result<Self, PackedError> {
        let walk = Walk(list, 0);
        check_request(walk, Walk::key)?;
        Ok(Self(walk))
    }
}

impl<'a> Iterator for Keys<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.0.key().ok().flatten()
    }
}

/// A key and its value.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// The pairs of a multi-put.
#[derive(Clone, Copy, Debug)]
pub struct Pairs<'a>(Walk<'a>);

impl<'a> Pairs<'a> {
    /// Checks a whole request.
    ///
    /// # Errors
    /// The first item that is wrong; a request of no or too many pairs.
    pub fn parse(list: &'a [u8]) -> Result<Self, PackedError> {
        let walk = Walk(list, 0);
        check_request(walk, Walk::pair)?;
        Ok(Self(walk))
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.pair().ok().flatten()
    }
}

/// What stands before each value in the reply of a multi-get, in the order of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetHead {
    /// How it went for this key.
    pub status: Status,
    /// Where the value was found.
    pub tier: Tier,
    /// The value follows. If not, though it is there, the reply had no room: get it alone.
    pub included: bool,
    /// Length of the value.
    pub value_bytes: u32,
    /// Id of the value, zero where there is none.
    pub id: ObjectId,
}

impl GetHead {
    /// The bytes: status, tier, included, zero (u8 each), value length (u32), id (32).
    #[must_use]
    pub fn encode(&self) -> [u8; GET_HEAD_BYTES] {
        let marks = [self.status as u8, self.tier as u8, self.included.into(), 0];
        head(marks, self.value_bytes, &self.id)
    }
}

/// The reply of a multi-get.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a>(Walk<'a>);

impl<'a> Values<'a> {
    /// Checks a whole reply.
    ///
    /// # Errors
    /// The first item that is wrong.
    pub fn parse(list: &'a [u8]) -> Result<Self, PackedError> {
        let walk = Walk(list, 0);
        walk.check(Walk::value)?;
        Ok(Self(walk))
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = (GetHead, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.value().ok().flatten()
    }
}

/// Where the server puts the next item of a multi-get's reply, so that heads always have room.
#[derive(Clone, Copy, Debug)]
pub struct ValuesPlan {
    at: u32,
    end: u32,
    items_left: u32,
}

impl ValuesPlan {
    /// For a reply of `room` bytes to `items` keys.
    ///
    /// # Errors
    /// The bytes that the heads alone need, if there is less.
    pub fn new(room: u32, items: u32) -> Result<Self, u32> {
        let heads = items.saturating_mul(GET_HEAD_BYTES as u32);
        if heads > room {
            return Err(heads);
        }
        Ok(Self {
            at: 0,
            end: room,
            items_left: items,
        })
    }

    /// Where the next head goes, and whether a value of `value_bytes` has room behind it.
    ///
    /// # Panics
    /// Where all items were placed.
    pub fn place(&mut self, value_bytes: u64) -> (u32, bool) {
        assert!(self.items_left > 0, "more items than keys");
        self.items_left -= 1;
        let head_at = self.at;
        self.at += GET_HEAD_BYTES as u32;
        let free = self.end - self.at - self.items_left * GET_HEAD_BYTES as u32;
        let included = value_bytes <= u64::from(free);
        if included {
            self.at += value_bytes as u32;
        }
        (head_at, included)
    }

    /// Bytes of the reply so far.
    #[must_use]
    pub fn reply_bytes(&self) -> u32 {
        self.at
    }
}

/// One answer in the reply of a multi-put, in the order of the pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PutAnswer {
    /// How it went for this pair.
    pub status: Status,
    /// What the write survives now.
    pub durability: Option<Durability>,
    /// More about the status.
    pub detail: u32,
    /// Id of the value written.
    pub id: ObjectId,
}

impl PutAnswer {
    /// The bytes: status, durability, zero, zero (u8 each), detail (u32), id (32).
    #[must_use]
    pub fn encode(&self) -> [u8; PUT_ANSWER_BYTES] {
        let durability = self.durability.map_or(0, |d| d as u8);
        head([self.status as u8, durability, 0, 0], self.detail, &self.id)
    }
}

/// The reply of a multi-put.
#[derive(Clone, Copy, Debug)]
pub struct PutAnswers<'a>(Walk<'a>);

impl<'a> PutAnswers<'a> {
    /// Checks a whole reply.
    ///
    /// # Errors
    /// The first item that is wrong.
    pub fn parse(list: &'a [u8]) -> Result<Self, PackedError> {
        let walk = Walk(list, 0);
        walk.check(Walk::put_answer)?;
        Ok(Self(walk))
    }
}

impl Iterator for PutAnswers<'_> {
    type Item = PutAnswer;

    fn next(&mut self) -> Option<PutAnswer> {
        self.0.put_answer().ok().flatten()
    }
}

/// What stands before each key in the reply of a scan: key length (u16), zero (u16), value length
/// (u32), id (32).
#[must_use]
pub fn scan_head(key_bytes: u16, value_bytes: u32, id: &ObjectId) -> [u8; SCAN_HEAD_BYTES] {
    let [low, high] = key_bytes.to_le_bytes();
    head([low, high, 0, 0], value_bytes, id)
}

/// A key that a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The key; the last one is the cursor for the next page.
    pub key: &'a [u8],
    /// Length of its value.
    pub value_bytes: u32,
    /// Id of its value.
    pub id: ObjectId,
}

/// The reply of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Scanned<'a>(Walk<'a>);

impl<'a> Scanned<'a> {
    /// Checks a whole reply.
    ///
    /// # Errors
    /// The first item that is wrong.
    pub fn parse(list: &'a [u8]) -> Result<Self, PackedError> {
        let walk = Walk(list, 0);
        walk.check(Walk::found)?;
        Ok(Self(walk))
    }
}

impl<'a> Iterator for Scanned<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        self.0.found().ok().flatten()
    }
}

fn head(marks: [u8; 4], number: u32, id: &ObjectId) -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[..4].copy_from_slice(&marks);
    bytes[4..8].copy_from_slice(&number.to_le_bytes());
    bytes[8..].copy_from_slice(id.as_bytes());
    bytes
}

fn check_key(at: usize, bytes: usize) -> Result<u16, PackedError> {
    if (1..=KEY_BYTES_MAX).contains(&bytes) {
        Ok(bytes as u16)
    } else {
        Err(PackedError::Key { at, bytes })
    }
}

fn check_request<'a, T>(
    walk: Walk<'a>,
    step: impl Fn(&mut Walk<'a>) -> Result<Option<T>, PackedError>,
) -> Result<(), PackedError> {
    match walk.check(step)? {
        0 => Err(PackedError::Empty),
        1..=ITEMS_MAX => Ok(()),
        _ => Err(PackedError::TooMany),
    }
}

/// A list, and how far it was read.
#[derive(Clone, Copy, Debug)]
struct Walk<'a>(&'a [u8], usize);

impl<'a> Walk<'a> {
    fn check<T>(
        mut self,
        step: impl Fn(&mut Self) -> Result<Option<T>, PackedError>,
    ) -> Result<usize, PackedError> {
        let mut items = 0;
        while step(&mut self)?.is_some() {
            items += 1;
        }
        Ok(items)
    }

    fn key(&mut self) -> Result<Option<&'a [u8]>, PackedError> {
        let Some(start) = self.start() else {
            return Ok(None);
        };
        let bytes = u16::from_le_bytes(self.array(start)?);
        check_key(start, bytes.into())?;
        self.bytes(start, bytes.into()).map(Some)
    }

    fn pair(&mut self) -> Result<Option<Pair<'a>>, PackedError> {
        let Some(start) = self.start() else {
            return Ok(None);
        };
        let [k0, k1, z0, z1, v0, v1, v2, v3] = self.array::<PAIR_HEAD_BYTES>(start)?;
        if [z0, z1] != [0; 2] {
            return Err(PackedError::Field { at: start });
        }
        let key_bytes = u16::from_le_bytes([k0, k1]).into();
        check_key(start, key_bytes)?;
        let value_bytes = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        let key = self.bytes(start, key_bytes)?;
        let value = self.bytes(start, value_bytes)?;
        Ok(Some((key, value)))
    }

    fn value(&mut self) -> Result<Option<(GetHead, &'a [u8])>, PackedError> {
        let Some((at, [status, tier, included, zero], value_bytes, id)) = self.head()? else {
            return Ok(None);
        };
        let field = PackedError::Field { at };
        if included > 1 || zero != 0 {
            return Err(field);
        }
        let head = GetHead {
            status: Status::from_byte(status).ok_or(field)?,
            tier: Tier::from_byte(tier).ok_or(field)?,
            included: included == 1,
            value_bytes,
            id,
        };
        let bytes = if head.included { value_bytes } else { 0 };
        Ok(Some((head, self.bytes(at, bytes as usize)?)))
    }

    fn put_answer(&mut self) -> Result<Option<PutAnswer>, PackedError> {
        let Some((at, [status, durability, z0, z1], detail, id)) = self.head()? else {
            return Ok(None);
        };
        let field = PackedError::Field { at };
        let durability = match durability {
            0 => None,
            1 => Some(Durability::Volatile),
            2 => Some(Durability::Process),
            3 => Some(Durability::Power),
            _ => return Err(field),
        };
        if [z0, z1] != [0; 2] {
            return Err(field);
        }
        Ok(Some(PutAnswer {
            status: Status::from_byte(status).ok_or(field)?,
            durability,
            detail,
            id,
        }))
    }

    fn found(&mut self) -> Result<Option<Found<'a>>, PackedError> {
        let Some((at, [k0, k1, z0, z1], value_bytes, id)) = self.head()? else {
            return Ok(None);
        };
        if [z0, z1] != [0; 2] {
            return Err(PackedError::Field { at });
        }
        let key_bytes = u16::from_le_bytes([k0, k1]).into();
        check_key(at, key_bytes)?;
        let key = self.bytes(at, key_bytes)?;
        Ok(Some(Found {
            key,
            value_bytes,
            id,
        }))
    }

    /// Four marks, a number, an id, and where they stand.
    #[expect(
        clippy::type_complexity,
        reason = "taken apart at once by its three callers"
    )]
    fn head(&mut self) -> Result<Option<(usize, [u8; 4], u32, ObjectId)>, PackedError> {
        let Some(start) = self.start() else {
            return Ok(None);
        };
        let marks = self.array(start)?;
        let number = u32::from_le_bytes(self.array(start)?);
        let id = ObjectId::from_bytes(self.array::<OBJECT_ID_BYTES>(start)?);
        Ok(Some((start, marks, number, id)))
    }

    fn start(&self) -> Option<usize> {
        (self.1 < self.0.len()).then_some(self.1)
    }

    fn array<const N: usize>(&mut self, item: usize) -> Result<[u8; N], PackedError> {
        let bytes = self.bytes(item, N)?;
        Ok(bytes.try_into().expect("N bytes"))
    }

    fn bytes(&mut self, item: usize, count: usize) -> Result<&'a [u8], PackedError> {
        let end = self.1.checked_add(count);
        let found = end.and_then(|end| self.0.get(self.1..end));
        let found = found.ok_or(PackedError::Truncated { at: item })?;
        self.1 += count;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(byte: u8) -> ObjectId {
        ObjectId::from_bytes([byte; 32])
    }

    #[test]
    fn requests_have_items_and_not_too_many() {
        assert_eq!(Keys::parse(&[]).unwrap_err(), PackedError::Empty);
        let mut list = Vec::new();
        assert!(push_key(&mut list, b"").is_err() && push_key(&mut list, &[0; 1025]).is_err());
        for _ in 0..ITEMS_MAX {
            push_key(&mut list, b"k").unwrap();
        }
        assert_eq!(Keys::parse(&list).unwrap().count(), ITEMS_MAX);
        push_key(&mut list, b"k").unwrap();
        assert_eq!(Keys::parse(&list).unwrap_err(), PackedError::TooMany);
    }

    #[test]
    fn a_cut_list_names_the_item() {
        let mut list = Vec::new();
        push_pair(&mut list, b"a", b"one").unwrap();
        let first = list.len();
        push_pair(&mut list, b"b", b"two").unwrap();
        for cut in first + 1..list.len() {
            let cut = Pairs::parse(&list[..cut]).unwrap_err();
            assert_eq!(cut, PackedError::Truncated { at: first });
        }
        list[2] = 1;
        assert_eq!(
            Pairs::parse(&list).unwrap_err(),
            PackedError::Field { at: 0 }
        );
    }

    #[test]
    fn a_plan_leaves_room_for_every_head() {
        assert_eq!(ValuesPlan::new(119, 3).unwrap_err(), 120);
        let mut plan = ValuesPlan::new(150, 3).unwrap();
        assert_eq!(plan.place(31), (0, false), "30 bytes are free");
        assert_eq!(plan.place(30), (40, true));
        assert_eq!(plan.place(0), (110, true));
        assert_eq!(plan.reply_bytes(), 150);
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(
            pairs in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 1..40), prop::collection::vec(any::<u8>(), 0..40)),
                1..20,
            ),
        ) {
            let (mut keys, mut both, mut values, mut scanned) = (vec![], vec![], vec![], vec![]);
            let (mut puts, mut heads) = (vec![], vec![]);
            for (index, (key, value)) in pairs.iter().enumerate() {
                push_key(&mut keys, key).unwrap();
                push_pair(&mut both, key, value).unwrap();
                let head = GetHead {
                    status: Status::Ok,
                    tier: Tier::L3,
                    included: index % 2 == 0,
                    value_bytes: value.len() as u32,
                    id: id(index as u8),
                };
                heads.push(head);
                values.extend(head.encode());
                if head.included {
                    values.extend(value);
                }
                let answer = PutAnswer {
                    status: Status::NoSpace,
                    durability: Some(Durability::Power),
                    detail: index as u32,
                    id: id(9),
                };
                puts.extend(answer.encode());
                scanned.extend(scan_head(key.len() as u16, 7, &id(index as u8)));
                scanned.extend(key);
            }
            prop_assert!(Keys::parse(&keys).unwrap().eq(pairs.iter().map(|(key, _)| &key[..])));
            let expected = pairs.iter().map(|(key, value)| (&key[..], &value[..]));
            prop_assert!(Pairs::parse(&both).unwrap().eq(expected));
            let expected = heads.iter().zip(&pairs).map(|(head, (_, value))| {
                (*head, if head.included { &value[..] } else { &[] })
            });
            prop_assert!(Values::parse(&values).unwrap().eq(expected));
            let found = Scanned::parse(&scanned).unwrap().map(|found| found.key);
            prop_assert!(found.eq(pairs.iter().map(|(key, _)| &key[..])));
            let details = PutAnswers::parse(&puts).unwrap().map(|answer| answer.detail);
            prop_assert!(details.eq(0..pairs.len() as u32));
        }

        #[test]
        fn any_bytes_are_refused_or_read_to_the_end(
            mut bytes in prop::collection::vec(0u8..4, 0..300),
            wild in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            for (at, byte) in wild {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            let length = |keys: Keys<'_>| keys.map(|key| key.len() + 2).sum::<usize>();
            if let Ok(keys) = Keys::parse(&bytes) {
                prop_assert_eq!(length(keys), bytes.len());
            }
            if let Ok(pairs) = Pairs::parse(&bytes) {
                prop_assert_eq!(pairs.map(|(k, v)| 8 + k.len() + v.len()).sum::<usize>(), bytes.len());
            }
            if let Ok(values) = Values::parse(&bytes) {
                prop_assert_eq!(values.map(|(_, v)| 40 + v.len()).sum::<usize>(), bytes.len());
            }
            if let Ok(scanned) = Scanned::parse(&bytes) {
                prop_assert_eq!(scanned.map(|f| 40 + f.key.len()).sum::<usize>(), bytes.len());
            }
            if let Ok(puts) = PutAnswers::parse(&bytes) {
                prop_assert_eq!(puts.count() * 40, bytes.len());
            }
        }
    }
}
