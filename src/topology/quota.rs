//! The CPU quota of the control groups that this process is in.
//!
//! Floor 3, part of `topology`. A quota is not a mask: the process may run on every core, and is
//! stopped on all of them when its share of a period is spent. It is set on a group or on any group
//! above it, so all are read up to the mount and the smallest counts.

use std::fs;
use std::path::{Path, PathBuf};

/// Least quota of the groups of this process, in thousandths of a CPU; `None` without one.
pub(super) fn read() -> Option<u32> {
    read_under(Path::new("/"))
}

/// The same, with `root` standing for the root of the file system.
fn read_under(root: &Path) -> Option<u32> {
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let groups = cpu_groups(&text("proc/self/cgroup"), &text("proc/self/mountinfo"));
    groups.iter().filter_map(|group| group.read(root)).min()
}

/// A mounted hierarchy that may limit CPU time, and this process's place in it.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    version: Version,
    mount: PathBuf,
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Group {
    fn read(&self, root: &Path) -> Option<u32> {
        let dirs = self
            .dir
            .ancestors()
            .take_while(|dir| dir.starts_with(&self.mount));
        let quota = |dir: &Path| {
            let dir = root.join(dir.strip_prefix("/").unwrap_or(dir));
            let text = |name| fs::read_to_string(dir.join(name)).ok();
            match self.version {
                Version::V1 => parse_cfs(&text("cpu.cfs_quota_us")?, &text("cpu.cfs_period_us")?),
                Version::V2 => parse_cpu_max(&text("cpu.max")?),
            }
        };
        dirs.filter_map(quota).min()
    }
}

/// The groups that `/proc/self/cgroup` and `/proc/self/mountinfo` tell of. Both versions may be
/// mounted at once, each with a place of its own.
fn cpu_groups(cgroup: &str, mountinfo: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    for line in mountinfo.lines() {
        let Some(mount) = Mount::parse(line) else {
            continue;
        };
        let place = cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (hierarchy, controllers) = (fields.next()?, fields.next()?);
            let found = match mount.version {
                Version::V1 => controllers.split(',').any(|name| name == "cpu"),
                Version::V2 => hierarchy == "0" && controllers.is_empty(),
            };
            fields.next().filter(|_| found)
        });
        if let Some(place) = place {
            let dir = mount.dir_of(place);
            groups.push(Group {
                version: mount.version,
                mount: mount.point,
                dir,
            });
        }
    }
    groups
}

struct Mount {
    version: Version,
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// From a line like `31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw`.
    fn parse(line: &str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut kind = kind.split(' ');
        let version = match kind.next()? {
            "cgroup2" => Version::V2,
            "cgroup" if kind.nth(1)?.split(',').any(|name| name == "cpu") => Version::V1,
            _ => return None,
        };
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        Some(Self {
            version,
            root,
            point,
        })
    }

    /// Where the group `place` is seen. A container may see only a part of the hierarchy: then its
    /// own group is the mount itself.
    fn dir_of(&self, place: &str) -> PathBuf {
        let below = Path::new(place)
            .strip_prefix(&self.root)
            .unwrap_or(Path::new(""));
        let outside = below.components().any(|part| part.as_os_str() == "..");
        if outside {
            self.point.clone()
        } else {
            self.point.join(below)
        }
    }
}

/// Paths in mountinfo have blanks and backslashes as `\040` and the like.
fn unescape(path: &str) -> PathBuf {
    let mut text = path.to_owned();
    for (escaped, plain) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        text = text.replace(escaped, plain);
    }
    text.into()
}

/// `max 100000` is no quota, `150000 100000` is one and a half CPUs.
fn parse_cpu_max(text: &str) -> Option<u32> {
    let mut fields = text.split_whitespace();
    milli(fields.next()?, fields.next()?)
}

/// A quota of -1 is none.
fn parse_cfs(quota: &str, period: &str) -> Option<u32> {
    milli(quota.trim(), period.trim())
}

fn milli(quota: &str, period: &str) -> Option<u32> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    let milli = quota.checked_mul(1000)?.checked_div(period)?;
    milli.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_parsed() {
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(1500));
        assert_eq!(parse_cpu_max("1000 100000"), Some(10));
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("400000\n", "100000\n"), Some(4000));
        for text in [
            "",
            "max",
            "1",
            "1 0",
            "a b",
            "-1 100000",
            "18446744073709551615 1",
        ] {
            assert_eq!(parse_cpu_max(text), None, "{text:?}");
        }
    }

    #[track_caller]
    fn check(cgroup: &str, mountinfo: &str, expected: &[(Version, &str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(version, mount, dir)| Group {
                version: *version,
                mount: mount.into(),
                dir: dir.into(),
            })
            .collect();
        assert_eq!(cpu_groups(cgroup, mountinfo), expected);
    }

    #[test]
    fn groups_are_found_on_every_layout() {
        // A plain host with version 2 only.
        check(
            "0::/user.slice/user-1000.slice/session-2.scope\n",
            "23 1 0:22 / / rw - ext4 /dev/sda rw\n\
             31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
            &[(
                Version::V2,
                "/sys/fs/cgroup",
                "/sys/fs/cgroup/user.slice/user-1000.slice/session-2.scope",
            )],
        );
        // Version 1 with version 2 beside it, controllers mounted two to a hierarchy.
        check(
            "9:name=systemd:/\n4:cpu,cpuacct:/box\n3:cpuset:/other\n0::/\n",
            "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            &[
                (
                    Version::V1,
                    "/sys/fs/cgroup/cpu,cpuacct",
                    "/sys/fs/cgroup/cpu,cpuacct/box",
                ),
                (
                    Version::V2,
                    "/sys/fs/cgroup/unified",
                    "/sys/fs/cgroup/unified",
                ),
            ],
        );
        // A container without a namespace of its own: it sees its group at the mount.
        check(
            "4:cpu,cpuacct:/docker/abc\n",
            "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu\\040x ro - cgroup cgroup ro,cpu,cpuacct\n",
            &[(Version::V1, "/sys/fs/cgroup/cpu x", "/sys/fs/cgroup/cpu x")],
        );
        // A group outside the namespace.
        check(
            "0::/../../elsewhere\n",
            "31 23 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
            &[(Version::V2, "/sys/fs/cgroup", "/sys/fs/cgroup")],
        );
        check("", "", &[]);
        check("0", "31 23 0:28 - cgroup2\n - \n1 2 3 / - cgroup\n", &[]);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "0::/pod/box\n");
        write(
            "proc/self/mountinfo",
            "31 23 0:28 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(read_under(root.path()), None);
        write("sys/fs/cgroup/pod/box/cpu.max", "max 100000\n");
        assert_eq!(read_under(root.path()), None);
        write("sys/fs/cgroup/pod/cpu.max", "250000 100000\n");
        assert_eq!(read_under(root.path()), Some(2500));
        write("sys/fs/cgroup/pod/box/cpu.max", "150000 100000\n");
        assert_eq!(read_under(root.path()), Some(1500));
        // The nearest group may grant more than one above it has.
        write("sys/fs/cgroup/pod/box/cpu.max", "800000 100000\n");
        assert_eq!(read_under(root.path()), Some(2500));
        write("sys/fs/cgroup/pod/box/cpu.max", "150000 100000\n");
        // A group beside the way up has no say.
        write("sys/fs/cgroup/pod/other/cpu.max", "1000 100000\n");
        assert_eq!(read_under(root.path()), Some(1500));
    }
}
