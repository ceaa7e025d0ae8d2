//! Publishing, as an agent's process asks for it: checkpoints that every agent may read by a name.
//!
//! Floor 2. Each method is one call; what it does is said at [`Call`]. What another agent has published is
//! named by [`Revision::Published`], wherever a revision is taken.

use crate::agent::call::{self, Call, Id, Revision, TagInfo};
use crate::client::versions::all;
use crate::client::{ClientError, Lane, Listed};
use crate::id::ObjectId;

impl Lane {
    /// Names a checkpoint and lets every agent read it by that name, also after this one has moved on;
    /// with `force` even if the name names another one. [`Lane::untag`] takes the name back, a
    /// [`Lane::tag`] of the same name makes it private: who has used it keeps what it named.
    ///
    /// # Errors
    /// As [`Lane::tag`].
    ///
    /// # Example
    /// ```
    /// use helios::client::{NewCheckpoint, Revision};
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let runtime = helios::Runtime::start(helios::config::Config::at(dir.path()))?;
    /// let mut teacher = runtime.agent("teacher")?;
    /// teacher.put(b"skill", b"chess")?;
    /// teacher.checkpoint(&NewCheckpoint::default())?;
    /// teacher.publish("v1", Revision::Head, false)?;
    /// let mut pupil = runtime.agent("pupil")?;
    /// let from = Revision::Published { agent: "teacher", name: "v1" };
    /// pupil.branch("taught", from)?;
    /// pupil.switch("taught")?;
    /// let mut value = Vec::new();
    /// assert!(pupil.get(b"skill", &mut value)?.is_some());
    /// assert_eq!(value, b"chess");
    /// # drop((teacher, pupil));
    /// # runtime.shutdown()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn publish(
        &mut self,
        name: &str,
        target: Revision<'_>,
        force: bool,
    ) -> Result<(), ClientError> {
        call::check_name(name)?;
        self.ask_nothing(&Call::Publish {
            name,
            target,
            force,
        })
    }

    /// Lists what this agent has published under names that come after `after`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn published(&mut self, after: &str) -> Result<Listed<(String, ObjectId)>, ClientError> {
        self.ask_list(&Call::Published { after }, |answer| {
            all(answer, |tag: TagInfo<'_>| {
                Ok((tag.name.to_owned(), ObjectId::from_bytes(tag.target)))
            })
        })
    }

    /// Gives a checkpoint up that this agent did not make and has used as a published one: it is kept
    /// for this agent no longer.
    ///
    /// # Errors
    /// [`ClientError::InUse`] while a branch or a tag names it; [`ClientError::NoSuchRevision`].
    pub fn forget(&mut self, checkpoint: ObjectId) -> Result<(), ClientError> {
        let target: Id = *checkpoint.as_bytes();
        self.ask_nothing(&Call::Forget { target })
    }
}
