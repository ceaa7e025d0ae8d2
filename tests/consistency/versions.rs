//! What a lane asks about versions: checkpoints, branches, merges, and transactions in forks.

use helios::client::{
    BranchInfo, Checkpointed, ClientError, Lane, Merged, NewCheckpoint, Revision,
};
use helios::id::{BranchNo, ObjectId};

use super::{Gone, Made, Worker, contents, is_death};
use crate::history::{
    Branch, Came, Checkpoint, Contents, KEYS, Key, Name, Policy, Source, What, now, short,
};

/// Names of branches, `main` included.
const NAMES: u64 = 4;
/// Checkpoints that a lane remembers.
const KNOWN_MAX: usize = 12;

impl Worker<'_> {
    /// What the checkpoint of the next operation carries, so that it can be told from all others in a log.
    fn token(&self) -> [u8; 12] {
        let mut token = *b"from        ";
        token[4..8].copy_from_slice(&self.no.to_le_bytes());
        token[8..].copy_from_slice(&(self.record.operations.len() as u32).to_le_bytes());
        token
    }

    /// What the head must be, of some operations.
    fn expect(&mut self) -> Option<Option<ObjectId>> {
        (self.random.below(3) == 0).then_some(self.head)
    }

    fn made(&mut self, made: &Checkpointed, contents: Option<Contents>) -> Checkpoint {
        self.head = Some(made.id);
        self.remember(made.id);
        let made_now = Made {
            id: *made.id.as_bytes(),
            parents: made.parents.iter().map(short).collect(),
            contents,
        };
        self.record.made.push((self.agent, made_now));
        short(&made.id)
    }

    fn remember(&mut self, id: ObjectId) {
        if self.known.len() == KNOWN_MAX {
            self.known.remove(0);
        }
        self.known.push(id);
    }

    pub(super) fn checkpoint(&mut self, on: Branch) -> Result<(), Gone> {
        let (token, expect) = (self.token(), self.expect());
        let new = NewCheckpoint {
            opaque: &token,
            expect,
            ..NewCheckpoint::default()
        };
        let expected = expect.map(|head| head.as_ref().map_or(0, short));
        let what = |made| What::Checkpoint { expected, made };
        let (from, to, done) = self.ask(
            on,
            || Some(what(u64::from_le_bytes(*token[4..].first_chunk().unwrap()))),
            |lane| lane.checkpoint(&new),
        )?;
        match done {
            Ok(made) => {
                let made = self.made(&made, None);
                self.note(on, (from, to), what(made));
            }
            Err(ClientError::StaleHead { current }) => {
                self.stale(on, (from, to), expected, current)
            }
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    fn stale(
        &mut self,
        on: Branch,
        times: (u64, u64),
        expected: Option<Checkpoint>,
        current: Option<ObjectId>,
    ) {
        self.head = current;
        let (expected, current) = (expected.unwrap(), current.as_ref().map_or(0, short));
        self.note(on, times, What::StaleHead { expected, current });
    }

    /// A checkpoint that the lane has heard of, or a head.
    fn source(&mut self) -> (Source, Option<ObjectId>, Option<Name>) {
        let known = self.known.len() as u64;
        match self.random.below(3) {
            0 => (Source::Head, None, None),
            1 if known > 0 => {
                let id = self.known[self.random.below(known) as usize];
                (Source::Checkpoint(short(&id)), Some(id), None)
            }
            _ => {
                let name = self.random.below(NAMES) as Name;
                (Source::Branch(name), None, Some(name))
            }
        }
    }

    pub(super) fn restore(&mut self, on: Branch) -> Result<(), Gone> {
        let (to, id, asked) = self.source();
        let what = What::Restore { to };
        let (begun, ended, done) = self.ask(
            on,
            || Some(what.clone()),
            |lane| lane.restore(revision(id, &name_of(asked), asked), true),
        )?;
        match done {
            Ok(()) => self.note(on, (begun, ended), what),
            Err(error) => self.refused(on, (begun, ended), &error, asked),
        }
        Ok(())
    }

    pub(super) fn switch(&mut self) -> Result<(), Gone> {
        let name = self.random.below(NAMES) as Name;
        let on = self.on;
        let (from, to, done) = self.ask(on, || None, |lane| lane.switch(&name_of(Some(name))))?;
        match done {
            Ok(info) => {
                self.on = info.no.0;
                self.heard(&info);
                let what = What::Switch {
                    name,
                    no: info.no.0,
                    head: info.head.as_ref().map_or(0, short),
                    changes: info.changes,
                };
                self.note(on, (from, to), what);
            }
            Err(ClientError::NoSuchBranch) => self.note(on, (from, to), What::NoSuchName { name }),
            Err(error) => self.refused(on, (from, to), &error, Some(name)),
        }
        Ok(())
    }

    /// Remembers a branch and its head.
    fn heard(&mut self, info: &BranchInfo) {
        self.head = info.head;
        if let Some(head) = info.head {
            self.remember(head);
        }
        if !info.name.is_empty() && !self.branches.contains(&info.no.0) {
            self.branches.push(info.no.0);
        }
    }

    pub(super) fn create(&mut self, on: Branch) -> Result<(), Gone> {
        let name = 1 + self.random.below(NAMES - 1) as Name;
        let (from, id, asked) = self.source();
        let what = |no, head| What::Create {
            name,
            from,
            no,
            head,
        };
        let (begun, ended, done) = self.ask(
            on,
            || Some(what(Branch::MAX, 0)),
            |lane| {
                let source = name_of(asked);
                lane.branch(&name_of(Some(name)), revision(id, &source, asked))
            },
        )?;
        match done {
            Ok(info) => {
                self.heard(&info);
                let head = info.head.as_ref().map_or(0, short);
                self.note(on, (begun, ended), what(info.no.0, head));
            }
            Err(ClientError::NameTaken) => self.note(on, (begun, ended), What::NameTaken { name }),
            Err(error) => self.refused(on, (begun, ended), &error, asked),
        }
        Ok(())
    }

    pub(super) fn remove(&mut self) -> Result<(), Gone> {
        let name = self.random.below(NAMES) as Name;
        let on = self.on;
        let what = What::Remove { name };
        let (from, to, done) = self.ask(
            on,
            || Some(what.clone()),
            |lane| lane.delete_branch(&name_of(Some(name)), true),
        )?;
        match done {
            Ok(()) => self.note(on, (from, to), what),
            Err(ClientError::NoSuchBranch) => self.note(on, (from, to), What::NoSuchName { name }),
            Err(error) => self.refused(on, (from, to), &error, Some(name)),
        }
        Ok(())
    }

    pub(super) fn describe(&mut self, on: Branch) -> Result<(), Gone> {
        let (from, to, done) = self.ask(on, || None, Lane::describe)?;
        match done {
            Ok(info) => {
                self.heard(&info);
                let head = info.head.as_ref().map_or(0, short);
                let changes = info.changes;
                self.note(on, (from, to), What::Describe { head, changes });
            }
            Err(error) => self.refused(on, (from, to), &error, None),
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, on: Branch) -> Result<(), Gone> {
        // Mostly refused, if what the branch has was not saved.
        self.checkpoint(on)?;
        let source = self.source();
        let expect = self.expect();
        self.merge_of(on, source, expect)
    }

    fn merge_of(
        &mut self,
        on: Branch,
        (source, id, asked): (Source, Option<ObjectId>, Option<Name>),
        expect: Option<Option<ObjectId>>,
    ) -> Result<(), Gone> {
        let policy = [Policy::Ours, Policy::Theirs, Policy::Fail][self.random.below(3) as usize];
        let token = self.token();
        let expected = expect.map(|head| head.as_ref().map_or(0, short));
        let new = NewCheckpoint {
            opaque: &token,
            expect,
            ..NewCheckpoint::default()
        };
        let rules = [(&b""[..], asked_policy(policy))];
        let what = |came| What::Merge {
            from: source,
            policy,
            expected,
            came,
        };
        let token = u64::from_le_bytes(*token[4..].first_chunk().unwrap());
        let (begun, ended, done) = self.ask(
            on,
            || Some(what(Came::Made(token))),
            |lane| lane.merge(revision(id, &name_of(asked), asked), &rules, &new),
        )?;
        let came = match done {
            Ok(Merged::Nothing) => Came::Nothing,
            Ok(Merged::FastForward { head }) => {
                self.head = Some(head);
                Came::Ahead(short(&head))
            }
            Ok(Merged::Merged(made)) => Came::Made(self.made(&made, None)),
            Err(ClientError::Conflicts { listed, .. }) => {
                Came::Conflicts(listed.iter().map(|found| found.key[0]).collect())
            }
            Err(ClientError::Unrelated) => Came::Unrelated,
            Err(ClientError::Unsaved { changes }) => Came::Unsaved(changes),
            Err(ClientError::StaleHead { current }) => {
                self.stale(on, (begun, ended), expected, current);
                return Ok(());
            }
            Err(error) => {
                self.refused(on, (begun, ended), &error, asked);
                return Ok(());
            }
        };
        self.note(on, (begun, ended), what(came));
        Ok(())
    }

    /// Reads and writes in a fork, and merges it or keeps it or drops it.
    pub(super) fn transaction(&mut self) -> Result<(), Gone> {
        let on = self.on;
        let (source, id, asked) = self.source();
        let (begun, ended, done) = self.ask(
            on,
            || None,
            |lane| lane.fork(revision(id, &name_of(asked), asked)),
        )?;
        let info = match done {
            Ok(info) => info,
            Err(error) => {
                self.refused(on, (begun, ended), &error, asked);
                return Ok(());
            }
        };
        let (fork, head) = (info.no.0, info.head.as_ref().map_or(0, short));
        let what = What::Fork {
            from: source,
            no: fork,
            head,
        };
        self.note(on, (begun, ended), what);
        for _ in 0..2 {
            let key = self.random.below(KEYS as u64) as Key;
            self.get(fork, key)?;
            self.put(fork, key)?;
        }
        self.snapshot(fork)?;
        if self.random.below(3) == 0 && self.keep(fork)? {
            return Ok(());
        }
        let made = self.record.made.len();
        self.checkpoint(fork)?;
        if let Some((_, made)) = self.record.made.get_mut(made) {
            let id = ObjectId::from_bytes(made.id);
            let read = contents(&mut self.lane.on(info.no), false);
            // Nothing else names it, if it is not merged.
            made.contents = read.ok();
            let expect = (self.random.below(2) == 0).then_some(info.head);
            let source = (Source::Checkpoint(short(&id)), Some(id), None);
            self.merge_of(on, source, expect)?;
        }
        let (from, to, done) = self.ask(on, || None, |lane| lane.discard(info.no))?;
        match done {
            Ok(()) => self.note(fork, (from, to), What::Discard),
            Err(error) => self.refused(fork, (from, to), &error, None),
        }
        Ok(())
    }

    fn keep(&mut self, fork: Branch) -> Result<bool, Gone> {
        let name = 1 + self.random.below(NAMES - 1) as Name;
        let what = |no| What::Keep { name, no };
        let on = self.on;
        let invoked = now();
        let kept = self.lane.keep(BranchNo(fork), &name_of(Some(name)));
        let times = (invoked, now());
        match kept {
            Ok(info) => {
                self.heard(&info);
                self.note(fork, times, what(info.no.0));
                return Ok(true);
            }
            Err(error) if self.plan.dies && is_death(&error) => {
                let times = (invoked, u64::MAX);
                self.note_as(self.agent, 0, fork, times, true, what(Branch::MAX));
                return Err(Gone);
            }
            Err(error) => self.refused(on, times, &error, Some(name)),
        }
        Ok(false)
    }
}

fn name_of(name: Option<Name>) -> String {
    match name {
        None | Some(0) => "main".to_owned(),
        Some(no) => format!("b{no}"),
    }
}

fn revision(id: Option<ObjectId>, name: &str, asked: Option<Name>) -> Revision<'_> {
    match (id, asked) {
        (Some(id), _) => Revision::Checkpoint(*id.as_bytes()),
        (None, Some(_)) => Revision::Branch(name),
        (None, None) => Revision::Head,
    }
}

fn asked_policy(policy: Policy) -> helios::client::Policy {
    match policy {
        Policy::Ours => helios::client::Policy::Ours,
        Policy::Theirs => helios::client::Policy::Theirs,
        Policy::Fail => helios::client::Policy::Fail,
    }
}
