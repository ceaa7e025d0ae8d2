//! Named places at which a build with assertions can be made to die, for the tests that kill it.
//!
//! Floor 0. `HELIOS_CRASH_AT=name:count` in the environment of a debug build lets the process kill itself, as
//! SIGKILL does, the `count`-th time that it comes to the place. A release build has neither the places
//! nor the variable. The names are those that `tests/crash_loop.rs` lists; it fails where one is never reached.

/// A place where a crash would be telling; dies here if it was asked to. `name` is `room.step`.
#[inline]
pub(crate) fn point(name: &'static str) {
    #[cfg(debug_assertions)]
    asked::come_to(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod asked {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    /// Where to die.
    struct Place {
        name: String,
        /// Times to come by before; wraps behind the last one, and no test comes by so often.
        left: AtomicU32,
    }

    pub(super) fn come_to(name: &str) {
        static PLACE: OnceLock<Option<Place>> = OnceLock::new();
        let Some(place) = PLACE.get_or_init(wanted) else {
            return;
        };
        // Relaxed: the count alone matters, and whoever takes the last one is the one.
        if place.name == name && place.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = kill_process(getpid(), Signal::KILL);
            // The signal is on its way to every thread: this one does nothing more.
            loop {
                std::thread::park();
            }
        }
    }

    fn wanted() -> Option<Place> {
        let asked = std::env::var("HELIOS_CRASH_AT").ok()?;
        let (name, count) = asked.split_once(':')?;
        Some(Place {
            name: name.to_owned(),
            left: AtomicU32::new(count.parse().ok()?),
        })
    }
}
