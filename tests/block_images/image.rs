//! What a device holds: pages of which those that are equal are shared, so that a copy of a whole device costs a
//! millisecond; and what a power cut may make of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::common::Random;
use super::device::Kind;

/// What is shared, and the blocks of the file systems.
const PAGE_BYTES: usize = 4096;
/// What a device writes as a whole.
const SECTOR_BYTES: usize = 512;

type Page = [u8; PAGE_BYTES];

/// What the device was told.
pub enum Event {
    /// Bytes for a place.
    Write { at: usize, bytes: Box<[u8]> },
    /// Everything before is on the medium.
    Flush,
}

/// The bytes of a device.
#[derive(Clone)]
pub struct Image {
    /// `None`: zeros.
    pages: Vec<Option<Arc<Page>>>,
}

impl Image {
    /// What a file has.
    pub fn load(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let count = file.metadata()?.len() as usize / PAGE_BYTES;
        let mut page = [0; PAGE_BYTES];
        let mut pages = Vec::with_capacity(count);
        for no in 0..count {
            file.read_exact_at(&mut page, (no * PAGE_BYTES) as u64)?;
            pages.push((page != [0; PAGE_BYTES]).then(|| Arc::new(page)));
        }
        Ok(Self { pages })
    }

    /// Writes it to a file, which is made anew, with holes where there are zeros.
    pub fn store(&self, path: &Path) -> std::io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.bytes() as u64)?;
        let mut run = Vec::new();
        for (no, page) in self.pages.iter().enumerate() {
            if let Some(page) = page {
                run.extend_from_slice(&page[..]);
                let next = self.pages.get(no + 1);
                if next.is_none_or(Option::is_none) {
                    let start = (no + 1) * PAGE_BYTES - run.len();
                    file.write_all_at(&run, start as u64)?;
                    run.clear();
                }
            }
        }
        Ok(())
    }

    /// How many there are.
    pub fn bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Bytes of a range that is within the device.
    pub fn read(&self, at: usize, count: usize, into: &mut Vec<u8>) {
        let (mut at, end) = (at, at + count);
        while at < end {
            let within = at % PAGE_BYTES;
            let part = (PAGE_BYTES - within).min(end - at);
            match &self.pages[at / PAGE_BYTES] {
                Some(page) => into.extend_from_slice(&page[within..within + part]),
                None => into.resize(into.len() + part, 0),
            }
            at += part;
        }
    }

    /// Overwrites a range that is within the device.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        let (mut at, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let within = at % PAGE_BYTES;
            let (part, behind) = rest.split_at((PAGE_BYTES - within).min(rest.len()));
            let page = &mut self.pages[at / PAGE_BYTES];
            let page = page.get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[within..within + part.len()].copy_from_slice(part);
            (at, rest) = (at + part.len(), behind);
        }
    }

    /// Everything that was told reached the medium.
    pub fn apply(&mut self, events: &[Event]) {
        for event in events {
            if let Event::Write { at, bytes } = event {
                self.write(*at, bytes);
            }
        }
    }

    /// Of what was told and not flushed some reached the medium, in any order, and some of that in parts.
    pub fn apply_some(&mut self, events: &[Event], tear: Tear, random: &mut Random) {
        // All, nothing, or each with one chance.
        let chance = [0, 8, random.below(8)][random.below(3) as usize];
        let torn = match random.below(2) {
            0 => 0,
            _ => 1 + random.below(4),
        };
        for event in events {
            let Event::Write { at, bytes } = event else {
                continue;
            };
            if random.below(8) < torn {
                self.tear(*at, bytes, tear, random);
            } else if random.below(8) < chance {
                self.write(*at, bytes);
            }
        }
    }

    /// Any of the units of a write are there.
    fn tear(&mut self, at: usize, bytes: &[u8], tear: Tear, random: &mut Random) {
        let unit = tear.bytes();
        let kept = random.below(9);
        for (no, part) in bytes.chunks(unit).enumerate() {
            if random.below(8) < kept {
                self.write(at + no * unit, part);
            }
        }
    }
}

/// What of a write comes as a whole.
#[derive(Clone, Copy)]
pub enum Tear {
    /// The device's sectors.
    Sectors,
    /// The file system's blocks.
    Blocks,
}

impl Tear {
    /// What a file system can stand. XFS takes blocks with a new header for new, and so believes torn ones: it asks
    /// for whole blocks.
    pub fn of(kind: Kind) -> Self {
        match kind {
            Kind::Ext4 => Self::Sectors,
            Kind::Xfs => Self::Blocks,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Sectors => SECTOR_BYTES,
            Self::Blocks => PAGE_BYTES,
        }
    }
}
