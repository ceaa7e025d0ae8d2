//! What this machine lacks, what that costs, and what to do about it.
//!
//! Floor 3, part of `topology`. A pure function of the machine, the placement and the [`Facts`].
//! Nothing found here stops the runtime.

use serde::Serialize;

use super::{Facts, Machine, Placement};
use crate::config::size_text;

/// glommio refuses to start an executor that may lock less, in bytes.
const MEMLOCK_BYTES_MIN: u64 = 512 << 10;
/// Lanes that one runtime is built for, each with two descriptors.
const LANES: u64 = 8_500;
const FILES_PER_LANE: u64 = 2;
/// Descriptors beside those of lanes: segments, sockets, rings.
const FILES_OTHER: u64 = 512;
/// Clock sources that are read by a system call, some by waiting for a device.
const SLOW_CLOCKS: [&str; 5] = ["hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"];

/// One capability, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The capability, in a word or two.
    pub what: &'static str,
    /// Is it there?
    pub state: State,
    /// What was found.
    pub why: String,
    /// What to do about it; empty where nothing is to be done.
    pub cure: String,
}

/// Is a capability there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Yes, or nothing would be gained by it.
    Ok,
    /// No: the runtime works, but slower or for fewer agents.
    Degraded,
}

/// Every capability in turn, those that are there too.
#[must_use]
pub fn findings(machine: &Machine, placement: &Placement, facts: &Facts) -> Vec<Finding> {
    vec![
        topology(machine),
        cpus(machine, placement),
        quota(machine),
        numa(machine, facts),
        io_uring(facts),
        memlock(facts),
        files(facts),
        clock(facts),
    ]
}

fn ok(what: &'static str, why: impl Into<String>) -> Finding {
    Finding {
        what,
        state: State::Ok,
        why: why.into(),
        cure: String::new(),
    }
}

fn degraded(what: &'static str, why: impl Into<String>, cure: impl Into<String>) -> Finding {
    Finding {
        what,
        state: State::Degraded,
        why: why.into(),
        cure: cure.into(),
    }
}

fn topology(machine: &Machine) -> Finding {
    match machine.known {
        true => ok("topology", "known"),
        false => degraded(
            "topology",
            "hwloc finds no caches and cores: each CPU is taken for a core of one flat machine",
            "mount /sys in this container, or set shard_cores and prefetch_core",
        ),
    }
}

fn cpus(machine: &Machine, placement: &Placement) -> Finding {
    let (shards, cpus) = (placement.shards.len(), machine.cpus_usable());
    if !placement.is_pinned() {
        let why = format!(
            "none: shards, I/O and prefetch need {} CPUs of {cpus}",
            shards + 1
        );
        let cure = match shards {
            1 => "give the process two CPUs or more".to_owned(),
            _ => format!(
                "give the process {} CPUs or more, or set shards lower",
                shards + 1
            ),
        };
        return degraded("pinning", why, cure);
    }
    match placement.shards.iter().filter(|seat| !seat.alone).count() {
        0 => ok("pinning", "each shard alone on its CPU"),
        crowded => degraded(
            "pinning",
            format!("shards that share their CPU with other threads: {crowded} of {shards}"),
            "list more CPUs in shard_cores, and leave one out for I/O, prefetch and agents",
        ),
    }
}

fn quota(machine: &Machine) -> Finding {
    let Some(milli) = machine.quota_millicpus else {
        return ok("CPU quota", "none");
    };
    let why = format!(
        "the control group grants {}.{:02} of {} CPUs; threads that poll spend it, and all stop \
         when a period's share is spent",
        milli / 1000,
        milli % 1000 / 10,
        machine.cpus.len()
    );
    if milli as usize >= 1000 * machine.cpus.len() {
        return ok("CPU quota", why);
    }
    let cure = "give whole CPUs by a cpuset (cpuset.cpus, docker --cpuset-cpus, Kubernetes static \
                CPU policy) instead of a quota (cpu.max, --cpus)";
    degraded("CPU quota", why, cure)
}

fn numa(machine: &Machine, facts: &Facts) -> Finding {
    match (machine.nodes.len(), machine.package_count()) {
        (0 | 1, 0 | 1) => Finding {
            cure: "none needed; on several packages: switch node interleaving off in the firmware"
                .to_owned(),
            ..ok(
                "NUMA",
                "one node: all memory is equally near, none is bound",
            )
        },
        (0 | 1, packages) => degraded(
            "NUMA",
            format!("{packages} packages but one node: shards can't keep to near memory"),
            "switch node interleaving off in the firmware, boot without numa=off",
        ),
        (nodes, _) if facts.memory_binding => ok(
            "NUMA",
            format!("{nodes} nodes: each shard's memory is bound to its own"),
        ),
        (nodes, _) => degraded(
            "NUMA",
            format!("{nodes} nodes, but this process may not bind memory"),
            "allow set_mempolicy and mbind: add CAP_SYS_NICE to the container, or to its seccomp \
             profile",
        ),
    }
}

fn io_uring(facts: &Facts) -> Finding {
    let (why, cure) = match facts.io_uring {
        Ok(()) => return ok("io_uring", "granted"),
        Err(libc::ENOSYS) => (
            "this kernel has none, or a seccomp filter hides it: threads do the I/O".to_owned(),
            "use Linux 5.8 or later; allow io_uring_setup, io_uring_enter and io_uring_register \
             in the container's seccomp profile",
        ),
        Err(libc::EPERM | libc::EACCES) => (
            "forbidden here: threads do the I/O".to_owned(),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp \
             profile; set the sysctl kernel.io_uring_disabled to 0",
        ),
        Err(libc::ENOMEM) => (
            "too little memory may be locked: threads do the I/O".to_owned(),
            "raise ulimit -l (LimitMEMLOCK= in a unit)",
        ),
        Err(errno) => (
            format!(
                "refused ({}): threads do the I/O",
                std::io::Error::from_raw_os_error(errno)
            ),
            "free descriptors or memory, and try again",
        ),
    };
    degraded("io_uring", why, cure)
}

fn memlock(facts: &Facts) -> Finding {
    let Some(bytes) = facts.memlock_bytes else {
        return ok("locked memory", "unlimited");
    };
    let text = size_text(bytes);
    if bytes >= MEMLOCK_BYTES_MIN {
        return ok("locked memory", text);
    }
    degraded(
        "locked memory",
        format!(
            "{text} of the {} that glommio asks for: threads do the I/O",
            size_text(MEMLOCK_BYTES_MIN)
        ),
        "ulimit -l 8192, LimitMEMLOCK=8M in a unit, or --ulimit memlock=8388608 for a container",
    )
}

fn files(facts: &Facts) -> Finding {
    const NEEDED: u64 = FILES_PER_LANE * LANES + FILES_OTHER;
    let (soft, hard) = (facts.files_soft, facts.files_hard);
    let text = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    if hard.is_some_and(|hard| hard < NEEDED) {
        let lanes = hard.unwrap_or(0).saturating_sub(FILES_OTHER) / FILES_PER_LANE;
        return degraded(
            "open files",
            format!(
                "at most {}: enough for {lanes} lanes of {LANES}",
                text(hard)
            ),
            format!(
                "ulimit -Hn {NEEDED}, LimitNOFILE={NEEDED} in a unit, or --ulimit nofile={NEEDED} \
                 for a container"
            ),
        );
    }
    match soft == hard {
        true => ok("open files", text(soft)),
        false => ok(
            "open files",
            format!("{}, raised at start to {}", text(soft), text(hard)),
        ),
    }
}

fn clock(facts: &Facts) -> Finding {
    match facts.clock_source.as_str() {
        "" => ok("clock", "source not told"),
        slow if SLOW_CLOCKS.contains(&slow) => degraded(
            "clock",
            format!("{slow}: reading the time is a system call, and shards and agents often do"),
            "boot with tsc=reliable if the machine's TSC is sound, or use kvm-clock in a guest",
        ),
        source => ok("clock", source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Choice, Config};
    use crate::topology::machine::tests::machine;

    fn sound() -> Facts {
        Facts {
            io_uring: Ok(()),
            memlock_bytes: Some(8 << 20),
            files_soft: Some(20_000),
            files_hard: Some(20_000),
            memory_binding: true,
            clock_source: "tsc".to_owned(),
        }
    }

    /// The names of what is degraded, after a look that each says what to do.
    fn check(machine: &Machine, config: &Config, facts: &Facts) -> Vec<&'static str> {
        let placement = Placement::choose(machine, config).unwrap();
        let found = findings(machine, &placement, facts);
        let degraded: Vec<_> = found
            .into_iter()
            .filter(|finding| finding.state == State::Degraded)
            .collect();
        assert!(
            degraded
                .iter()
                .all(|finding| !finding.cure.is_empty() && !finding.why.is_empty())
        );
        degraded.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn each_lack_is_found_alone() {
        let (two, config) = (machine("core:2 pu:1"), Config::default());
        assert!(check(&two, &config, &sound()).is_empty());
        for (what, facts) in [
            (
                "io_uring",
                Facts {
                    io_uring: Err(libc::ENOSYS),
                    ..sound()
                },
            ),
            (
                "io_uring",
                Facts {
                    io_uring: Err(libc::EPERM),
                    ..sound()
                },
            ),
            (
                "io_uring",
                Facts {
                    io_uring: Err(libc::EMFILE),
                    ..sound()
                },
            ),
            (
                "locked memory",
                Facts {
                    memlock_bytes: Some(64 << 10),
                    ..sound()
                },
            ),
            (
                "open files",
                Facts {
                    files_hard: Some(4096),
                    ..sound()
                },
            ),
            (
                "clock",
                Facts {
                    clock_source: "hpet".to_owned(),
                    ..sound()
                },
            ),
        ] {
            assert_eq!(check(&two, &config, &facts), [what], "{facts:?}");
        }
        let unlimited = Facts {
            memlock_bytes: None,
            files_soft: None,
            files_hard: None,
            ..sound()
        };
        assert!(check(&two, &config, &unlimited).is_empty());
        let low_but_raisable = Facts {
            files_soft: Some(1024),
            ..sound()
        };
        assert!(check(&two, &config, &low_but_raisable).is_empty());
    }

    #[test]
    fn machines_lack_things_too() {
        let config = Config::default();
        assert_eq!(
            check(&machine("core:1 pu:1"), &config, &sound()),
            ["pinning"]
        );
        let four = Config {
            shards: Choice::Fixed(4),
            ..Config::default()
        };
        assert_eq!(check(&machine("core:2 pu:1"), &four, &sound()), ["pinning"]);
        let crowded = Config {
            shard_cores: Choice::Fixed(vec![1]),
            ..four
        };
        assert_eq!(
            check(&machine("core:2 pu:1"), &crowded, &sound()),
            ["pinning"]
        );
        let quota = |milli| Machine {
            quota_millicpus: Some(milli),
            ..machine("core:4 pu:1")
        };
        assert_eq!(check(&quota(2500), &config, &sound()), ["CPU quota"]);
        assert!(check(&quota(4000), &config, &sound()).is_empty());
        let flat = Machine {
            known: false,
            ..machine("core:2 pu:1")
        };
        assert_eq!(check(&flat, &config, &sound()), ["topology"]);

        let two_nodes = machine("package:2 numa:1 core:2 pu:1");
        assert!(check(&two_nodes, &config, &sound()).is_empty());
        let unbound = Facts {
            memory_binding: false,
            ..sound()
        };
        assert_eq!(check(&two_nodes, &config, &unbound), ["NUMA"]);
        let interleaved = machine("numa:1 package:2 core:2 pu:1");
        assert_eq!(check(&interleaved, &config, &sound()), ["NUMA"]);
    }
}
