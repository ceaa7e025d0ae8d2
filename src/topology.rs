//! What the machine is, and where the threads go.
//!
//! Floor 3: asks the kernel and hwloc, once, at start; nothing here runs on a hot path. The only
//! room that pins threads, binds memory and raises limits. What it finds is plain data
//! ([`Machine`], [`Facts`]); what it decides ([`Placement::choose`], [`findings()`]) are pure
//! functions of that data and the [`Config`], so that every machine can be had in a test.
//!
//! Invariants
//! - no thread is pinned to a CPU outside the affinity mask that the process started with.
//! - a missing capability degrades: it becomes a [`Finding`] with its cure, never an error. Errors
//!   are for a configuration that asks for what the machine does not have.
#![expect(
    unsafe_code,
    reason = "io_uring_setup and get_mempolicy are asked by number"
)]

mod findings;
mod machine;
mod placement;
mod quota;

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;

use hwlocality::Topology;
use hwlocality::memory::binding::{MemoryBindingFlags, MemoryBindingPolicy};
use hwlocality::memory::nodeset::NodeSet;
use hwlocality::object::types::ObjectType;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Access, Config, ConfigError};

pub use findings::{Finding, State, findings};
pub use machine::{CacheDomain, CoreId, Cpu, Machine, NumaNode, TopologyError};
pub use placement::{Placement, ShardSeat};

/// A configuration resolved against the machine: what the runtime starts from. Made once, passed
/// by value.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What was asked for, checked.
    pub config: Config,
    /// Where the threads go.
    pub placement: Placement,
    /// Who may attach to what, names looked up.
    pub access: Access,
}

/// Checks a configuration and resolves it: cores against the machine, names against the user
/// database.
///
/// # Errors
/// A value out of range, a core that this process may not run on, an unknown user or group.
pub fn resolve(config: Config, machine: &Machine) -> Result<Resolved, ConfigError> {
    config.validate()?;
    let placement = Placement::choose(machine, &config)?;
    let access = Access::resolve(&config, rustix::process::geteuid().as_raw())?;
    Ok(Resolved {
        config,
        placement,
        access,
    })
}

/// What the kernel grants this process, beside CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Did `io_uring_setup` work? Else its error number.
    pub io_uring: Result<(), i32>,
    /// Memory that may be locked, in bytes; `None` is unlimited.
    pub memlock_bytes: Option<u64>,
    /// Open files now allowed; `None` is unlimited.
    pub files_soft: Option<u64>,
    /// Open files that the process may allow itself; `None` is unlimited.
    pub files_hard: Option<u64>,
    /// May memory be bound to NUMA nodes?
    pub memory_binding: bool,
    /// Name of the kernel's clock source; empty if it won't tell.
    pub clock_source: String,
}

impl Facts {
    /// Asks the kernel: a few system calls and one small file.
    #[must_use]
    pub fn probe() -> Self {
        let files = getrlimit(Resource::Nofile);
        let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
        Self {
            io_uring: probe_io_uring().map_err(|error| error.raw_os_error().unwrap_or(0)),
            memlock_bytes: getrlimit(Resource::Memlock).current,
            files_soft: files.current,
            files_hard: files.maximum,
            memory_binding: may_bind_memory(),
            clock_source: fs::read_to_string(clock)
                .unwrap_or_default()
                .trim()
                .to_owned(),
        }
    }
}

/// Sets up a tiny io_uring and drops it.
///
/// # Errors
/// What the kernel says: ENOSYS (it has none), EPERM (a sysctl or a seccomp filter forbids it),
/// ENOMEM (too little may be locked).
pub fn probe_io_uring() -> io::Result<()> {
    const ENTRIES: libc::c_uint = 2;
    // `struct io_uring_params` is 120 bytes, all zero for the defaults.
    let mut params = [0_u64; 15];
    // SAFETY: the kernel reads and writes the 120 bytes at `params`, which outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else {
        return Err(io::Error::last_os_error());
    };
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Pins the calling thread. Ask [`Machine::probe`] before the first call: a pinned thread sees no
/// core but its own. Returns whether the kernel agreed.
#[must_use]
pub fn pin_current_thread(core: CoreId) -> bool {
    // core_affinity panics at numbers that `cpu_set_t` does not hold.
    let id = core.0 as usize;
    id < libc::CPU_SETSIZE as usize && core_affinity::set_for_current(core_affinity::CoreId { id })
}

/// Lets the future allocations of the calling thread prefer a NUMA node (an OS index, as in
/// [`ShardSeat::node`]); other nodes serve when it is full. Returns whether that was done: not
/// where there is one node only, not where the kernel refuses.
#[must_use]
pub fn bind_memory_to_node(node: u32) -> bool {
    // Found once: it takes milliseconds, and each shard's thread asks.
    static TOPOLOGY: OnceLock<Option<Topology>> = OnceLock::new();
    let Some(topology) = TOPOLOGY.get_or_init(|| Topology::new().ok()) else {
        return false;
    };
    let mut nodes = topology.objects_with_type(ObjectType::NUMANode);
    if nodes.len() < 2 {
        return false;
    }
    let Some(node) = nodes.find(|found| found.os_index() == Some(node as usize)) else {
        return false;
    };
    let Some(set) = node.nodeset().map(|set| NodeSet::clone(&set)) else {
        return false;
    };
    let flags = MemoryBindingFlags::THREAD;
    topology
        .bind_memory(&set, MemoryBindingPolicy::Bind, flags)
        .is_ok()
}

/// Raises the soft limit on open files to the hard one and returns what then holds; `None` is
/// unlimited. A refusal leaves the limit as it was.
pub fn raise_file_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Containers often forbid the whole family of system calls; asking is the mildest of them.
fn may_bind_memory() -> bool {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: with null pointers and no flags the call only checks whether it is allowed.
    let answer = unsafe { libc::syscall(libc::SYS_get_mempolicy, null, null, 0, null, 0) };
    answer == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_thread_is_pinned_where_it_may_be() {
        let machine = Machine::probe().unwrap();
        for cpu in &machine.cpus {
            let id = cpu.id;
            let seen = thread::spawn(move || {
                assert!(pin_current_thread(id));
                core_affinity::get_core_ids().unwrap()
            });
            assert_eq!(
                seen.join().unwrap(),
                [core_affinity::CoreId { id: id.0 as usize }]
            );
        }
        for id in [1_023, 1_024, 1 << 20, u32::MAX] {
            assert!(
                !thread::spawn(move || pin_current_thread(CoreId(id)))
                    .join()
                    .unwrap()
            );
        }
    }

    #[test]
    fn memory_is_bound_to_nodes_that_exist() {
        assert!(
            !thread::spawn(|| bind_memory_to_node(u32::MAX))
                .join()
                .unwrap()
        );
        let machine = Machine::probe().unwrap();
        let several = machine.nodes.len() > 1 && may_bind_memory();
        let node = machine.cpus[0].node;
        assert_eq!(
            thread::spawn(move || bind_memory_to_node(node))
                .join()
                .unwrap(),
            several
        );
    }

    #[test]
    fn the_file_limit_rises_to_the_hard_one() {
        let raised = raise_file_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, raised);
        assert_eq!(getrlimit(Resource::Nofile).maximum, raised);
    }

    #[test]
    fn this_machine_resolves() {
        let machine = Machine::probe().unwrap();
        let resolved = resolve(Config::default(), &machine).unwrap();
        assert!(!resolved.placement.shards.is_empty());
        assert!(!findings(&machine, &resolved.placement, &Facts::probe()).is_empty());
    }
}
