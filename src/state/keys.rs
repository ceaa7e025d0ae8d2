//! The keys of one working set, end to end in one buffer.
//!
//! Floor 1. An allocation for each key would cost one call of the allocator for every key that is read
//! for the first time, and 16 bytes and more of its rounding. Here a key is a length of 2 bytes and its
//! bytes; one that went leaves a hole, which [`Keys::pack`] closes.
//!
//! Cost: the buffer grows to its double while it is small, then by half of itself: a set of 100 keys of
//! 50 bytes has made 8 allocations, and holds a quarter more than its keys on average.
//!
//! Invariants
//! - holes are no more than a third of the buffer when it grows.

use crate::id::KEY_BYTES_MAX;

/// Bytes before each key: its length, and whether it went.
const HEAD_BYTES: usize = 2;
/// The bit of the length that says so.
const GONE: u16 = 1 << 15;
const _: () = assert!(KEY_BYTES_MAX < GONE as usize);
/// The buffer begins with so many bytes: a fork changes a key or two.
const BYTES_MIN: usize = 64;
/// Up to so many it doubles.
const DOUBLED_BYTES_MAX: usize = 4096;

/// Keys by the place where they begin.
#[derive(Debug, Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    hole_bytes: usize,
}

impl Keys {
    /// The key at a place that [`Keys::push`] gave.
    #[inline]
    pub(super) fn at(&self, place: u64) -> &[u8] {
        let from = place as usize + HEAD_BYTES;
        &self.bytes[from..from + usize::from(self.head(place) & !GONE)]
    }

    fn head(&self, place: u64) -> u16 {
        let head = &self.bytes[place as usize..][..HEAD_BYTES];
        u16::from_le_bytes([head[0], head[1]])
    }

    /// Whether it is better to close the holes than to grow for a key of so many bytes.
    pub(super) fn wants_packing(&self, key_bytes: usize) -> bool {
        let full = self.bytes.len() + HEAD_BYTES + key_bytes > self.bytes.capacity();
        full && self.hole_bytes > self.bytes.len() / 3
    }

    /// Adds a key; its place.
    ///
    /// # Panics
    /// If the key is longer than [`KEY_BYTES_MAX`].
    pub(super) fn push(&mut self, key: &[u8]) -> u64 {
        assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes", key.len());
        let needed = HEAD_BYTES + key.len();
        if self.bytes.len() + needed > self.bytes.capacity() {
            let held = self.bytes.capacity();
            let step = match held < DOUBLED_BYTES_MAX {
                true => held.max(BYTES_MIN),
                false => held / 2,
            };
            self.bytes.reserve_exact(needed.max(step));
        }
        let place = self.bytes.len() as u64;
        self.bytes
            .extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(key);
        place
    }

    /// Bytes of the buffer that are in use.
    pub(super) fn used_bytes(&self) -> usize {
        self.bytes.len() - self.hole_bytes
    }

    /// Makes the buffer hold so many bytes more.
    pub(super) fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve_exact(bytes);
    }

    /// Takes a key out.
    pub(super) fn remove(&mut self, place: u64) {
        let bytes = HEAD_BYTES + self.at(place).len();
        if place as usize + bytes == self.bytes.len() {
            self.bytes.truncate(place as usize);
            return;
        }
        let head = self.head(place) | GONE;
        self.bytes[place as usize..][..HEAD_BYTES].copy_from_slice(&head.to_le_bytes());
        self.hole_bytes += bytes;
    }

    /// Closes the holes: `moved` is told of each key that has another place from then on, where it was
    /// and where it is.
    pub(super) fn pack(&mut self, mut moved: impl FnMut(&[u8], u64, u64)) {
        let (mut from, mut to) = (0, 0);
        while from < self.bytes.len() {
            let bytes = HEAD_BYTES + self.at(from as u64).len();
            let stays = self.head(from as u64) & GONE == 0;
            if stays && from != to {
                self.bytes.copy_within(from..from + bytes, to);
                moved(self.at(to as u64), from as u64, to as u64);
            }
            if stays {
                to += bytes;
            }
            from += bytes;
        }
        self.bytes.truncate(to);
        self.hole_bytes = 0;
    }

    /// Memory taken, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_closed_before_the_buffer_grows() {
        let mut keys = Keys::default();
        let mut places: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut most = 0;
        for no in 0..10_000_u32 {
            let key = no.to_le_bytes().repeat(1 + no as usize % 7);
            if keys.wants_packing(key.len()) {
                keys.pack(|key, from, to| {
                    let at = places.iter_mut().find(|(place, _)| *place == from).unwrap();
                    assert_eq!(at.1, key);
                    at.0 = to;
                });
            }
            places.push((keys.push(&key), key));
            if places.len() > 40 {
                let (place, _) = places.remove(no as usize * 7 % 40);
                keys.remove(place);
            }
            for (place, key) in &places {
                assert_eq!(keys.at(*place), key);
            }
            if no == 1000 {
                most = keys.memory_bytes();
            }
        }
        assert_eq!(keys.memory_bytes(), most);
        assert!(most < 40 * 30 * 2, "{most}");
    }

    #[test]
    fn the_last_key_leaves_no_hole() {
        let mut keys = Keys::default();
        keys.push(b"stays");
        for _ in 0..1000 {
            let place = keys.push(b"goes");
            keys.remove(place);
        }
        assert_eq!((keys.hole_bytes, keys.memory_bytes()), (0, BYTES_MIN));
    }
}
