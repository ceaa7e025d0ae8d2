//! Questions about agents: whose shard is asked, and how its answer gets back.
//!
//! Floor 4. Nothing here waits: a question becomes a command to one shard, or, for a list, one to each;
//! the answer of the last one is the answer.
//!
//! Invariants
//! - a question that was taken is answered once, also where its shard ends first.
//! - a session hears of no agent that it may not attach to.

use std::sync::{Arc, Mutex, PoisonError};

use crate::agent::call;
use crate::agent::frame::RefusalCode;
use crate::agent::lifecycle::{
    AGENTS_PER_PAGE_MAX, AgentItem, AgentPage, Ask, encode_info, encode_page,
};
use crate::id::ShardNo;
use crate::runtime::control::{ControlPlane, Refusal};
use crate::shard::{AgentAnswer, AgentCommand, AgentError, AgentVerb, Answer, Command};

/// The answer as bytes, or why there is none.
type Outcome = Result<Vec<u8>, Refusal>;

/// An answer that is given in any case.
struct Promise(Option<Answer<Outcome>>);

impl Promise {
    fn keep(mut self, outcome: Outcome) {
        if let Some(answer) = self.0.take() {
            answer.give(outcome);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            let text = "a shard ended before it answered; see the runtime's log";
            answer.give(Err(Refusal::new(RefusalCode::ShardFailed, text)));
        }
    }
}

/// A list that shards bring their parts to.
struct Gather {
    parts: Mutex<Parts>,
    limit: usize,
}

struct Parts {
    promise: Option<Promise>,
    /// Shards that have not answered.
    left: usize,
    /// One ended without an answer.
    failed: bool,
    items: Vec<AgentItem>,
    /// Up to where every shard has told all.
    bound: Option<String>,
}

/// What one shard brings, or doesn't.
struct Part(Option<Arc<Gather>>);

impl Part {
    fn bring(mut self, page: AgentPage) {
        if let Some(gather) = self.0.take() {
            gather.add(Some(page));
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(gather) = self.0.take() {
            gather.add(None);
        }
    }
}

impl Gather {
    fn add(&self, page: Option<AgentPage>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match page {
            Some(page) => {
                parts.items.extend(page.items);
                let bounds = [parts.bound.take(), page.next];
                parts.bound = bounds.into_iter().flatten().min();
            }
            None => parts.failed = true,
        }
        parts.left -= 1;
        // A list without the agents of a shard would be a wrong one: the promise is dropped then.
        if parts.left == 0
            && let Some(promise) = parts.promise.take()
            && !parts.failed
        {
            let items = std::mem::take(&mut parts.items);
            let page = merge(items, parts.bound.take(), self.limit);
            drop(parts);
            promise.keep(Ok(encode_page(page)));
        }
    }
}

/// One page of what all shards told: none behind the bound, as a shard may have more before it.
fn merge(mut items: Vec<AgentItem>, bound: Option<String>, limit: usize) -> AgentPage {
    items.sort_by(|a, b| a.name.cmp(&b.name));
    if let Some(bound) = &bound {
        items.retain(|item| item.name <= *bound);
    }
    let mut next = bound;
    if items.len() > limit {
        items.truncate(limit);
        next = items.last().map(|last| last.name.clone());
    }
    AgentPage { items, next }
}

impl From<AgentError> for Refusal {
    fn from(error: AgentError) -> Self {
        let code = match error {
            AgentError::NoSuchAgent => RefusalCode::NoSuchAgent,
            AgentError::InUse { .. } | AgentError::Moving => RefusalCode::InUse,
            AgentError::NoSpace | AgentError::ReadOnly => RefusalCode::Disk,
            AgentError::ShuttingDown => RefusalCode::ShuttingDown,
            AgentError::Busy | AgentError::Corrupt => RefusalCode::NoMemory,
            AgentError::NoSuchShard => RefusalCode::Protocol,
        };
        Self::new(code, error.to_string())
    }
}

impl ControlPlane {
    /// Asks shards something about agents, for a user and group, or for the host itself. `answer` is given
    /// once, unless this is refused.
    pub(super) fn ask(
        &self,
        question: &[u8],
        who: Option<(u32, u32)>,
        answer: Answer<Outcome>,
    ) -> Result<(), Refusal> {
        let ask = Ask::decode(question)
            .map_err(|bad| Refusal::new(RefusalCode::Protocol, bad.to_string()))?;
        let (agent, what) = match ask {
            Ask::List { after, limit } => return self.list(after, limit, who, answer),
            Ask::Collect => return self.begin_collection(who, answer),
            Ask::Collected { no } => {
                let mut bytes = Vec::new();
                call::push(&self.collected(no), &mut bytes);
                answer.give(Ok(bytes));
                return Ok(());
            }
            Ask::Create { agent, public } => (agent, AgentVerb::Create { public }),
            Ask::Describe { agent } => (agent, AgentVerb::Describe),
            Ask::Suspend { agent } => (agent, AgentVerb::Suspend),
            Ask::Resume { agent } => (agent, AgentVerb::Resume),
            Ask::Terminate { agent, force } => (agent, AgentVerb::Terminate { force }),
            Ask::Migrate { agent, to } => (agent, AgentVerb::Migrate { to: ShardNo(to) }),
        };
        if let Some((uid, gid)) = who
            && !self.allows(uid, gid, agent)
        {
            let text = format!(
                "user {uid} may not attach to agent {agent:?}; the runtime's [[access]] rules decide"
            );
            return Err(Refusal::new(RefusalCode::NotAllowed, text));
        }
        let shard = self.home(agent.as_bytes());
        let promise = Promise(Some(answer));
        let reply = Answer::new(move |outcome: Result<AgentAnswer, AgentError>| {
            promise.keep(outcome.map(encode).map_err(Refusal::from));
        });
        let command = AgentCommand {
            agent: agent.as_bytes().into(),
            what,
            reply,
        };
        self.ask_shard(shard, Command::Agent(Box::new(command)))
    }

    fn list(
        &self,
        after: &str,
        limit: u32,
        who: Option<(u32, u32)>,
        answer: Answer<Outcome>,
    ) -> Result<(), Refusal> {
        let limit = match limit {
            0 => AGENTS_PER_PAGE_MAX,
            limit => limit.min(AGENTS_PER_PAGE_MAX),
        };
        let gather = Arc::new(Gather {
            parts: Mutex::new(Parts {
                promise: Some(Promise(Some(answer))),
                left: self.shards(),
                failed: false,
                items: Vec::new(),
                bound: None,
            }),
            limit: limit as usize,
        });
        for shard in (0..self.shards() as u16).map(ShardNo) {
            let part = Part(Some(Arc::clone(&gather)));
            let rules = who.map(|who| (who, self.access().clone()));
            let reply = Answer::new(move |mut page: AgentPage| {
                if let Some(((uid, gid), access)) = &rules {
                    let allowed = |item: &AgentItem| access.allows(*uid, *gid, &item.name);
                    page.items.retain(allowed);
                }
                part.bring(page);
            });
            let list = Command::ListAgents {
                after: after.as_bytes().into(),
                limit,
                reply,
            };
            // A part that is dropped says so itself; the first refusal is the better answer.
            self.ask_shard(shard, list)?;
        }
        Ok(())
    }

    fn ask_shard(&self, shard: ShardNo, command: Command) -> Result<(), Refusal> {
        if self.inboxes[usize::from(shard.0)].is_behind() {
            return Err(Refusal::no_answer(shard));
        }
        self.command(shard, command)
            .map_err(|reason| Refusal::gone(shard, reason))
    }
}

fn encode(answer: AgentAnswer) -> Vec<u8> {
    let mut bytes = Vec::new();
    match answer {
        AgentAnswer::Done => {}
        AgentAnswer::Created(new) => call::push(&new, &mut bytes),
        AgentAnswer::Described(info) => return encode_info(*info),
        AgentAnswer::Suspended(suspended) => call::push(&suspended, &mut bytes),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> AgentItem {
        AgentItem {
            name: name.into(),
            shard: 0,
            suspended: false,
            lanes: 0,
        }
    }

    fn names(page: &AgentPage) -> Vec<&str> {
        page.items.iter().map(|item| &*item.name).collect()
    }

    #[test]
    fn a_page_ends_where_a_shard_may_have_more() {
        let items = ["d", "a", "c", "b"].map(item).to_vec();
        let page = merge(items.clone(), Some("c".into()), 10);
        assert_eq!(names(&page), ["a", "b", "c"]);
        assert_eq!(page.next.as_deref(), Some("c"));
        let page = merge(items.clone(), Some("c".into()), 2);
        assert_eq!(
            (names(&page), page.next.as_deref()),
            (vec!["a", "b"], Some("b"))
        );
        let page = merge(items, None, 4);
        assert_eq!((page.items.len(), page.next), (4, None));
        let page = merge(Vec::new(), Some("q".into()), 4);
        assert_eq!(
            page.next.as_deref(),
            Some("q"),
            "what is not allowed is passed over"
        );
    }

    #[test]
    fn a_shard_that_ends_without_an_answer_makes_a_refusal_of_the_list() {
        let (send, answer) = std::sync::mpsc::channel();
        let promise = Promise(Some(Answer::new(move |outcome: Outcome| {
            send.send(outcome.is_ok()).unwrap();
        })));
        let gather = Arc::new(Gather {
            parts: Mutex::new(Parts {
                promise: Some(promise),
                left: 2,
                failed: false,
                items: Vec::new(),
                bound: None,
            }),
            limit: 10,
        });
        drop(Part(Some(Arc::clone(&gather))));
        Part(Some(gather)).bring(AgentPage::default());
        assert_eq!(answer.recv(), Ok(false));
    }
}
