//! The machine as this process may use it: CPUs, and what they share.
//!
//! Floor 3, part of `topology`. Plain data, so that a test can make any machine by hand. A *CPU*
//! here is what the kernel numbers and a thread is pinned to (hwloc's PU); a *core* holds one CPU,
//! or several that share its pipelines (SMT siblings).
//!
//! Invariants
//! - `cpus` holds exactly the CPUs of the affinity mask, at least one, in ascending order.

use hwlocality::Topology;
use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::types::ObjectType;
use serde::Serialize;

use super::quota;

/// A CPU by the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CoreId(pub u32);

/// What this process has to run on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Machine {
    /// The CPUs this process may run on, in ascending order.
    pub cpus: Vec<Cpu>,
    /// CPUs that this process may not run on, of those that its control group shows.
    pub cpus_forbidden: u32,
    /// The caches that several cores share, by [`Cpu::domain`].
    pub domains: Vec<CacheDomain>,
    /// The NUMA nodes near these CPUs.
    pub nodes: Vec<NumaNode>,
    /// CPU time per second granted by the control groups, in thousandths of a CPU; `None` without
    /// a quota.
    pub quota_millicpus: Option<u32>,
    /// False where hwloc found nothing: then each CPU is taken for a core of one flat machine.
    pub known: bool,
}

/// A CPU and what it belongs to. Packages and cores are counted from 0 over the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Its number.
    pub id: CoreId,
    /// Its core; SMT siblings share it.
    pub core: u32,
    /// Index into [`Machine::domains`].
    pub domain: u32,
    /// Its NUMA node, by the kernel's number.
    pub node: u32,
    /// Its package.
    pub package: u32,
}

/// Cores between which a cache line travels fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CacheDomain {
    /// Level of the cache they share; 0 where they share a package, and no cache is known.
    pub level: u8,
    /// Its size, in bytes; 0 if unknown.
    pub bytes: u64,
}

/// Memory near some CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NumaNode {
    /// The kernel's number.
    pub id: u32,
    /// Its size, in bytes; 0 if unknown.
    pub bytes: u64,
}

/// A machine that can't be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// The kernel did not tell on which CPUs this thread may run.
    #[error("the kernel does not tell on which CPUs this process may run: {0}")]
    NoAffinityMask(std::io::Error),
}

impl Machine {
    /// Asks the kernel and hwloc; takes milliseconds. To be called once, before any thread is
    /// pinned: the CPUs found are those of the calling thread.
    ///
    /// # Errors
    /// An affinity mask that can't be read. Where hwloc finds nothing the machine is taken for a
    /// flat one.
    pub fn probe() -> Result<Self, TopologyError> {
        let mask = core_affinity::get_core_ids().filter(|mask| !mask.is_empty());
        let no_mask = || TopologyError::NoAffinityMask(std::io::Error::last_os_error());
        let mask: Vec<u32> = mask
            .ok_or_else(no_mask)?
            .iter()
            .map(|core| core.id as u32)
            .collect();
        let found = Topology::new()
            .ok()
            .and_then(|topology| Self::of_topology(&topology, &mask));
        let machine = found.unwrap_or_else(|| Self::flat(&mask));
        Ok(Self {
            quota_millicpus: quota::read(),
            ..machine
        })
    }

    /// The machine without knowledge of what its CPUs share.
    fn flat(mask: &[u32]) -> Self {
        let cpu = |(core, id): (usize, &u32)| Cpu {
            id: CoreId(*id),
            core: core as u32,
            domain: 0,
            node: 0,
            package: 0,
        };
        Self {
            cpus: mask.iter().enumerate().map(cpu).collect(),
            domains: vec![CacheDomain { level: 0, bytes: 0 }],
            nodes: vec![NumaNode { id: 0, bytes: 0 }],
            ..Self::default()
        }
    }

    /// The part of a topology that `mask` allows; `None` if it does not know all of these CPUs.
    fn of_topology(topology: &Topology, mask: &[u32]) -> Option<Self> {
        let mut machine = Self {
            known: true,
            ..Self::default()
        };
        let mut domain_ids = Vec::new();
        for pu in topology.objects_with_type(ObjectType::PU) {
            let id = pu.os_index()? as u32;
            if !mask.contains(&id) {
                machine.cpus_forbidden += 1;
                continue;
            }
            let node = node_of(topology, pu)?;
            if !machine.nodes.contains(&node) {
                machine.nodes.push(node);
            }
            let shared = domain_of(pu);
            let persistent = shared.global_persistent_index();
            let known = domain_ids.iter().position(|id| *id == persistent);
            let domain = known.unwrap_or_else(|| {
                domain_ids.push(persistent);
                machine.domains.push(cache_of(shared));
                domain_ids.len() - 1
            });
            machine.cpus.push(Cpu {
                id: CoreId(id),
                core: index_of(pu, ObjectType::Core).unwrap_or_else(|| pu.logical_index() as u32),
                domain: domain as u32,
                node: node.id,
                package: index_of(pu, ObjectType::Package).unwrap_or(0),
            });
        }
        machine.cpus.sort_by_key(|cpu| cpu.id);
        machine.nodes.sort_by_key(|node| node.id);
        (machine.cpus.len() == mask.len()).then_some(machine)
    }

    /// How many different cores its CPUs belong to.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.count(|cpu| cpu.core)
    }

    /// How many packages its CPUs are in.
    #[must_use]
    pub fn package_count(&self) -> usize {
        self.count(|cpu| cpu.package)
    }

    /// How many threads may run all the time: the CPUs, or what the quota leaves of them, at least
    /// one.
    #[must_use]
    pub fn cpus_usable(&self) -> usize {
        let quota = self
            .quota_millicpus
            .map_or(usize::MAX, |milli| milli as usize / 1000);
        self.cpus.len().min(quota).max(1)
    }

    /// The CPU of this number, if this process may run on it.
    #[must_use]
    pub fn cpu(&self, id: CoreId) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.id == id)
    }

    fn count(&self, of: impl Fn(&Cpu) -> u32) -> usize {
        let mut found: Vec<_> = self.cpus.iter().map(of).collect();
        found.sort_unstable();
        found.dedup();
        found.len()
    }
}

fn index_of(pu: &TopologyObject, kind: ObjectType) -> Option<u32> {
    pu.first_ancestor_with_type(kind)
        .map(|found| found.logical_index() as u32)
}

/// The NUMA node whose CPUs include this one; of several (fast and large memory) the first.
fn node_of(topology: &Topology, pu: &TopologyObject) -> Option<NumaNode> {
    let cpus = pu.cpuset()?;
    let node = topology
        .objects_with_type(ObjectType::NUMANode)
        .find(|node| node.cpuset().is_some_and(|near| near.includes(cpus)))?;
    let bytes = match node.attributes() {
        Some(ObjectAttributes::NUMANode(attributes)) => attributes.local_memory(),
        _ => None,
    };
    Some(NumaNode {
        id: node.os_index()? as u32,
        bytes: bytes.map_or(0, u64::from),
    })
}

/// The outermost cache that several cores share; else the package. (Virtual machines may show a
/// last-level cache to each core alone: that says nothing about how near two cores are.)
fn domain_of(pu: &TopologyObject) -> &TopologyObject {
    let core = pu.first_ancestor_with_type(ObjectType::Core).unwrap_or(pu);
    let shared = |cache: &&TopologyObject| {
        cache.object_type().is_cpu_data_cache() && cache.cpuset() != core.cpuset()
    };
    let package = || pu.first_ancestor_with_type(ObjectType::Package);
    let root = || pu.ancestors().last().unwrap_or(pu);
    pu.ancestors()
        .filter(shared)
        .last()
        .or_else(package)
        .unwrap_or_else(root)
}

fn cache_of(shared: &TopologyObject) -> CacheDomain {
    match shared.attributes() {
        Some(ObjectAttributes::Cache(cache)) => CacheDomain {
            level: cache.depth() as u8,
            bytes: cache.size().map_or(0, u64::from),
        },
        _ => CacheDomain { level: 0, bytes: 0 },
    }
}

#[cfg(test)]
pub(in crate::topology) mod tests {
    use super::*;

    /// A machine as hwloc would show it, from hwloc's own description language.
    pub(in crate::topology) fn machine(description: &str) -> Machine {
        let topology = Topology::builder()
            .from_synthetic(description)
            .unwrap()
            .build()
            .unwrap();
        let cpus = topology.objects_with_type(ObjectType::PU).len() as u32;
        Machine::of_topology(&topology, &(0..cpus).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_cores_share_is_found() {
        let found = machine("package:2 numa:1 l3:2 core:4 pu:2");
        assert_eq!(
            (found.cpus.len(), found.core_count(), found.package_count()),
            (32, 16, 2)
        );
        assert_eq!((found.domains.len(), found.nodes.len()), (4, 2));
        assert!(
            found
                .domains
                .iter()
                .all(|domain| domain.level == 3 && domain.bytes > 0)
        );
        for cpu in &found.cpus {
            let id = cpu.id.0;
            let expected = (id / 2, id / 8, id / 16, id / 16);
            assert_eq!(
                (cpu.core, cpu.domain, cpu.node, cpu.package),
                expected,
                "{cpu:?}"
            );
        }
    }

    #[test]
    fn a_cache_of_one_core_is_no_domain() {
        let found = machine("package:1 l3:4 l2:1 core:1 pu:2");
        assert_eq!((found.cpus.len(), found.core_count()), (8, 4));
        assert_eq!(found.domains, [CacheDomain { level: 0, bytes: 0 }]);
        let found = machine("package:1 l2:2 core:2 pu:1");
        assert_eq!(
            found
                .domains
                .iter()
                .map(|domain| domain.level)
                .collect::<Vec<_>>(),
            [2, 2]
        );
    }

    #[test]
    fn the_mask_hides_what_it_forbids() {
        let whole = Topology::builder().from_synthetic("package:2 l3:1 core:2 pu:1");
        let whole = whole.unwrap().build().unwrap();
        let part = Machine::of_topology(&whole, &[2, 3]).unwrap();
        assert_eq!(
            part.cpus.iter().map(|cpu| cpu.id.0).collect::<Vec<_>>(),
            [2, 3]
        );
        assert_eq!(
            (
                part.cpus_forbidden,
                part.package_count(),
                part.domains.len()
            ),
            (2, 1, 1)
        );
        assert_eq!(Machine::of_topology(&whole, &[2, 9]), None);
    }

    #[test]
    fn a_flat_machine_has_a_core_for_each_cpu() {
        let flat = Machine::flat(&[4, 7]);
        assert_eq!(
            (flat.core_count(), flat.cpus_usable(), flat.known),
            (2, 2, false)
        );
        assert!(flat.cpu(CoreId(7)).is_some() && flat.cpu(CoreId(5)).is_none());
    }

    #[test]
    fn a_quota_bounds_what_is_usable() {
        for (quota, usable) in [
            (None, 8),
            (Some(9000), 8),
            (Some(2999), 2),
            (Some(1500), 1),
            (Some(10), 1),
        ] {
            let machine = Machine {
                quota_millicpus: quota,
                ..machine("core:8 pu:1")
            };
            assert_eq!(machine.cpus_usable(), usable, "{quota:?}");
        }
    }

    #[test]
    fn this_machine_can_be_asked() {
        let machine = Machine::probe().unwrap();
        assert!(machine.known && machine.core_count() >= 1);
        let ids: Vec<_> = core_affinity::get_core_ids().unwrap();
        assert_eq!(machine.cpus.len(), ids.len());
    }
}
