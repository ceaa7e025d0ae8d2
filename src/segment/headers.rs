//! The first look of recovery: which segments there are, and whether their headers can be read.
//!
//! Floor 1, a part of recovery. Two reads for each file; of one whose header is damaged, all that is
//! no hole.
//!
//! Invariants
//! - nothing is changed here; what can't be read by this program, as this shard, is an error.

use crate::id::{SegmentNo, ShardNo};

use super::evidence::{Found, LOOK_BYTES, not_zero};
use super::files::{SegmentFile, SegmentFiles};
use super::footer::{TRAILER_BYTES, Trailer};
use super::format::{FORMAT_VERSION, SEGMENT_HEADER_BYTES};
use super::gaps::Gap;
use super::header::{BadHeader, SegmentHeader};
use super::recovered::RecoverError;

/// Lists the segments and checks that each can be read by this program, as this shard.
pub(super) fn read_headers<F: SegmentFiles + ?Sized>(
    files: &mut F,
    shard: ShardNo,
) -> Result<Vec<Found>, RecoverError> {
    let mut found: Vec<Found> = Vec::new();
    for file in files.list()? {
        let path = |files: &F| files.path(file.segment);
        let header = read_header(files, file)?;
        if let Some(header) = header {
            let log_id = found
                .iter()
                .find_map(|before| before.header)
                .map(|h| h.log_id);
            let same_log = log_id.is_none_or(|log_id| log_id == header.log_id);
            if header.shard != shard || header.segment != file.segment || !same_log {
                let SegmentHeader { shard, segment, .. } = header;
                return Err(RecoverError::Foreign {
                    file: path(files),
                    shard,
                    segment,
                });
            }
        }
        found.push(Found { file, header });
    }
    // Below what is settled, records may say that a segment was dropped.
    let settled = settled(&found);
    let missing = |gap: Gap| (settled <= gap.last).then(|| settled.max(gap.first));
    if let Some(missing) = Gap::all(&found).find_map(missing) {
        let file = files.path(missing);
        return Err(RecoverError::Missing { file });
    }
    Ok(found)
}

/// What the headers settled. That a header lies behind the end of the log does not matter: it was
/// written when all that it stands on was on the device, so that either the log reaches as far or it is
/// refused. Once it was set aside an older one counts again, and that is as true: segments were dropped
/// only by records behind the newer one, and removed only when those were on the device.
pub(super) fn settled(found: &[Found]) -> SegmentNo {
    let headers = found.iter().filter_map(|found| found.header);
    let settled = headers.map(|header| header.settled);
    settled.max().unwrap_or_default()
}

fn read_header<F: SegmentFiles + ?Sized>(
    files: &mut F,
    file: SegmentFile,
) -> Result<Option<SegmentHeader>, RecoverError> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let got = files.read_at(file.segment, 0, &mut bytes)?;
    let path = |files: &F| files.path(file.segment);
    if bytes == [0; SEGMENT_HEADER_BYTES] {
        // Never written, or its first sector lost by a power cut. Neither was ever sealed.
        let mut trailer = [0; TRAILER_BYTES];
        let at = file.bytes.saturating_sub(TRAILER_BYTES as u64);
        files.read_at(file.segment, at, &mut trailer)?;
        if Trailer::has_magic(&trailer) {
            return Err(RecoverError::DamagedHeader { file: path(files) });
        }
        return Ok(None);
    }
    let error = match SegmentHeader::decode(&bytes) {
        Ok(header)
            if header.first.0 > 0 && header.settled <= header.segment && got == bytes.len() =>
        {
            return Ok(Some(header));
        }
        Err(BadHeader::Newer { found }) => RecoverError::NewerFormat {
            file: path(files),
            found,
            known: FORMAT_VERSION,
        },
        Err(BadHeader::Magic) if !SegmentHeader::is_torn_magic(&bytes) => {
            return Err(RecoverError::NotASegment { file: path(files) });
        }
        _ => RecoverError::DamagedHeader { file: path(files) },
    };
    // With nothing behind it, it is what a failed write left: there is no record to lose.
    let newer = matches!(error, RecoverError::NewerFormat { .. });
    let behind = not_zero(
        files,
        &mut vec![0; LOOK_BYTES],
        file,
        SEGMENT_HEADER_BYTES as u64,
    )?;
    if newer || behind > 0 {
        Err(error)
    } else {
        Ok(None)
    }
}
