//! `helios doctor`: what the machine is, where the threads would go, what is missing and its cure.
//!
//! Floor 5. Only shows what `topology` found; nothing is started, pinned or written.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;

use helios::config::{Config, ranges_text};
use helios::topology::{self, CoreId, Cpu, Facts, Finding, Machine, Placement, State};

/// Prints the report for this configuration, as a tree or as one JSON object. Degraded
/// capabilities are no failure: the runtime works with them.
///
/// # Errors
/// A configuration that can't be resolved here (a `ConfigError`), a machine that can't be asked, an
/// output that can't be written.
pub(crate) fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let machine = Machine::probe()?;
    let placement = topology::resolve(config.clone(), &machine)?.placement;
    let findings = topology::findings(&machine, &placement, &Facts::probe());
    let text = if json {
        let object = serde_json::json!({
            "machine": machine,
            "placement": placement,
            "findings": findings,
            "degraded": degraded_count(&findings),
        });
        format!("{object:#}\n")
    } else {
        report(&machine, &placement, &findings)
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn report(machine: &Machine, placement: &Placement, findings: &[Finding]) -> String {
    let mut text = String::new();
    machine_tree(machine, placement).render(&mut text);
    placement_tree(placement).render(&mut text);
    findings_tree(findings).render(&mut text);
    text
}

/// A line, and the lines below it.
struct Tree {
    label: String,
    below: Vec<Tree>,
}

impl Tree {
    fn leaf(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            below: Vec::new(),
        }
    }

    fn render(&self, text: &mut String) {
        text.push_str(&self.label);
        text.push('\n');
        self.render_below("", text);
    }

    fn render_below(&self, indent: &str, text: &mut String) {
        for (index, tree) in self.below.iter().enumerate() {
            let last = index + 1 == self.below.len();
            let (branch, space) = if last {
                ("└─ ", "   ")
            } else {
                ("├─ ", "│  ")
            };
            let _ = writeln!(text, "{indent}{branch}{}", tree.label);
            tree.render_below(&format!("{indent}{space}"), text);
        }
    }
}

fn machine_tree(machine: &Machine, placement: &Placement) -> Tree {
    let mut label = format!(
        "machine: {}, {}, {}, {}",
        count(machine.package_count(), "package"),
        count(machine.nodes.len(), "NUMA node"),
        count(machine.core_count(), "core"),
        count(machine.cpus.len(), "CPU"),
    );
    if machine.cpus_forbidden > 0 {
        let _ = write!(
            label,
            " ({} more are not for this process)",
            machine.cpus_forbidden
        );
    }
    let all: Vec<&Cpu> = machine.cpus.iter().collect();
    let below = group(
        &all,
        |cpu| cpu.package,
        |package, cpus| Tree {
            label: format!("package {package}"),
            below: group(
                cpus,
                |cpu| cpu.node,
                |node, cpus| node_tree(machine, placement, node, cpus),
            ),
        },
    );
    Tree { label, below }
}

fn node_tree(machine: &Machine, placement: &Placement, node: u32, cpus: &[&Cpu]) -> Tree {
    let bytes = machine
        .nodes
        .iter()
        .find(|found| found.id == node)
        .map_or(0, |node| node.bytes);
    Tree {
        label: format!("NUMA node {node}{}", about(bytes)),
        below: group(
            cpus,
            |cpu| cpu.domain,
            |domain, cpus| {
                let label = match machine.domains.get(domain as usize) {
                    Some(cache) if cache.level > 0 => {
                        format!("L{} cache{}", cache.level, about(cache.bytes))
                    }
                    _ => "no shared cache known".to_owned(),
                };
                let below = group(
                    cpus,
                    |cpu| cpu.core,
                    |core, cpus| core_tree(placement, core, cpus),
                );
                Tree { label, below }
            },
        ),
    }
}

fn core_tree(placement: &Placement, core: u32, cpus: &[&Cpu]) -> Tree {
    let cpu = |cpu: &&Cpu| format!("CPU {}: {}", cpu.id.0, threads_on(placement, cpu.id));
    match cpus {
        [only] => Tree::leaf(format!("core {core}, {}", cpu(only))),
        _ => Tree {
            label: format!("core {core}"),
            below: cpus
                .iter()
                .map(|sibling| Tree::leaf(cpu(sibling)))
                .collect(),
        },
    }
}

/// Who is pinned to this CPU, or may be found there.
fn threads_on(placement: &Placement, cpu: CoreId) -> String {
    let seats = placement.shards.iter().enumerate();
    let here = seats.filter(|(_, seat)| seat.core == Some(cpu));
    let mut names: Vec<String> = here.map(|(shard, _)| format!("shard {shard}")).collect();
    for (name, core) in [("I/O", placement.io), ("prefetch", placement.prefetch)] {
        if core == Some(cpu) {
            names.push(name.to_owned());
        }
    }
    if placement.agents.contains(&cpu) {
        names.push("agents".to_owned());
    }
    match names.is_empty() {
        true => "left to the kernel".to_owned(),
        false => names.join(", "),
    }
}

fn placement_tree(placement: &Placement) -> Tree {
    let place = |core: Option<CoreId>| match core {
        Some(core) => format!("CPU {}", core.0),
        None => "unpinned".to_owned(),
    };
    let shards = placement.shards.iter().enumerate().map(|(shard, seat)| {
        let node = seat
            .node
            .map_or(String::new(), |node| format!(", memory of node {node}"));
        let shared = if seat.alone { "" } else { ", shared" };
        Tree::leaf(format!("shard {shard}: {}{node}{shared}", place(seat.core)))
    });
    let agents: Vec<u32> = placement.agents.iter().map(|cpu| cpu.0).collect();
    let others = [
        Tree::leaf(format!("prefetch: {}", place(placement.prefetch))),
        Tree::leaf(format!("I/O: {}", place(placement.io))),
        Tree::leaf(format!("agents: best on CPUs {}", ranges_text(&agents))),
    ];
    let label = format!("placement: {}", count(placement.shards.len(), "shard"));
    Tree {
        label,
        below: shards.chain(others).collect(),
    }
}

fn findings_tree(findings: &[Finding]) -> Tree {
    let below = findings.iter().map(|finding| {
        let state = match finding.state {
            State::Ok => "ok",
            State::Degraded => "degraded",
        };
        let cure = (!finding.cure.is_empty()).then(|| format!("cure: {}", finding.cure));
        Tree {
            label: format!("{state:<8} {}: {}", finding.what, finding.why),
            below: cure.into_iter().map(Tree::leaf).collect(),
        }
    });
    let label = format!("capabilities: {} degraded", degraded_count(findings));
    Tree {
        label,
        below: below.collect(),
    }
}

fn degraded_count(findings: &[Finding]) -> usize {
    findings
        .iter()
        .filter(|finding| finding.state == State::Degraded)
        .count()
}

/// A tree for each value of the key, in ascending order.
fn group(
    cpus: &[&Cpu],
    key: impl Fn(&Cpu) -> u32,
    tree: impl Fn(u32, &[&Cpu]) -> Tree,
) -> Vec<Tree> {
    let mut groups = std::collections::BTreeMap::<u32, Vec<&Cpu>>::new();
    for cpu in cpus {
        groups.entry(key(cpu)).or_default().push(cpu);
    }
    groups.iter().map(|(key, cpus)| tree(*key, cpus)).collect()
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `, 32.0 MiB`; nothing for a size that is not known.
fn about(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units.iter().find(|(_, scale)| bytes >= *scale);
    unit.map_or(String::new(), |(name, scale)| {
        format!(", {:.1} {name}", bytes as f64 / *scale as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios::topology::{CacheDomain, NumaNode};

    fn two_cores() -> Machine {
        let cpu = |id| Cpu {
            id: CoreId(id),
            core: id,
            domain: 0,
            node: 0,
            package: 0,
        };
        Machine {
            cpus: vec![cpu(0), cpu(1)],
            domains: vec![CacheDomain {
                level: 3,
                bytes: 32 << 20,
            }],
            nodes: vec![NumaNode {
                id: 0,
                bytes: 3 << 29,
            }],
            known: true,
            ..Machine::default()
        }
    }

    fn facts() -> Facts {
        Facts {
            io_uring: Err(1),
            memlock_bytes: Some(8 << 20),
            files_soft: Some(1024),
            files_hard: Some(20_000),
            memory_binding: true,
            clock_source: "tsc".to_owned(),
        }
    }

    #[test]
    fn the_report_is_a_tree_with_cures() {
        let machine = two_cores();
        let placement = Placement::choose(&machine, &Config::default()).unwrap();
        let findings = topology::findings(&machine, &placement, &facts());
        let report = report(&machine, &placement, &findings);
        let expected = "\
machine: 1 package, 1 NUMA node, 2 cores, 2 CPUs
└─ package 0
   └─ NUMA node 0, 1.5 GiB
      └─ L3 cache, 32.0 MiB
         ├─ core 0, CPU 0: I/O, prefetch, agents
         └─ core 1, CPU 1: shard 0
placement: 1 shard
├─ shard 0: CPU 1
├─ prefetch: CPU 0
├─ I/O: CPU 0
└─ agents: best on CPUs 0
capabilities: 1 degraded
├─ ok       topology: known
";
        assert!(report.starts_with(expected), "{report}");
        assert!(report.contains("\n├─ degraded io_uring: forbidden here: threads do the I/O\n"));
        assert!(
            report.contains("\n│  └─ cure: allow io_uring_setup"),
            "{report}"
        );
        assert!(
            report.contains("open files: 1024, raised at start to 20000\n"),
            "{report}"
        );
    }

    #[test]
    fn siblings_stand_below_their_core() {
        let mut machine = two_cores();
        machine.cpus.iter_mut().for_each(|cpu| cpu.core = 0);
        let placement = Placement::choose(&machine, &Config::default()).unwrap();
        let report = report(&machine, &placement, &[]);
        let expected = "\
         └─ core 0
            ├─ CPU 0: I/O, prefetch, agents
            └─ CPU 1: shard 0
";
        assert!(report.contains(expected), "{report}");
    }
}
