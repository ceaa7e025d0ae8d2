//! Sessions come and go: processes that die in odd ways, connections that never become sessions,
//! users whom no rule admits. The runtime runs in a process of its own.

mod common;

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Served, attach, role, spawn_role, wait_for};
use helios::agent::frame::{ATTACH_CREATE, FRAME_BYTES_MAX, Frame, RefusalCode};
use helios::agent::{FrameSocket, SocketError};
use helios::client::Lane;
use helios::config::Durability;
use rustix::process::{Pid, Signal, kill_process};

/// Connections without a `Hello` that one user may have.
const HANDSHAKES_PER_USER_MAX: usize = 256;

fn hello(socket: &FrameSocket) {
    let name = "by hand";
    let hello = Frame::Hello { features: 0, name };
    socket.send(0, &hello, &[]).unwrap();
    let mut buffer = [0; FRAME_BYTES_MAX];
    let welcome = socket.receive(&mut buffer).unwrap();
    assert!(matches!(welcome.frame, Frame::Welcome { .. }));
}

/// What the runtime says to a connection before it hangs up; `None` if it hangs up without a word.
fn last_word(socket: &FrameSocket) -> Option<RefusalCode> {
    socket.set_blocking(false).unwrap();
    let mut code = None;
    wait_for("a hang-up", || {
        let mut buffer = [0; FRAME_BYTES_MAX];
        loop {
            match socket.receive(&mut buffer) {
                Ok(received) => match received.frame {
                    Frame::Refused { code: said, .. } => code = Some(said),
                    other => panic!("{other:?}"),
                },
                Err(SocketError::WouldBlock) => return None,
                Err(SocketError::Closed) => return Some(()),
                Err(error) => panic!("{error}"),
            }
        }
    });
    code
}

fn lanes(watcher: &mut Lane) -> u64 {
    // The gauge is brought up to date by who asks for it, each shard's by its own.
    watcher.sync(Durability::Power).unwrap();
    watcher.stats().unwrap().lanes
}

/// Has a lane, and a child that inherits its socket; then tells that it is ready, and waits.
#[test]
fn role_parent() {
    let Some(socket) = role() else { return };
    let connection = FrameSocket::connect(&socket).unwrap();
    hello(&connection);
    let (flags, agent) = (ATTACH_CREATE, "orphaned");
    let attach = Frame::Attach { flags, agent };
    connection.send(1, &attach, &[]).unwrap();
    let mut buffer = [0; FRAME_BYTES_MAX];
    let attached = connection.receive(&mut buffer).unwrap();
    assert!(matches!(attached.frame, Frame::Attached { .. }));
    let none = rustix::io::FdFlags::empty();
    rustix::io::fcntl_setfd(connection.as_fd(), none).unwrap();
    let mut holds = Command::new("sleep");
    let mut holds = holds.arg("600").stdout(Stdio::null()).spawn().unwrap();
    let file = socket.with_file_name("holder");
    std::fs::write(file.with_extension("new"), holds.id().to_string()).unwrap();
    std::fs::rename(file.with_extension("new"), file).unwrap();
    // Until it is killed.
    holds.wait().unwrap();
}

/// A process that outlives the test by nobody's wish.
struct Holder(i32);

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.0) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// The socket alone can't tell that a process died: whoever inherited it keeps it open.
#[test]
fn a_death_is_noticed_whoever_else_holds_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 2");
    let session = served.session();
    let mut watcher = attach(&session, "watcher");
    let (before, fds) = (lanes(&mut watcher), served.fds());
    let mut parent = spawn_role("role_parent", &served.socket());
    let file = dir.path().join("holder");
    let holder = wait_for("the child has a child", || {
        std::fs::read_to_string(&file).ok()?.parse().ok()
    });
    let holder = Holder(holder);
    wait_for("its lane is counted", || {
        (lanes(&mut watcher) == before + 1).then_some(())
    });
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_for("its lane is gone", || {
        (lanes(&mut watcher) == before).then_some(())
    });
    wait_for("descriptors again", || (served.fds() <= fds).then_some(()));
    // It was there all the time, with the socket.
    let links = std::fs::read_dir(format!("/proc/{}/fd", holder.0)).unwrap();
    let links = links.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let sockets = links.filter(|link| link.to_string_lossy().starts_with("socket:"));
    assert_eq!(sockets.count(), 1);
    served.assert_alive();
}

#[test]
fn the_oldest_of_too_many_silent_connections_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = Served::start(dir.path(), "shards = 1");
    let mut watcher = attach(&served.session(), "watcher");
    let fds = served.fds();
    let silent: Vec<_> = (0..HANDSHAKES_PER_USER_MAX + 10)
        .map(|_| FrameSocket::connect(&served.socket()).unwrap())
        .collect();
    for first in &silent[..10] {
        assert_eq!(last_word(first), Some(RefusalCode::TooMany));
    }
    let held = served.fds();
    assert!(held <= fds + HANDSHAKES_PER_USER_MAX, "{held} of {fds}");
    // Who means it comes in beside them.
    for no in 0..20 {
        let mut lane = attach(&served.session(), &format!("honest {no}"));
        lane.put(b"k", b"v").unwrap();
    }
    watcher.put(b"k", b"v").unwrap();
    // Those who stay silent go in their time.
    assert_eq!(
        last_word(silent.last().unwrap()),
        Some(RefusalCode::TooMany)
    );
    wait_for("descriptors again", || (served.fds() <= fds).then_some(()));
    served.assert_alive();
}

#[test]
fn role_stranger() {
    let Some(socket) = role() else { return };
    let connection = FrameSocket::connect(&socket).unwrap();
    assert_eq!(last_word(&connection), Some(RefusalCode::NotAllowed));
    for _ in 0..2000 {
        drop(FrameSocket::connect(&socket));
    }
}

#[test]
fn role_admitted() {
    let Some(socket) = role() else { return };
    let session = helios::client::Session::connect(&socket).unwrap();
    attach(&session, "shared").put(b"k", b"v").unwrap();
    let error = session.attach("private", Default::default()).unwrap_err();
    assert!(error.to_string().contains("[[access]]"), "{error}");
}

/// With rules anybody can connect: whom none admits is turned away before a word is said.
#[test]
fn users_whom_no_rule_admits_are_turned_away_at_once() {
    use std::os::unix::fs::PermissionsExt;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to become others");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let rules = "shards = 1\n[[access]]\nuser = 65533\nagents = \"shared\"";
    let mut served = Served::start(dir.path(), rules);
    let run = |role: &str, uid: u32, socket: &Path| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let child = child
            .args([role, "--exact", "--nocapture"])
            .env("HELIOS_ROLE", socket);
        let status = child.current_dir("/").uid(uid).gid(uid).status().unwrap();
        assert!(status.success(), "{role}");
    };
    let fds = served.fds();
    run("role_stranger", 65534, &served.socket());
    run("role_admitted", 65533, &served.socket());
    wait_for("descriptors again", || (served.fds() <= fds).then_some(()));
    served.assert_alive();
}
