//! The simulator: shards, their logs, lanes, moves and recovery, on disks, a clock and a scheduler that are
//! simulated, in one thread; against an oracle.
//!
//! It is compiled into the library's unit tests, so that it sees what nobody else may. A seed decides
//! everything: who takes a turn next, what agents ask, what fails and when. The same seed replays a run exactly.
//!
//! - `world`: shards in their seats, turned by hand, as the runtime's threads do; start through the real recovery
//! - `client`, `actor`, `calls`, `forks`: agents with lanes of their own, and what they ask
//! - `hostile`: one that writes anything into whatever it may write
//! - `oracle`, `observe`: what has to be there, and reading whether it is
//! - `faults`: what goes wrong, and the table that says whether it did
//! - `run`: one seed, from empty disks to the last check
//!
//! Faults: kill; power cut, which keeps any subset of unsynced sectors; either of them in the middle of recovery, to
//! any depth; writes that fail, wholly or after a part, for lack of room or otherwise; syncs that fail and keep,
//! lose, or nevertheless store what was written; creating, sealing, removing files, and reading, that fail; pages that are
//! cold; an I/O queue of one place; pauses of hours; a wall clock that starts anywhere; collections, moves,
//! suspensions and terminations at any time; agents that are slow, die, or are hostile.
//!
//! A new piece: what an agent asks is a function in `calls` (or a file beside it) and a line in `ask_alone`; what
//! it does to a state is a [`oracle::Deed`]; what goes wrong is a function, a weight and a line in `faults`,
//! and a name in [`faults::KINDS`].
//!
//! `SIMULATE_SEED=n` runs one seed, `SIMULATE_TRACE=1` prints what happens in it; `scripts/simulate` runs many.

mod actor;
mod calls;
mod client;
mod faults;
mod forks;
mod hostile;
mod observe;
mod oracle;
mod run;
mod tests;
mod world;
