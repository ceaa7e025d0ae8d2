//! Orders for the library that stands between `helios serve` and the C library: `shim.c`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::Served;

/// What is ordered, by its word in the file.
#[derive(Clone, Copy)]
pub enum Order {
    /// Seconds that the wall clock is off.
    WallOffset = 0,
    /// So many calls of the kind fail with EIO.
    FailSyncs,
    FailWrites,
    FailReads,
}

/// A shim in a directory, for one runtime.
pub struct Shim {
    library: PathBuf,
    orders: PathBuf,
    file: File,
}

impl Shim {
    /// `None`, with a line, where there is no C compiler.
    pub fn build(dir: &Path) -> Option<Self> {
        let (library, orders) = (dir.join("shim.so"), dir.join("orders"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/environment/shim.c");
        let mut cc = Command::new("cc");
        let cc = cc
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"])
            .arg(&library);
        match cc.arg(&source).status() {
            Err(_) => {
                println!("skipped: no C compiler here");
                return None;
            }
            Ok(status) => assert!(status.success(), "the shim does not compile"),
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&orders)
            .unwrap();
        file.set_len(64).unwrap();
        Some(Self {
            library,
            orders,
            file,
        })
    }

    /// `helios serve` over it.
    pub fn serve(&self, dir: &Path, lines: &str) -> Served {
        let preload = format!("LD_PRELOAD={}", self.library.display());
        let orders = format!("HELIOS_SHIM={}", self.orders.display());
        Served::start_under(dir, lines, "info", &["env", &preload, &orders])
    }

    pub fn order(&self, order: Order, value: i64) {
        self.file
            .write_all_at(&value.to_le_bytes(), order as u64 * 8)
            .unwrap();
    }

    /// Calls that failed so far.
    pub fn failed(&self) -> i64 {
        self.word(4)
    }

    /// Syncs that were let through so far.
    pub fn synced(&self) -> i64 {
        self.word(5)
    }

    fn word(&self, at: u64) -> i64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at * 8).unwrap();
        i64::from_le_bytes(bytes)
    }
}
