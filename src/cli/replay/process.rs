//! What the kernel says about the runtime's process: processor time and resident memory.
//!
//! Floor 5, part of `replay`. Reads a few small files of `/proc`; `None` where it does not tell.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::report::Resident;

/// A process, this one or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number.
    pub(super) id: u32,
}

impl Process {
    /// Time on processors so far, of all threads that live, to the nanosecond.
    pub(super) fn processor_time(self) -> Option<Duration> {
        let mut ns = 0;
        for thread in fs::read_dir(self.folder().join("task")).ok()? {
            // A thread may end while we read; what it used is not idle time.
            let Ok(text) = fs::read_to_string(thread.ok()?.path().join("schedstat")) else {
                continue;
            };
            ns += text.split(' ').next()?.parse::<u64>().ok()?;
        }
        Some(Duration::from_nanos(ns))
    }

    /// Resident memory by kind.
    pub(super) fn resident(self) -> Option<Resident> {
        parse_resident(&fs::read_to_string(self.folder().join("status")).ok()?)
    }

    fn folder(self) -> PathBuf {
        Path::new("/proc").join(self.id.to_string())
    }
}

fn parse_resident(status: &str) -> Option<Resident> {
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Resident {
        anonymous_bytes: bytes("RssAnon:")?,
        file_bytes: bytes("RssFile:")?,
        shared_bytes: bytes("RssShmem:")?,
    })
}

impl Resident {
    /// All of it: what `ps` and `top` call RSS.
    pub(super) fn total_bytes(self) -> u64 {
        self.anonymous_bytes + self.file_bytes + self.shared_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_by_kind() {
        let text = "Name:\tx\nRssAnon:\t     100 kB\nRssFile:\t 20 kB\nRssShmem:\t   3 kB\n";
        let resident = parse_resident(text).unwrap();
        assert_eq!(resident.total_bytes(), 123 << 10);
        for broken in [
            "",
            "RssAnon: x kB\nRssFile: 1 kB\nRssShmem: 1 kB\n",
            "RssAnon: 1 MB\n",
        ] {
            assert_eq!(parse_resident(broken), None);
        }
    }

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let this = Process {
            id: std::process::id(),
        };
        assert!(this.resident().unwrap().anonymous_bytes > 0);
        let Some(before) = this.processor_time() else {
            println!("skipped: no schedstat here");
            return;
        };
        let mut sum = 0_u64;
        let after = loop {
            sum = (0..100_000).fold(sum, |sum, number| std::hint::black_box(sum ^ number));
            let after = this.processor_time().unwrap();
            if after > before {
                break after;
            }
        };
        assert!(after > before, "{sum}");
        assert_eq!(Process { id: u32::MAX }.resident(), None);
    }
}
