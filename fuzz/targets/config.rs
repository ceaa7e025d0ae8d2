//! The configuration file: any text is a configuration that can be resolved, or an error that says where.
#![no_main]

use helios::config::{Access, Config};
use helios::topology::{CacheDomain, CoreId, Cpu, Machine, NumaNode, Placement};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/:\nbroken\n:x:5:5::/:\n";
const GROUP: &str = "users:x:100:\ncrew:x:200:ann,nobody,12\nempty:x::\n";
const SHARDS_MAX: usize = 64;

fn machine(cpus: u32) -> Machine {
    let cpu = |id| Cpu {
        id: CoreId(id),
        core: id / 2,
        domain: id / 4,
        node: id / 4,
        package: 0,
    };
    let domain = |_| CacheDomain { level: 3, bytes: 0 };
    let node = |id| NumaNode { id, bytes: 1 << 30 };
    Machine {
        cpus: (0..cpus).map(cpu).collect(),
        domains: (0..cpus.div_ceil(4)).map(domain).collect(),
        nodes: (0..cpus.div_ceil(4)).map(node).collect(),
        known: true,
        ..Machine::default()
    }
}

fn check(text: &str) {
    let config = match Config::parse(text, "helios.toml") {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("helios.toml"), "{said}");
            return;
        }
    };
    assert!(config.validate().is_ok(), "what was parsed is valid");
    for cpus in [1, 2, 7] {
        match Placement::choose(&machine(cpus), &config) {
            Ok(placement) => assert!((1..=SHARDS_MAX).contains(&placement.shards.len())),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    match Access::resolve_in(&config, 42, PASSWD, GROUP) {
        Ok(access) => {
            assert!(access.allows(42, 1, "any"));
            // Nobody comes in whom no rule names.
            let has_rules = !config.access.is_empty();
            assert!(has_rules || !access.admits(0, 0));
            for agent in ["", "a", "planner-7", text] {
                assert!(!access.allows(1000, 100, agent) || access.admits(1000, 100));
            }
        }
        Err(error) => assert!(error.to_string().contains("access["), "{error}"),
    }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for shipped in [
        include_str!("../../runtime-config/helios.toml"),
        include_str!("../../runtime-config/replay-850.toml"),
    ] {
        seeds.push(shipped.to_owned());
        // What it shows as comments, said.
        let said = shipped
            .lines()
            .map(|line| line.strip_prefix("# ").unwrap_or(line));
        let said = said.filter(|line| line.contains(" = ") || line.starts_with('['));
        seeds.push(said.collect::<Vec<_>>().join("\n"));
    }
    seeds.extend(
        [
            "[[access]]\nuser = \"ann\"\nagents = \"ann-*\"\n[[access]]\ngroup = 200\nagents = \"*\"",
            "shards = 2\nshard_cores = [0, 1]\nprefetch_core = 2\nio = \"threads\"",
            "memory_max = \"1GiB\"\nsegment_bytes = 1048576\nl1_window_bytes = \"64KiB\"",
            "durability = \"power\"\ngroup_commit_interval = \"1.5ms\"",
            "data_dir = '/x'\nsocket = \"\"\"\n/y\"\"\"",
            "shards = 0x7f\nunknown = 1",
        ]
        .map(str::to_owned),
    );
    let named = seeds.into_iter().enumerate();
    named
        .map(|(index, text)| (format!("config-{index}"), text.into_bytes()))
        .collect()
}

libfuzzer_sys::fuzz_target!(
    init: helios::fuzzing::write_if_asked("config", &seeds()),
    |bytes: &[u8]| if let Ok(text) = std::str::from_utf8(bytes) { check(text) }
);
