//! Agents, as a session sees them from outside: made, listed, described, suspended, moved, terminated.
//!
//! Floor 2. Every method is one question and its answer, over the socket or, for threads of the host,
//! inside the process; no lane is needed. What each does is said at [`Ask`].

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::agent::call;
use crate::agent::frame::RefusalCode;
use crate::agent::lifecycle::{AgentInfo, AgentPage, Ask, Collected, Suspended};
use crate::client::{ClientError, Session};
use crate::id::ShardNo;

/// How long a move may take before [`Session::migrate_agent`] gives up waiting; the move goes on.
const MOVE_WAIT: Duration = Duration::from_secs(60);
/// How often a collection is looked at.
const COLLECT_LOOK: Duration = Duration::from_millis(5);
/// How often it looks.
const MOVE_LOOK: Duration = Duration::from_millis(2);

impl Session {
    /// Makes an agent without attaching to it; `false`: it was there. With `public` every other agent may
    /// read its values.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: not allowed, no disk or memory.
    ///
    /// # Example
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let runtime = helios::Runtime::start(helios::config::Config::at(dir.path()))?;
    /// let session = runtime.session();
    /// assert!(session.create_agent("planner", false)?);
    /// assert_eq!(session.agents("", 10)?.items[0].name, "planner");
    /// assert_eq!(session.describe_agent("planner")?.lanes, 0);
    /// session.terminate_agent("planner", false)?;
    /// # runtime.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_agent(&self, agent: &str, public: bool) -> Result<bool, ClientError> {
        self.ask(&Ask::Create { agent, public })
    }

    /// Lists agents of all shards whose names come after `after`, of those that this process may attach
    /// to; at most `limit`, 0: as many as one answer holds. The list goes on after
    /// [`AgentPage::next`].
    ///
    /// # Errors
    /// [`ClientError::Refused`]: a shard failed or is busy.
    pub fn agents(&self, after: &str, limit: u32) -> Result<AgentPage, ClientError> {
        self.ask(&Ask::List { after, limit })
    }

    /// Describes an agent.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: no such agent, or not allowed.
    pub fn describe_agent(&self, agent: &str) -> Result<AgentInfo, ClientError> {
        self.ask(&Ask::Describe { agent })
    }

    /// Gives the memory of an agent back to which no lane is attached: its values in L2 and what was read
    /// of its trees. What its hottest keys are is kept; they come back first when it is resumed, by
    /// this or by attaching to it.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: lanes are attached, no such agent, not allowed.
    pub fn suspend_agent(&self, agent: &str) -> Result<Suspended, ClientError> {
        self.ask(&Ask::Suspend { agent })
    }

    /// Begins to load a suspended agent's hot values; one that runs already is left as it is.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: no such agent, not allowed.
    pub fn resume_agent(&self, agent: &str) -> Result<(), ClientError> {
        self.ask(&Ask::Resume { agent })
    }

    /// Deletes an agent with all its branches, tags and history; with `force` even if lanes are attached,
    /// which are closed. Its name can be used again, for an agent that has nothing.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: lanes are attached, no such agent, not allowed.
    pub fn terminate_agent(&self, agent: &str, force: bool) -> Result<(), ClientError> {
        self.ask(&Ask::Terminate { agent, force })
    }

    /// Moves an agent to another shard and waits until it is there. Lanes stay attached and go on; no
    /// operation is lost or done twice.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: no such agent or shard, it is being moved already, or the move came to
    /// nothing (the agent is where it was); [`ClientError::NoAnswer`] after a minute, while the move
    /// goes on.
    pub fn migrate_agent(&self, agent: &str, to: ShardNo) -> Result<(), ClientError> {
        self.ask::<()>(&Ask::Migrate { agent, to: to.0 })?;
        let deadline = Instant::now() + MOVE_WAIT;
        loop {
            let info = self.describe_agent(agent)?;
            if info.shard == to.0 && info.moving_to.is_none() {
                return Ok(());
            }
            if info.moving_to.is_none() {
                return Err(ClientError::Refused {
                    code: RefusalCode::NoMemory,
                    text: format!("agent {agent:?} stays on shard {}; retry", info.shard),
                });
            }
            if Instant::now() >= deadline {
                let seconds = MOVE_WAIT.as_secs();
                return Err(ClientError::NoAnswer { seconds });
            }
            std::thread::sleep(MOVE_LOOK);
        }
    }

    /// Has every shard give up what no branch, tag, fork or superposition needs, and remove the files that
    /// held little else; returns when all have. Agents are served meanwhile.
    ///
    /// # Errors
    /// [`ClientError::Refused`]: only the runtime's own user may ask.
    pub fn collect(&self) -> Result<Collected, ClientError> {
        let no = self.ask(&Ask::Collect)?;
        loop {
            if let Some(collected) = self.ask(&Ask::Collected { no })? {
                return Ok(collected);
            }
            std::thread::sleep(COLLECT_LOOK);
        }
    }

    fn ask<T: DeserializeOwned>(&self, ask: &Ask<'_>) -> Result<T, ClientError> {
        let mut question = Vec::new();
        call::push(ask, &mut question);
        // What the other side would end the session for is not sent.
        Ask::decode(&question).map_err(|bad| ClientError::Refused {
            code: RefusalCode::Protocol,
            text: bad.to_string(),
        })?;
        let answer = self.connection().ask(&question)?;
        call::one(&answer).map_err(|_| ClientError::BadReply)
    }
}
