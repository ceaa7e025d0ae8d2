//! File systems on loop devices, whose power can be cut; taken away at the end, however that comes.
//!
//! For root, with `mkfs` of the file system. The cut of a [`Machine`] is the file system's own shutdown, without a last write of its
//! log: what is in the page cache is lost, as is what its journal has in memory alone.

#![expect(unsafe_code, reason = "the cut is an ioctl")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What images are called, before the number of the process that made them.
const PREFIX: &str = "helios-cut-";

/// `_IOR('X', 125, u32)`, and what says: without writing the log.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
static WITHOUT_LOG: u32 = 2;

/// A file system that can be put on a loop device here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The fourth extended file system, with its journal.
    Ext4,
    /// XFS.
    Xfs,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// How large the device is.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 20,
            // It makes none that is smaller.
            Self::Xfs => 320 << 20,
        }
    }

    /// Makes one on a file or device; whether that went well.
    pub fn make(self, image: &Path) -> bool {
        let mut make = Command::new(format!("mkfs.{}", self.name()));
        match self {
            Self::Ext4 => make.args(["-q", "-F", "-E", "nodiscard"]),
            Self::Xfs => make.args(["-q", "-f", "-K"]),
        };
        did(make.arg(image))
    }
}

fn did(command: &mut Command) -> bool {
    let run = command.stdin(Stdio::null()).stdout(Stdio::null());
    run.stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Takes away what tests that were killed left: devices whose image is of a process that is gone.
pub fn sweep() {
    let Ok(devices) = std::fs::read_dir("/sys/block") else {
        return;
    };
    for device in devices.flatten() {
        let backing = device.path().join("loop/backing_file");
        let backing = std::fs::read_to_string(backing).unwrap_or_default();
        let Some((_, rest)) = backing.split_once(PREFIX) else {
            continue;
        };
        let pid = rest.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            let device = Path::new("/dev").join(device.file_name());
            did(Command::new("umount").arg("-l").arg(&device));
            did(Command::new("losetup").arg("-d").arg(&device));
            // Where it was no file of its own: nobody serves it any more.
            did(Command::new("umount").arg("-l").arg(backing.trim()));
        }
    }
}

/// A directory for images, in memory where there is one.
pub fn image_dir() -> tempfile::TempDir {
    let name = format!("{PREFIX}{}-", std::process::id());
    let mut dir = tempfile::Builder::new();
    let dir = dir.prefix(&name);
    dir.tempdir_in("/dev/shm")
        .unwrap_or_else(|_| dir.tempdir().unwrap())
}

/// A loop device on a file; given back when dropped.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// `None` where there are none to be had.
    pub fn on(file: &Path) -> Option<Self> {
        let mut setup = Command::new("losetup");
        let setup = setup.args(["--find", "--show"]).arg(file);
        let output = setup.stderr(Stdio::null()).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().into();
        output.status.success().then_some(Self { path })
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        did(Command::new("losetup").arg("-d").arg(&self.path));
    }
}

/// Something mounted; taken away when dropped.
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Mounts a device, or a file as one, at a directory. `None` where that is refused.
    pub fn new(kind: Kind, device: &Path, at: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-i", "-t", kind.name()]).arg(device).arg(at);
        did(mount).then(|| Self { at: at.to_owned() })
    }

    /// Mounts one file over another: what the descriptor serves.
    pub fn fuse(served: OwnedFd, at: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount
            .args(["-i", "-t", "fuse", "-o"])
            .arg("fd=0,rootmode=100600,user_id=0,group_id=0")
            .args(["helios-blocks".as_ref(), at.as_os_str()])
            .stdin(Stdio::from(served))
            .stderr(Stdio::null());
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then(|| Self { at: at.to_owned() })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !did(Command::new("umount").arg("-i").arg(&self.at)) {
            did(Command::new("umount").arg("-l").arg(&self.at));
        }
    }
}

/// A file system of its own on a device of its own.
pub struct Machine {
    // In the order in which they go.
    mounted: Option<Mounted>,
    device: LoopDevice,
    kind: Kind,
    place: PathBuf,
    _dir: tempfile::TempDir,
}

impl Machine {
    /// Makes the file system. `None`, with a line, where that can't be done here.
    pub fn new(kind: Kind) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: cutting the power of a file system needs root");
            return None;
        }
        sweep();
        let dir = image_dir();
        let (image, place) = (dir.path().join("image"), dir.path().join("mount"));
        std::fs::create_dir(&place).unwrap();
        File::create(&image).unwrap().set_len(kind.bytes()).unwrap();
        let made = kind.make(&image).then(|| LoopDevice::on(&image)).flatten();
        let mounted = made.and_then(|device| {
            let mounted = Mounted::new(kind, device.path(), &place)?;
            Some((device, mounted))
        });
        let Some((device, mounted)) = mounted else {
            println!(
                "skipped: {} on a loop device can't be had here",
                kind.name()
            );
            return None;
        };
        Some(Self {
            mounted: Some(mounted),
            device,
            kind,
            place,
            _dir: dir,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.place
    }

    /// The power goes: nothing more reaches the device.
    pub fn cut(&self) {
        let root = File::open(&self.place).unwrap();
        shut_down(&root);
    }

    /// It comes back. Nobody may have a file open any more.
    pub fn restart(&mut self) {
        drop(self.mounted.take());
        self.mounted = Mounted::new(self.kind, self.device.path(), &self.place);
        assert!(self.mounted.is_some(), "it does not mount again");
    }
}

fn shut_down(root: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, and the kernel reads one word from the address of one.
    let done = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const WITHOUT_LOG) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}
