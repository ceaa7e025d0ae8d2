//! How people name a checkpoint on the command line.
//!
//! Floor 5. [`HELP`] is the syntax. A bare word is a branch, else a tag, else the beginning of an id; what
//! could be two things is an error that says how to write either.

use std::collections::HashSet;

use helios::client::{BranchInfo, ClientError, Lane, Listed, LogEntry, LogPage, Revision};
use helios::id::ObjectId;

/// The syntax, for `--help`.
pub(super) const HELP: &str = "\
Revisions:
  HEAD            what branch main points at
  NAME            a branch of that name; where there is none, a tag
  branch:NAME     that branch
  tag:NAME        that tag
  ID              a checkpoint: its 64 hexadecimal digits, or its first 4 or more where only one begins so
  EMPTY           the state before the first checkpoint

Exit codes: 0 good; 1 the answer is no (not found, conflicts, damage) or it failed; 2 wrong arguments or
configuration. With --json, lists are one object on each line. Keys and values of JSON objects are
{\"text\": ...} where they are UTF-8, else {\"hex\": ...}.";

/// Fewest digits of an id that is not written out.
const PREFIX_DIGITS_MIN: usize = 4;
/// Heads that one walk begins at.
const HEADS_PER_WALK: usize = 256;

/// A revision that was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    Branch(String),
    Tag(String),
    Id(ObjectId),
    Empty,
}

impl Named {
    /// As lanes take it.
    pub(super) fn revision(&self) -> Revision<'_> {
        match self {
            Self::Branch(name) => Revision::Branch(name),
            Self::Tag(name) => Revision::Tag(name),
            Self::Id(id) => Revision::Checkpoint(*id.as_bytes()),
            Self::Empty => Revision::Empty,
        }
    }
}

/// Why a text names no checkpoint.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadRevision {
    #[error(
        "\"{text}\" is no branch, no tag and no checkpoint of this agent; `helios branch list`, `helios tag list` and `helios log` show what there is"
    )]
    Unknown { text: String },
    #[error(
        "a branch and a tag are called \"{text}\", and differ: write branch:{text} or tag:{text}"
    )]
    BranchAndTag { text: String },
    #[error("{} checkpoints begin with {text}: {}; write more digits", .ids.len(), list(.ids))]
    Ids { text: String, ids: Vec<ObjectId> },
    #[error("{what} points at no checkpoint yet")]
    Nothing { what: String },
}

fn list(ids: &[ObjectId]) -> String {
    let shown: Vec<_> = ids.iter().take(4).map(ObjectId::to_string).collect();
    shown.join(", ")
}

/// Looks up what a text means to an agent.
pub(super) fn find(lane: &mut Lane, text: &str) -> anyhow::Result<Named> {
    match text.split_once(':') {
        Some(("branch", name)) => return Ok(Named::Branch(name.to_owned())),
        Some(("tag", name)) => return Ok(Named::Tag(name.to_owned())),
        _ => {}
    }
    match text {
        "HEAD" => return Ok(Named::Branch("main".to_owned())),
        "EMPTY" => return Ok(Named::Empty),
        _ => {}
    }
    if let Ok(id) = text.parse() {
        return Ok(Named::Id(id));
    }
    let branches = branches(lane)?;
    let branch = branches.iter().find(|branch| branch.name == text);
    let tags = tags(lane)?;
    let tag = tags.iter().find(|(name, _)| name == text);
    let text = text.to_owned();
    match (branch, tag) {
        (Some(branch), Some((_, target))) if branch.head != Some(*target) => {
            Err(BadRevision::BranchAndTag { text }.into())
        }
        (Some(_), _) => Ok(Named::Branch(text)),
        (None, Some(_)) => Ok(Named::Tag(text)),
        (None, None) => {
            let heads = branches.iter().filter_map(|branch| branch.head);
            let heads = heads
                .chain(tags.iter().map(|(_, target)| *target))
                .collect();
            Ok(Named::Id(by_prefix(lane, text, heads)?))
        }
    }
}

/// The checkpoint that a revision means; one that means none is an error.
pub(super) fn checkpoint(lane: &mut Lane, text: &str) -> anyhow::Result<LogEntry> {
    let named = find(lane, text)?;
    let page = lane.log(named.revision(), 1)?;
    let found = page.entries.into_iter().next();
    found.ok_or_else(|| {
        let what = text.to_owned();
        BadRevision::Nothing { what }.into()
    })
}

/// The one checkpoint of these histories whose id begins with `digits`.
fn by_prefix(lane: &mut Lane, digits: String, heads: Vec<ObjectId>) -> anyhow::Result<ObjectId> {
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut ids = Vec::new();
    if is_hex && digits.len() >= PREFIX_DIGITS_MIN {
        let wanted = digits.to_ascii_lowercase();
        each(lane, heads, |entry| {
            if entry.id.to_string().starts_with(&wanted) {
                ids.push(entry.id);
            }
            Ok(())
        })?;
    }
    match ids[..] {
        [] => Err(BadRevision::Unknown { text: digits }.into()),
        [id] => Ok(id),
        _ => Err(BadRevision::Ids { text: digits, ids }.into()),
    }
}

/// Calls `visit` with each checkpoint of the histories behind `heads`, once.
pub(super) fn each(
    lane: &mut Lane,
    mut heads: Vec<ObjectId>,
    mut visit: impl FnMut(LogEntry) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    heads.sort_unstable_by_key(|id| *id.as_bytes());
    heads.dedup();
    let mut seen = HashSet::new();
    for some in heads.chunks(HEADS_PER_WALK) {
        let mut page = LogPage {
            entries: Vec::new(),
            next: some.to_vec(),
        };
        while !page.next.is_empty() {
            page = lane.log_after(&page, 0)?;
            for entry in std::mem::take(&mut page.entries) {
                if seen.insert(entry.id) {
                    visit(entry)?;
                }
            }
        }
    }
    Ok(())
}

/// All branches of an agent, by name.
pub(super) fn branches(lane: &mut Lane) -> anyhow::Result<Vec<BranchInfo>> {
    let mut found: Vec<BranchInfo> = Vec::new();
    loop {
        let after = found.last().map_or("", |last| &last.name);
        let page = lane.branches(after)?;
        found.extend(page.items);
        if !page.more {
            return Ok(found);
        }
    }
}

/// All tags of an agent, by name.
pub(super) fn tags(lane: &mut Lane) -> anyhow::Result<Vec<(String, ObjectId)>> {
    all_names(|after| lane.tags(after))
}

/// Those of them that every agent may read.
pub(super) fn published(lane: &mut Lane) -> anyhow::Result<Vec<(String, ObjectId)>> {
    all_names(|after| lane.published(after))
}

fn all_names(
    mut page_after: impl FnMut(&str) -> Result<Listed<(String, ObjectId)>, ClientError>,
) -> anyhow::Result<Vec<(String, ObjectId)>> {
    let mut found: Vec<(String, ObjectId)> = Vec::new();
    loop {
        let after = found.last().map_or("", |last| &last.0);
        let page = page_after(after)?;
        found.extend(page.items);
        if !page.more {
            return Ok(found);
        }
    }
}
