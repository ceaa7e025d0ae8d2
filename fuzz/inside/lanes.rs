//! Lane entries, indices, bells and calls: a hostile process beside an honest one.
//!
//! The script says what the hostile one writes and when the shard turns. Whatever it is: the shard goes on, the
//! honest agent's keys are what it wrote, each of its operations takes a bounded number of turns, nothing of
//! its bytes gets where the other can read, and a restart finds the same.

use std::collections::BTreeMap;

use super::rogue::Rogue;
use super::{Client, Rig};
use crate::agent::call::Call;
use crate::agent::entry::{Op, Status};
use crate::agent::packed;
use crate::fuzzing::input::Input;

/// What every value of the honest agent begins with.
const SECRET: &[u8] = b"\xa7 nobody else's: ";
const ACTIONS_MAX: usize = 600;
const RESTARTS_MAX: usize = 2;
/// Turns that an operation of the honest client takes at most, beside a process that does its worst: its
/// input is a few thousand bytes, which is what the shard may have to do first.
const HONEST_TURNS_MAX: usize = 64;

/// The shard, and who is attached.
struct World {
    rig: Rig,
    honest: Client,
    rogue: Option<Rogue>,
    model: BTreeMap<u8, Vec<u8>>,
    writes: u64,
    restarts: usize,
    /// The runtime is killed now.
    crashes: bool,
}

/// Runs one script.
pub fn run(bytes: &[u8]) {
    let mut script = Input(bytes);
    let mut world = World::over(Rig::new());
    for _ in 0..ACTIONS_MAX {
        if script.is_empty() {
            break;
        }
        world.act(&mut script);
        if std::mem::take(&mut world.crashes) && world.restarts < RESTARTS_MAX {
            world = world.restarted();
        }
    }
    world.finish();
}

impl World {
    fn over(mut rig: Rig) -> Self {
        let honest = Client::attach(&mut rig, b"honest", true).expect("an honest client");
        let rogue = Rogue::attach(&mut rig, b"rogue");
        Self {
            rig,
            honest,
            rogue,
            model: BTreeMap::new(),
            writes: 0,
            restarts: 0,
            crashes: false,
        }
    }

    fn act(&mut self, script: &mut Input<'_>) {
        match script.u8() % 16 {
            0..=8 => {
                if let Some(rogue) = &mut self.rogue {
                    rogue.act(script);
                }
            }
            9 => {
                if let Some(rogue) = &self.rogue {
                    rogue.ring(0);
                }
                self.turns(1 + usize::from(script.u8() % 4));
            }
            10 => self.turns(1 + usize::from(script.u8() % 32)),
            11 => self.honest(script),
            12 => {
                let ms = u64::from(script.u16());
                self.rig.pass(ms * ms);
                self.turns(1);
            }
            13 => self.chill(),
            14 => self.join(script),
            _ => self.crashes = true,
        }
    }

    fn turns(&mut self, count: usize) {
        self.rig.turns(count);
        let ended = self.rig.ended();
        if let Some(rogue) = &self.rogue {
            assert!(
                ended.iter().all(|session| *session == rogue.session),
                "who broke no rule"
            );
            assert_eq!(rogue.is_closed(), !ended.is_empty(), "ended, and told");
            if !ended.is_empty() {
                assert!(!rogue.has_read(SECRET));
                let session = rogue.session;
                self.rig.end(session);
                self.rogue = None;
            }
        }
    }

    /// Nothing is in memory, as far as there is a disk.
    fn chill(&mut self) {
        let segments = self.rig.disk().segments();
        let cold = segments
            .into_iter()
            .map(|segment| (crate::id::SegmentNo(segment), 0..u32::MAX));
        self.rig.disk().cold = cold.collect();
    }

    fn join(&mut self, script: &mut Input<'_>) {
        let agent: &[u8] = if script.u8() & 1 == 0 {
            b"rogue"
        } else {
            b"another"
        };
        match &mut self.rogue {
            Some(rogue) => rogue.attach_more(&mut self.rig, agent),
            None => self.rogue = Rogue::attach(&mut self.rig, agent),
        }
        // It may have been ended in the turns of the attach.
        self.turns(1);
    }

    /// The same after a crash of the runtime.
    fn restarted(self) -> Self {
        let Self {
            rig,
            model,
            writes,
            restarts,
            ..
        } = self;
        let rig = Rig::over(rig.killed()).expect("what a shard wrote starts");
        let mut world = Self {
            model,
            writes,
            restarts: restarts + 1,
            ..Self::over(rig)
        };
        world.check();
        world
    }

    fn honest(&mut self, script: &mut Input<'_>) {
        let (what, key) = (script.u8(), script.u8() % 16);
        self.honest.turns = 0;
        match what % 8 {
            0..=2 => {
                self.writes += 1;
                let mut value = SECRET.to_vec();
                value.extend(self.writes.to_le_bytes());
                if what & 0x80 != 0 {
                    value.resize(20_000, key);
                }
                let done = self.honest.put(&mut self.rig, &[key], &value);
                assert_eq!(done.expect("an open lane").0.status, Status::Ok);
                self.model.insert(key, value);
            }
            3 => {
                let done = self
                    .honest
                    .ask(&mut self.rig, Op::Delete, &[key], b"", |_| ());
                let wanted = match self.model.remove(&key) {
                    Some(_) => Status::Ok,
                    None => Status::NotFound,
                };
                assert_eq!(done.expect("an open lane").0.status, wanted);
            }
            4 => {
                let call = Call::Checkpoint {
                    opaque: SECRET,
                    pairs: b"",
                    expect: None,
                };
                let done = self.honest.call(&mut self.rig, None, &call);
                assert_eq!(done.expect("an open lane").0.status, Status::Ok);
            }
            _ => self.check_key(key),
        }
        assert!(
            self.honest.turns <= HONEST_TURNS_MAX,
            "{} turns",
            self.honest.turns
        );
        self.turns(0);
    }

    fn check_key(&mut self, key: u8) {
        let found = self
            .honest
            .get(&mut self.rig, None, &[key])
            .expect("an open lane");
        assert_eq!(found.ok().as_ref(), self.model.get(&key), "key {key}");
    }

    /// Every key of the honest agent, one by one and as a list.
    fn check(&mut self) {
        (0..16).for_each(|key| self.check_key(key));
        let done = self.honest.ask(&mut self.rig, Op::Scan, b"", b"", |_| ());
        let (completion, reply) = done.expect("an open lane");
        assert_eq!(completion.status, Status::Ok);
        let listed = packed::Scanned::parse(&reply).expect("a list");
        let listed: Vec<u8> = listed.map(|found| found.key[0]).collect();
        assert!(listed.iter().eq(self.model.keys()), "{listed:?}");
    }

    fn finish(mut self) {
        self.turns(20);
        self.check();
        if let Some(rogue) = self.rogue.take() {
            assert!(!rogue.has_read(SECRET));
            self.rig.end(rogue.session);
        }
        self.rig.turns(16);
        assert!(
            self.rig.shard.is_at_rest(),
            "what a process held is given back"
        );
        let _ = self.restarted();
    }
}

/// Scripts to begin with.
pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut all = Vec::new();
    for (name, prelude, call) in super::state::calls() {
        let mut script = Vec::new();
        for call in &prelude {
            say(&mut script, call);
        }
        say(&mut script, &call);
        script.extend([11, 0, 1, 11, 5, 1]);
        all.extend(&script);
        seeds.push((format!("call-{name}"), script));
    }
    let mut ops = Vec::new();
    for op in 1..=12_u8 {
        // A key of 3 bytes, a value of 5, a reply of 254.
        let value = if matches!(op, 1 | 4 | 5 | 9 | 10) {
            0
        } else {
            5
        };
        let key = if matches!(op, 7..=10 | 12) { 0 } else { 3 };
        let reply = if matches!(op, 2..=5 | 9) { 0 } else { 254 };
        let mut script = vec![0, 2, 0, 0, 8];
        script.extend(b"keyvalue");
        script.extend([0, 3, op, 0, 0, key, 0, value, 0, reply, 0, 0, 0, 9, 3, 0, 8]);
        ops.extend(&script);
        seeds.push((format!("op-{op}"), script));
    }
    ops.extend([12, 1, 1, 15, 14, 0, 10, 3]);
    seeds.push(("ops".into(), ops));
    all.truncate(6000);
    seeds.push(("calls".into(), all));
    let mut list = Vec::new();
    packed::push_key(&mut list, b"key").expect("a key");
    packed::push_key(&mut list, b"other").expect("a key");
    let mut pairs = Vec::new();
    packed::push_pair(&mut pairs, b"key", b"value").expect("a pair");
    packed::push_pair(&mut pairs, b"other", &[7; 300]).expect("a pair");
    for (name, how, list) in [("multi-put", 3, pairs), ("multi-get", 62, list)] {
        let mut script = vec![0, 11, how];
        script.extend((list.len() as u16).to_le_bytes());
        script.extend(list);
        script.extend([9, 3, 0, 8, 13, 11, 0, 3, 11, 7, 3]);
        seeds.push((name.into(), script));
    }
    seeds.push((
        "bells".into(),
        vec![0, 7, 0, 0, 255, 1, 2, 3, 4, 5, 6, 7, 8, 10, 31, 9, 0],
    ));
    seeds
}

fn say(script: &mut Vec<u8>, call: &Call<'_>) {
    script.push(0);
    super::rogue::say_call(script, 0, call);
    script.extend([9, 3, 0, 8]);
}
