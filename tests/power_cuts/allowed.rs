//! What the simulated disk allows a power cut to leave: the question that a real device answers.
//!
//! Floor 1, tests only; part of the simulated disk, as it looks at what that keeps of each sector.

use crate::id::SegmentNo;
use crate::segment::IoRequest;
use crate::segment::files::SegmentFiles;
use crate::segment::memory::{MemoryDisk, MemoryFile, SECTOR_BYTES};

/// Steps that a request has, at most.
const STEPS: usize = 4;

impl MemoryFile {
    /// Whether a cut may leave these bytes; else where they can't be explained.
    fn allows(&self, bytes: &[u8]) -> Result<(), String> {
        if ![self.durable.len(), self.current.len()].contains(&bytes.len()) {
            return Err(format!(
                "{} bytes, of {} synced and {} written",
                bytes.len(),
                self.durable.len(),
                self.current.len()
            ));
        }
        for (sector, found) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let start = sector * SECTOR_BYTES;
            let synced = self.durable.get(start..).unwrap_or_default();
            let mut durable = [0; SECTOR_BYTES];
            let known = synced.len().min(SECTOR_BYTES);
            durable[..known].copy_from_slice(&synced[..known]);
            let pending = self.pending.get(&sector).into_iter().flatten();
            let mut versions = std::iter::once(&durable).chain(pending);
            if !versions.any(|version| version[..found.len()] == *found) {
                return Err(format!("sector {sector} is none of its versions"));
            }
        }
        Ok(())
    }
}

impl MemoryDisk {
    /// Whether a cut may leave these files while a request is under way, of which any step may have been done;
    /// else why not.
    pub(crate) fn allows_within(
        &self,
        request: impl Fn() -> IoRequest,
        files: &[(SegmentNo, Vec<u8>)],
    ) -> Result<(), String> {
        let mut outcome = self.allows(files);
        for steps in 1..=STEPS {
            if outcome.is_err() {
                let mut after = self.clone();
                after.perform(request(), steps);
                outcome = after.allows(files);
            }
        }
        outcome
    }

    /// Whether a cut now may leave these files; else why not.
    pub(crate) fn allows(&self, files: &[(SegmentNo, Vec<u8>)]) -> Result<(), String> {
        let there: Vec<_> = files.iter().map(|(segment, _)| segment.0).collect();
        if there != self.segments() {
            return Err(format!("files {there:?}, wanted {:?}", self.segments()));
        }
        for (segment, bytes) in files {
            let allowed = self.files[&segment.0].allows(bytes);
            allowed.map_err(|why| format!("{}: {why}", self.path(*segment).display()))?;
        }
        Ok(())
    }

    /// Whether the files are what they were before the cut: nothing was lost.
    pub(crate) fn holds(&self, files: &[(SegmentNo, Vec<u8>)]) -> bool {
        let found = files.iter().map(|(segment, bytes)| (segment.0, bytes));
        let held = self.files.iter().map(|(no, file)| (*no, &file.current));
        found.eq(held)
    }
}
