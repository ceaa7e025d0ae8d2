//! What a session asks about agents, be it attached to them or not, and the answers.
//!
//! Floor 1, room `agent`. A question is the body of an `Ask` frame, its answer that of a `Told`; both are
//! written by `postcard`, as calls are (`PROTOCOL.md`, section 13).
//!
//! Invariants
//! - variants and fields are only ever added at the end: their order is the format.

use serde::{Deserialize, Serialize};

use crate::agent::call::Id;
use crate::agent::frame::BODY_BYTES_MAX;
use crate::id::AGENT_NAME_BYTES_MAX;

/// Most agents in one page of a list.
pub const AGENTS_PER_PAGE_MAX: u32 = 64;
/// Most branches that a description lists; the rest is for a lane to list.
pub const HEADS_MAX: usize = 8;

/// What a session asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask<'a> {
    /// Makes an agent. Answer: a bool, whether there was none.
    Create {
        /// Its name.
        agent: &'a str,
        /// Other agents may read its values.
        public: bool,
    },
    /// Lists agents whose names come after this one, of those that the session may attach to. Answer:
    /// [`AgentPage`].
    List {
        /// The last name of the page before, or nothing.
        after: &'a str,
        /// At most so many, and no more than [`AGENTS_PER_PAGE_MAX`]; 0: as many as fit.
        limit: u32,
    },
    /// Describes an agent. Answer: [`AgentInfo`].
    Describe {
        /// Its name.
        agent: &'a str,
    },
    /// Gives an agent's memory back. Answer: [`Suspended`].
    Suspend {
        /// Its name.
        agent: &'a str,
    },
    /// Has a suspended agent's hot values loaded. No answer.
    Resume {
        /// Its name.
        agent: &'a str,
    },
    /// Deletes an agent. No answer.
    Terminate {
        /// Its name.
        agent: &'a str,
        /// Even if lanes are attached to it: they are closed.
        force: bool,
    },
    /// Begins to move an agent to another shard; [`Ask::Describe`] tells how it goes. No answer.
    Migrate {
        /// Its name.
        agent: &'a str,
        /// The shard.
        to: u16,
    },
    /// Begins a collection in every shard, for the runtime's own user alone. Answer: a u64, its number.
    Collect,
    /// What a collection did. Answer: an option of [`Collected`]; none: it is under way. One that
    /// is forgotten counts as stopped.
    Collected {
        /// Its number.
        no: u64,
    },
}

impl<'a> Ask<'a> {
    /// Reads a question.
    ///
    /// # Errors
    /// Bytes that are none, or an agent's name that none can have.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BadAsk> {
        let (ask, rest): (Self, _) = postcard::take_from_bytes(bytes).map_err(|_| BadAsk)?;
        let named = ask.agent().is_none_or(|name| !name.is_empty());
        let name = match ask {
            Self::List { after, .. } => after,
            _ => ask.agent().unwrap_or_default(),
        };
        if !rest.is_empty() || !named || name.len() > AGENT_NAME_BYTES_MAX {
            return Err(BadAsk);
        }
        Ok(ask)
    }

    /// The agent that it is about, if it is about one.
    #[must_use]
    pub fn agent(&self) -> Option<&'a str> {
        match *self {
            Self::List { .. } | Self::Collect | Self::Collected { .. } => None,
            Self::Create { agent, .. }
            | Self::Describe { agent }
            | Self::Suspend { agent }
            | Self::Resume { agent }
            | Self::Terminate { agent, .. }
            | Self::Migrate { agent, .. } => Some(agent),
        }
    }
}

/// Bytes that are no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no question about agents that this version knows; names have 1 to 255 bytes")]
pub struct BadAsk;

/// How a collection ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CollectEnd {
    /// Everything was done.
    #[default]
    Done,
    /// The shard stops, or takes no more writes.
    Stopped,
    /// There was no room to write what has to be written.
    NoRoom,
    /// Something could not be read from the device.
    Unreadable,
    /// Something that is needed is damaged: nothing was given up.
    Damaged,
}

/// What a collection did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Collected {
    /// Objects that were needed no more, beside those that went when they were overwritten.
    pub objects: u64,
    /// Segment files that were removed.
    pub segments: u64,
    /// Bytes that they took.
    pub bytes: u64,
    /// Bytes that were moved out of them.
    pub moved_bytes: u64,
    /// How it ended; of several shards, the worst.
    pub end: CollectEnd,
}

impl Collected {
    /// Adds what another shard's did.
    pub fn add(&mut self, other: &Self) {
        self.objects += other.objects;
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.moved_bytes += other.moved_bytes;
        self.end = self.end.max(other.end);
    }
}

/// An agent in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentItem {
    /// Its name.
    pub name: String,
    /// Its shard.
    pub shard: u16,
    /// It is suspended.
    pub suspended: bool,
    /// Lanes attached to it.
    pub lanes: u32,
}

/// Some of the list of agents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPage {
    /// The agents, in order of their names.
    pub items: Vec<AgentItem>,
    /// Ask again after this name, which need not be that of the last item; none: that was all.
    pub next: Option<String>,
}

/// A branch in a description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadInfo {
    /// Its name.
    pub name: String,
    /// What it points at.
    pub head: Option<Id>,
    /// Keys that its working set lies on; none where telling would take the device.
    pub keys: Option<u64>,
    /// Keys that were written or deleted since.
    pub changes: u64,
}

/// An agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its name.
    pub name: String,
    /// Its shard.
    pub shard: u16,
    /// Other agents may read its values.
    pub public: bool,
    /// It is suspended.
    pub suspended: bool,
    /// Where it is being moved to.
    pub moving_to: Option<u16>,
    /// Lanes attached to it.
    pub lanes: u32,
    /// Its branches.
    pub branches: u32,
    /// Its forks.
    pub forks: u32,
    /// Its tags.
    pub tags: u32,
    /// Of them, those that others may read.
    pub published: u32,
    /// The first of its branches, by name: at most [`HEADS_MAX`], and as many as fit.
    pub heads: Vec<HeadInfo>,
    /// Bytes of memory that its window takes.
    pub window_bytes: u64,
    /// Bytes of the shard's L2 that values of its working sets take.
    pub l2_bytes: u64,
    /// Bytes of memory that its branches, tags and working sets take.
    pub index_bytes: u64,
}

/// An agent that was suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    /// Bytes of memory that it still takes: its names, and its changes that no checkpoint holds.
    pub kept_bytes: u64,
    /// Keys whose values come back first.
    pub hot_keys: u32,
}

/// A description as bytes, with as many branches as a frame takes.
#[must_use]
pub fn encode_info(mut info: AgentInfo) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        crate::agent::call::push(&info, &mut bytes);
        if bytes.len() <= BODY_BYTES_MAX || info.heads.pop().is_none() {
            return bytes;
        }
    }
}

/// A page as bytes, with as many agents as a frame takes.
#[must_use]
pub fn encode_page(mut page: AgentPage) -> Vec<u8> {
    loop {
        let mut bytes = Vec::new();
        crate::agent::call::push(&page, &mut bytes);
        if bytes.len() <= BODY_BYTES_MAX || page.items.pop().is_none() {
            return bytes;
        }
        page.next = page.items.last().map(|last| last.name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::call;

    #[test]
    fn questions_read_back_and_what_is_none_is_refused() {
        let asks = [
            Ask::Create {
                agent: "planner",
                public: true,
            },
            Ask::List {
                after: "",
                limit: 7,
            },
            Ask::Terminate {
                agent: "planner",
                force: false,
            },
            Ask::Migrate {
                agent: "planner",
                to: 3,
            },
        ];
        for ask in asks {
            let mut bytes = Vec::new();
            call::push(&ask, &mut bytes);
            assert_eq!(Ask::decode(&bytes), Ok(ask));
            bytes.push(0);
            assert_eq!(Ask::decode(&bytes), Err(BadAsk));
        }
        for agent in ["", &"n".repeat(256)] {
            let mut bytes = Vec::new();
            call::push(&Ask::Describe { agent }, &mut bytes);
            assert_eq!(Ask::decode(&bytes), Err(BadAsk), "{agent}");
        }
        assert_eq!(Ask::decode(&[77]), Err(BadAsk));
    }

    #[test]
    fn a_page_is_cut_to_what_a_frame_takes_and_says_where_it_goes_on() {
        let item = |no: u32| AgentItem {
            name: format!("{no:0>255}"),
            shard: 0,
            suspended: false,
            lanes: 0,
        };
        let page = AgentPage {
            items: (0..AGENTS_PER_PAGE_MAX).map(item).collect(),
            next: None,
        };
        let bytes = encode_page(page);
        assert!(bytes.len() <= BODY_BYTES_MAX);
        let page: AgentPage = call::items(&bytes).next().unwrap().unwrap();
        assert!(page.items.len() >= 10);
        assert_eq!(page.next, page.items.last().map(|last| last.name.clone()));
    }
}
