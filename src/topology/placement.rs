//! Where the threads go: a pure function of the machine and the configuration.
//!
//! Floor 3, part of `topology`.
//!
//! Invariants
//! - every CPU named is one of the machine's, so inside the affinity mask.
//! - without cores chosen by the operator, no two threads that poll are pinned to one CPU: where
//!   there are too few CPUs nothing is pinned, and the kernel shares them out.

use std::cmp::Reverse;

use serde::Serialize;

use super::{CoreId, Cpu, Machine};
use crate::config::{Choice, Config, ConfigError, MEMORY_BYTES_MIN, Problem, SHARDS_MAX};

/// The place of every thread. `None` is a thread that is not pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// One for each shard, at least one.
    pub shards: Vec<ShardSeat>,
    /// The prefetcher.
    pub prefetch: Option<CoreId>,
    /// The I/O core, beside the prefetcher: its SMT sibling, or the same CPU.
    pub io: Option<CoreId>,
    /// Where agents disturb the shards least; at least one.
    pub agents: Vec<CoreId>,
}

/// The place of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShardSeat {
    /// Its CPU.
    pub core: Option<CoreId>,
    /// The NUMA node to bind its memory to; `None` where that would do nothing.
    pub node: Option<u32>,
    /// Is no other thread of the runtime, and no agent that keeps to its place, on that CPU? A
    /// shard that is not alone does well to stop polling soon.
    pub alone: bool,
}

impl Placement {
    /// Chooses a place for every thread.
    ///
    /// Where the operator leaves it open, half of the cores (at least one) go to shards, one to the
    /// I/O core and the prefetcher, the rest to agents. Half, because a request costs about as
    /// much on the agent's side of a lane as on the shard's, and agents have work of their own
    /// beside it; whoever has lighter agents says `shards = N`. No more shards than there are 16
    /// MiB of memory, since each has tables and an open segment of its own. SMT siblings are not
    /// counted: two polling shards on one core get half a core each. The siblings of shards are
    /// left to the kernel, not offered to agents.
    ///
    /// Shards take cores of the cache domain with the most cores, since they and the prefetcher
    /// talk through rings; the highest numbers first, since interrupts tend to go to the lowest
    /// CPUs.
    ///
    /// # Errors
    /// A core chosen by the operator that is not the machine's.
    pub fn choose(machine: &Machine, config: &Config) -> Result<Self, ConfigError> {
        let prefetch = match config.prefetch_core {
            Choice::Fixed(core) => Some(usable(machine, config, "prefetch_core", core)?),
            Choice::Auto => None,
        };
        if let Choice::Fixed(cores) = &config.shard_cores {
            let cores: Result<Vec<Cpu>, _> = cores
                .iter()
                .map(|core| usable(machine, config, "shard_cores", *core))
                .collect();
            let cores = cores?;
            let count = match config.shards {
                Choice::Fixed(count) => usize::from(count),
                Choice::Auto => cores.len(),
            };
            let seats: Vec<Cpu> = cores.iter().copied().cycle().take(count).collect();
            let prefetch = prefetch.or_else(|| {
                let order = by_preference(machine, cores.first(), None);
                order.into_iter().find(|cpu| !cores.contains(cpu))
            });
            return Ok(Self::pinned(machine, &seats, prefetch));
        }
        let count = match config.shards {
            Choice::Fixed(count) => usize::from(count),
            Choice::Auto => shard_count(machine, config.memory_max),
        };
        // The shards poll and so does the prefetcher: with a CPU for each they are pinned.
        if count + 1 > machine.cpus_usable() {
            return Ok(Self::unpinned(machine, count, prefetch));
        }
        let mut order = by_preference(machine, None, prefetch.as_ref());
        order.retain(|cpu| prefetch.as_ref() != Some(cpu));
        let prefetch = prefetch.or_else(|| order.get(count).copied());
        Ok(Self::pinned(machine, &order[..count], prefetch))
    }

    /// Is every shard on a CPU of its own?
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.shards.iter().all(|seat| seat.core.is_some())
    }

    fn unpinned(machine: &Machine, count: usize, prefetch: Option<Cpu>) -> Self {
        let prefetch = prefetch.map(|cpu| cpu.id);
        Self {
            shards: vec![
                ShardSeat {
                    core: None,
                    node: None,
                    alone: false
                };
                count
            ],
            prefetch,
            io: prefetch,
            agents: machine.cpus.iter().map(|cpu| cpu.id).collect(),
        }
    }

    fn pinned(machine: &Machine, seats: &[Cpu], prefetch: Option<Cpu>) -> Self {
        let all = || machine.cpus.iter();
        let has_shard = |cpu: &Cpu| seats.iter().any(|seat| seat.id == cpu.id);
        let core_has_shard = |cpu: &Cpu| seats.iter().any(|seat| seat.core == cpu.core);
        let core_has_prefetch = |cpu: &Cpu| prefetch.is_some_and(|seat| seat.core == cpu.core);

        let of_agents: Vec<CoreId> = all()
            .filter(|cpu| !core_has_shard(cpu) && !core_has_prefetch(cpu))
            .map(|cpu| cpu.id)
            .collect();
        let sibling = all().find(|cpu| {
            core_has_prefetch(cpu)
                && !has_shard(cpu)
                && Some(cpu.id) != prefetch.map(|seat| seat.id)
        });
        let beside = sibling.filter(|_| !of_agents.is_empty());
        let io = beside.copied().or(prefetch).map(|cpu| cpu.id);
        // With no core left over, agents share the prefetcher's; at worst all have to share.
        let without = |taken: &dyn Fn(&Cpu) -> bool| -> Vec<CoreId> {
            all().filter(|cpu| !taken(cpu)).map(|cpu| cpu.id).collect()
        };
        let agents = [
            of_agents,
            without(&core_has_shard),
            without(&has_shard),
            without(&|_| false),
        ]
        .into_iter()
        .find(|cpus| !cpus.is_empty())
        .unwrap_or_default();

        let several_nodes = machine.nodes.len() > 1;
        let prefetch = prefetch.map(|cpu| cpu.id);
        let seat = |cpu: &Cpu| {
            let others = [prefetch, io].contains(&Some(cpu.id)) || agents.contains(&cpu.id);
            let shards = seats.iter().filter(|seat| seat.id == cpu.id).count();
            ShardSeat {
                core: Some(cpu.id),
                node: several_nodes.then_some(cpu.node),
                alone: shards == 1 && !others,
            }
        };
        Self {
            shards: seats.iter().map(seat).collect(),
            prefetch,
            io,
            agents,
        }
    }
}

fn usable(machine: &Machine, config: &Config, key: &str, core: u32) -> Result<Cpu, ConfigError> {
    machine.cpu(CoreId(core)).copied().ok_or_else(|| {
        let usable = machine.cpus.iter().map(|cpu| cpu.id.0).collect();
        config.error(key, core, Problem::CoreNotUsable { core, usable })
    })
}

fn shard_count(machine: &Machine, memory_bytes: u64) -> usize {
    let cores = match machine.core_count() {
        // Two siblings of a single core are better than one thread after the other.
        1 => machine.cpus.len(),
        cores => cores,
    };
    let half = cores.min(machine.cpus_usable()) / 2;
    let fit = usize::try_from(memory_bytes / MEMORY_BYTES_MIN).unwrap_or(usize::MAX);
    half.min(fit).clamp(1, usize::from(SHARDS_MAX))
}

/// The CPUs, best first: one of each core before any sibling, those of the home domain before
/// those nearest to it, the prefetcher's core last. Home is that of `first`, or where most cores
/// are.
fn by_preference(machine: &Machine, first: Option<&Cpu>, prefetch: Option<&Cpu>) -> Vec<Cpu> {
    let siblings_above = |cpu: &Cpu| {
        let sibling = |other: &&Cpu| other.core == cpu.core && other.id > cpu.id;
        machine.cpus.iter().filter(sibling).count()
    };
    let home = first.copied().or_else(|| {
        machine.cpus.iter().copied().max_by_key(|cpu| {
            let domain = machine
                .cpus
                .iter()
                .filter(|other| other.domain == cpu.domain);
            let cores = domain
                .clone()
                .filter(|other| siblings_above(other) == 0)
                .count();
            (cores, domain.map(|other| other.id).min())
        })
    });
    let mut order = machine.cpus.clone();
    let Some(home) = home else {
        return order;
    };
    order.sort_by_key(|cpu| {
        let beside_prefetch = prefetch.is_some_and(|seat| seat.core == cpu.core);
        let far = [
            cpu.domain != home.domain,
            cpu.node != home.node,
            cpu.package != home.package,
        ];
        (
            beside_prefetch,
            siblings_above(cpu),
            far,
            cpu.domain,
            Reverse(cpu.id),
        )
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::machine::tests::machine;
    use proptest::prelude::*;

    fn shards(count: u16) -> Config {
        Config {
            shards: Choice::Fixed(count),
            memory_max: 64 << 30,
            ..Config::default()
        }
    }

    fn auto() -> Config {
        Config {
            memory_max: 64 << 30,
            ..Config::default()
        }
    }

    /// Places as one line, so that a case reads like a table: shards | prefetch | io | agents, `-`
    /// for a thread that is not pinned, `!` for a shard that is not alone.
    #[track_caller]
    fn check(machine: &Machine, config: &Config, expected: &str) {
        let placement = Placement::choose(machine, config).unwrap();
        let core = |core: Option<CoreId>| core.map_or("-".to_owned(), |core| core.0.to_string());
        let join = |parts: Vec<String>| parts.join(" ");
        let seat = |seat: &ShardSeat| core(seat.core) + if seat.alone { "" } else { "!" };
        let found = format!(
            "{} | {} | {} | {}",
            join(placement.shards.iter().map(seat).collect()),
            core(placement.prefetch),
            core(placement.io),
            join(
                placement
                    .agents
                    .iter()
                    .map(|cpu| cpu.0.to_string())
                    .collect()
            ),
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn small_machines() {
        check(&machine("core:1 pu:1"), &auto(), "-! | - | - | 0");
        check(&machine("core:2 pu:1"), &auto(), "1 | 0 | 0 | 0");
        check(&machine("core:3 pu:1"), &auto(), "2 | 1 | 1 | 0");
        check(&machine("core:4 pu:1"), &auto(), "3 2 | 1 | 1 | 0");
        check(
            &machine("l3:1 core:8 pu:1"),
            &auto(),
            "7 6 5 4 | 3 | 3 | 0 1 2",
        );
    }

    #[test]
    fn siblings_come_after_cores() {
        // hwloc numbers these 0,1 | 2,3 | ...: siblings are neighbours.
        check(&machine("core:1 pu:2"), &auto(), "1 | 0 | 0 | 0");
        check(&machine("core:2 pu:2"), &auto(), "3 | 1 | 1 | 0 1");
        check(&machine("core:4 pu:2"), &auto(), "7 5 | 3 | 2 | 0 1");
        check(&machine("core:2 pu:2"), &shards(3), "3 1 2 | 0 | 0 | 0");
        check(
            &machine("core:2 pu:2"),
            &shards(4),
            "-! -! -! -! | - | - | 0 1 2 3",
        );
    }

    #[test]
    fn shards_keep_to_one_cache() {
        let two = machine("package:1 l3:2 core:4 pu:1");
        check(&two, &shards(3), "7 6 5 | 4 | 4 | 0 1 2 3");
        check(&two, &auto(), "7 6 5 4 | 3 | 3 | 0 1 2");
        let part = Machine {
            cpus: two
                .cpus
                .iter()
                .copied()
                .filter(|cpu| cpu.id.0 < 7 && cpu.id.0 != 5)
                .collect(),
            ..two
        };
        check(&part, &shards(2), "3 2 | 1 | 1 | 0 4 6");
    }

    #[test]
    fn a_large_machine_binds_memory() {
        let large = machine("package:2 numa:1 l3:4 core:8 pu:2");
        let placement = Placement::choose(&large, &auto()).unwrap();
        assert_eq!(placement.shards.len(), 32);
        let of_core = |seat: &ShardSeat| *large.cpu(seat.core.unwrap()).unwrap();
        let cpus: Vec<Cpu> = placement.shards.iter().map(of_core).collect();
        assert!(
            cpus.iter().all(|cpu| cpu.package == 1),
            "half of the cores are one package"
        );
        assert!(
            placement
                .shards
                .iter()
                .all(|seat| seat.node == Some(1) && seat.alone)
        );
        assert!(
            cpus[..8].iter().all(|cpu| cpu.domain == cpus[0].domain),
            "a domain at a time"
        );
        assert_eq!(
            (placement.prefetch, placement.io),
            (Some(CoreId(15)), Some(CoreId(14)))
        );
        assert_eq!(placement.agents.len(), 62);
        // 192 MiB are twelve times the least memory.
        let few = Placement::choose(&large, &Config::default()).unwrap();
        assert_eq!(few.shards.len(), 12);
    }

    #[test]
    fn a_quota_counts_like_missing_cores() {
        let eight = |milli| Machine {
            quota_millicpus: Some(milli),
            ..machine("core:8 pu:1")
        };
        check(&eight(1500), &auto(), "-! | - | - | 0 1 2 3 4 5 6 7");
        check(&eight(2000), &auto(), "7 | 6 | 6 | 0 1 2 3 4 5");
        check(&eight(4900), &auto(), "7 6 | 5 | 5 | 0 1 2 3 4");
    }

    #[test]
    fn the_operator_decides() {
        let four = machine("core:4 pu:1");
        let cores = |list: &[u32]| Choice::Fixed(list.to_vec());
        check(
            &machine("core:2 pu:1"),
            &shards(4),
            "-! -! -! -! | - | - | 0 1",
        );
        check(
            &four,
            &Config {
                shard_cores: cores(&[0, 2]),
                ..auto()
            },
            "0 2 | 3 | 3 | 1",
        );
        check(
            &four,
            &Config {
                shard_cores: cores(&[1]),
                ..shards(2)
            },
            "1! 1! | 3 | 3 | 0 2",
        );
        check(
            &four,
            &Config {
                prefetch_core: Choice::Fixed(3),
                ..auto()
            },
            "2 1 | 3 | 3 | 0",
        );
        check(
            &four,
            &Config {
                prefetch_core: Choice::Fixed(2),
                ..shards(4)
            },
            "-! -! -! -! | 2 | 2 | 0 1 2 3",
        );
        let all = Config {
            shard_cores: cores(&[0, 1, 2, 3]),
            ..auto()
        };
        check(&four, &all, "0! 1! 2! 3! | - | - | 0 1 2 3");
        let same = Config {
            shard_cores: cores(&[1]),
            prefetch_core: Choice::Fixed(1),
            ..auto()
        };
        check(&four, &same, "1! | 1 | 1 | 0 2 3");
        let one = Config {
            shard_cores: cores(&[0]),
            ..auto()
        };
        check(&machine("core:1 pu:1"), &one, "0! | - | - | 0");
        // The prefetcher's sibling is the last place for a shard.
        let smt = machine("core:2 pu:2");
        check(
            &smt,
            &Config {
                prefetch_core: Choice::Fixed(2),
                ..auto()
            },
            "1 | 2 | 2 | 2 3",
        );
    }

    #[test]
    fn a_core_that_is_not_there_is_refused_by_key() {
        let four = machine("core:4 pu:1");
        for (text, key) in [
            ("shard_cores = [0, 4]", "shard_cores"),
            ("prefetch_core = 4", "prefetch_core"),
        ] {
            let config = Config::parse(text, "helios.toml").unwrap();
            let error = Placement::choose(&four, &config).expect_err(text);
            assert_eq!(error.key, key);
            assert_eq!(
                error.to_string(),
                format!(
                    "helios.toml:1: {text}: core 4 is not among those this process may run on: 0-3"
                )
            );
        }
    }

    proptest! {
        #[test]
        fn any_machine_has_a_place_for_everything(
            packages in 1..3u32, domains in 1..4u32, cores in 1..6u32, pus in 1..3u32,
            mask in any::<u64>(), quota in proptest::option::of(10..20_000u32),
            shards in proptest::option::of(1..40u16), prefetch in proptest::option::of(0..80u32),
        ) {
            let text = format!("package:{packages} numa:1 l3:{domains} core:{cores} pu:{pus}");
            let mut machine = machine(&text);
            let whole = machine.cpus.clone();
            machine.cpus.retain(|cpu| mask >> cpu.id.0 & 1 == 1);
            if machine.cpus.is_empty() {
                machine.cpus = whole;
            }
            machine.quota_millicpus = quota;
            let config = Config {
                shards: shards.map_or(Choice::Auto, Choice::Fixed),
                prefetch_core: prefetch.map_or(Choice::Auto, Choice::Fixed),
                ..Config::default()
            };
            let there = |id: &CoreId| machine.cpu(*id).is_some();
            match Placement::choose(&machine, &config) {
                Err(_) => prop_assert!(prefetch.is_some_and(|core| !there(&CoreId(core)))),
                Ok(placement) => {
                    let seats: Vec<CoreId> =
                        placement.shards.iter().filter_map(|seat| seat.core).collect();
                    let io = [placement.prefetch, placement.io];
                    prop_assert!(seats.iter().chain(io.iter().flatten()).all(there));
                    prop_assert!(placement.agents.iter().all(there));
                    prop_assert!(!placement.agents.is_empty() && !placement.shards.is_empty());
                    prop_assert!(shards.is_none_or(|n| placement.shards.len() == n as usize));
                    prop_assert!(seats.is_empty() || seats.len() == placement.shards.len());
                    prop_assert!(placement.shards.iter().all(|seat| seat.alone == seat.core.is_some()));
                    let mut distinct = seats.clone();
                    distinct.sort_unstable();
                    distinct.dedup();
                    prop_assert_eq!(distinct.len(), seats.len());
                    let needed = placement.shards.len() + 1;
                    prop_assert_eq!(!seats.is_empty(), needed <= machine.cpus_usable());
                }
            }
        }
    }
}
