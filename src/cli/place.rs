//! Where a command finds its agents: a running server, or a data directory that is only read.
//!
//! Floor 5. Both give the same lanes, so that commands don't know which it is; those that change
//! something ask for a server.

use std::path::PathBuf;

use anyhow::Context;
use helios::Runtime;
use helios::agent::frame::RefusalCode;
use helios::client::{Attach, ClientError, Lane, Session};
use helios::config::Config;
use helios::runtime::{DataDirError, RuntimeError};

/// Where to look, and how to print.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct PlaceArgs {
    /// Talk to the server that listens on this socket
    #[arg(long, value_name = "SOCKET", conflicts_with_all = ["data", "config"])]
    socket: Option<PathBuf>,
    /// Look into this data directory: through its server where one runs, else read-only
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data: Option<PathBuf>,
    /// Take the socket and the data directory from this configuration; without it, the defaults hold
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON for programs: of a list, one object on each line
    #[arg(long)]
    pub(super) json: bool,
}

/// A session with whatever holds the agents.
pub(super) struct Place {
    session: Session,
    /// One of our own, that only reads.
    _reader: Option<Runtime>,
}

/// Nobody listens where a server has to.
#[derive(Debug, thiserror::Error)]
#[error("no server answers on {}: start `helios serve`, or name its socket with --socket", socket.display())]
struct NoServer {
    socket: PathBuf,
    #[source]
    source: ClientError,
}

/// There is no agent of that name.
#[derive(Debug, thiserror::Error)]
#[error("there is no agent \"{name}\"; `helios agents` lists those that there are")]
struct NoSuchAgent {
    name: String,
}

impl PlaceArgs {
    /// The configuration that the arguments mean.
    pub(super) fn resolve(&self) -> anyhow::Result<Config> {
        match &self.data {
            Some(data) => Ok(Config::at(data)),
            None => super::load(self.config.as_deref()),
        }
    }

    /// Finds the agents, to be read: through the server if there is one.
    pub(super) fn open(&self) -> anyhow::Result<Place> {
        if self.socket.is_some() {
            return self.open_server();
        }
        let config = self.resolve()?;
        match Session::connect(&config.socket) {
            Ok(session) => Ok(Place::served(session)),
            Err(ClientError::Refused { code, text }) => {
                Err(ClientError::Refused { code, text }.into())
            }
            Err(_) => Place::read_only(config),
        }
    }

    /// Finds the agents, to be changed: a server has to run.
    pub(super) fn open_server(&self) -> anyhow::Result<Place> {
        let socket = match &self.socket {
            Some(socket) => socket.clone(),
            None => self.resolve()?.socket,
        };
        let session = Session::connect(&socket).map_err(|source| NoServer { socket, source })?;
        Ok(Place::served(session))
    }
}

impl Place {
    fn served(session: Session) -> Self {
        Self {
            session,
            _reader: None,
        }
    }

    fn read_only(config: Config) -> anyhow::Result<Self> {
        let path = config.data_dir.clone();
        let reader = Runtime::open_read_only(config).map_err(|error| match error {
            // It says itself which directory, and what to do.
            RuntimeError::DataDir(error @ DataDirError::Served { .. }) => anyhow::Error::new(error),
            error => anyhow::Error::new(error)
                .context(format!("can't read data directory {}", path.display())),
        })?;
        Ok(Self {
            session: reader.session().clone(),
            _reader: Some(reader),
        })
    }

    /// The session itself, for questions that are about no agent in particular.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// A lane to an agent that is there.
    pub(super) fn agent(&self, name: &str) -> anyhow::Result<Lane> {
        let how = Attach {
            create: false,
            public: false,
        };
        self.attach(name, how)
    }

    /// A lane to an agent.
    pub(super) fn attach(&self, name: &str, how: Attach) -> anyhow::Result<Lane> {
        match self.session.attach(name, how) {
            Err(ClientError::Refused {
                code: RefusalCode::NoSuchAgent,
                ..
            }) => {
                let name = name.to_owned();
                Err(NoSuchAgent { name }.into())
            }
            attached => attached.with_context(|| format!("can't attach to agent \"{name}\"")),
        }
    }
}
