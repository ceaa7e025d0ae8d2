//! Memory and atomics for models: the same calls over loom's words, with faults on order.
//!
//! Floor 0, part of `shared`; only there with `--cfg helios_loom`. A region is a set of loom's
//! atomics, one for each word that the model touches: which those are is found out by running it.
//! A word that is met for the first time is noted, and the model begins anew, so that every word
//! is there before there is a second thread (loom demands it) and no more of them than needed.
//!
//! A [`Plant`] is a bug: an operation, named by the file and the text of its line, that is done
//! wrongly. The product's code has no switch for it. [`caught`] says what a model answers to one.
//!
//! What loom doesn't model, and what is done about it
//! - a load never sees a store that comes later in the run, so that an acquire which keeps *later
//!   stores* of its thread behind it can't be missed: the order of `consumed` (the client reads a
//!   slot, then says so) is argued in `PROTOCOL.md`, not shown.
//! - sequentially consistent accesses are no more than acquire and release; here each has a
//!   sequentially consistent fence on both sides, which loom knows.
//! - a system call is a step that nothing divides: the kernel's own barriers are taken for granted.
//!   Timeouts never come, so that a wake that is lost is a deadlock, which loom reports.
//! - bytes are words here: models use multiples of 8 only, at places that are such.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::Ordering::{self, Relaxed, SeqCst};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::panicking;
use std::time::Duration;

use super::{Access, SharedError};

// ---- planted bugs -----------------------------------------------------------------------------

/// What is done wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The access is relaxed.
    Relaxed,
    /// The store, the fence, or the kernel's comparison before a sleep is left out.
    Skipped,
    /// The load is not done: it answers what this thread found there before, at first 0.
    Stale,
    /// From here to the thread's next store or sleep all its loads are [`Fault::Stale`].
    Blind,
}

/// A bug at one operation of the product.
#[derive(Clone, Copy, Debug)]
pub struct Plant {
    /// From the root of the package.
    pub file: &'static str,
    /// On the line of the operation, and on no other of the file.
    pub text: &'static str,
    /// What is wrong there.
    pub fault: Fault,
}

/// What is planted in the run of this thread, and what its threads saw.
#[derive(Default)]
struct State {
    plant: Option<(&'static str, u32, Fault)>,
    /// Executions in which the planted line was reached.
    reached: usize,
    /// By name of the region: the words that models of it touch, and whether they have 8 bytes.
    words: BTreeMap<String, BTreeMap<usize, bool>>,
    /// What threads found last, by thread and word.
    found: HashMap<(String, usize), u64>,
    blind: BTreeSet<String>,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

/// Thrown where a word is met for the first time.
struct Unknown;

/// Tries every interleaving of `model` with at most `preemptions` of its threads' steps interrupted.
/// Prints how many there were.
///
/// # Panics
/// Where the model does, or deadlocks, in one of them.
pub fn explore(name: &str, preemptions: usize, model: fn()) {
    run(name, preemptions, None, false, model).unwrap_or_else(|failed| resume_unwind(failed));
}

/// Asserts that `model` fails with each of these bugs, and that it reaches their lines.
///
/// # Panics
/// Where one is not noticed.
pub fn caught(name: &str, preemptions: usize, plants: &[Plant], model: fn()) {
    let mut missed = Vec::new();
    for plant in plants {
        let outcome = run(name, preemptions, Some(plant), true, model);
        let reached = STATE.with_borrow(|state| state.reached);
        let how = match &outcome {
            Ok(()) => "NOT noticed".to_owned(),
            Err(failed) => format!("caught: {}", what_failed(failed.as_ref())),
        };
        println!("{name}: {:?} at `{}`: {how}", plant.fault, plant.text);
        if outcome.is_ok() || reached == 0 {
            missed.push(plant);
        }
    }
    assert!(missed.is_empty(), "{name}: not noticed: {missed:#?}");
}

/// Asserts that `model`, which does something wrong itself, fails with words that begin so.
///
/// # Panics
/// Where it doesn't.
pub fn fails(name: &str, preemptions: usize, expected: &str, model: fn()) {
    let outcome = run(name, preemptions, None, true, model);
    let failed = outcome
        .err()
        .unwrap_or_else(|| panic!("{name}: NOT noticed"));
    let how = what_failed(failed.as_ref());
    assert!(
        how.contains(expected),
        "{name}: {how:?} where {expected:?} was to be noticed"
    );
    println!("{name}: caught: {how}");
}

fn what_failed(failed: &(dyn Any + Send)) -> &str {
    let text = failed.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| failed.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without words")
        .lines()
        .next()
        .unwrap_or_default()
}

fn run(
    name: &str,
    preemptions: usize,
    plant: Option<&Plant>,
    quiet: bool,
    model: fn(),
) -> Result<(), Box<dyn Any + Send>> {
    let plant = plant.map(|plant| (plant.file, line_of(plant), plant.fault));
    STATE.with_borrow_mut(|state| {
        *state = State {
            plant,
            ..State::default()
        }
    });
    loop {
        let tried = Arc::new(Mutex::new(0));
        let count = Arc::clone(&tried);
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.max_branches = 20_000;
        // One thread at a time runs models, so that the hook is its own.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // What is planted is to fail; a model that begins anew ends its threads without words.
            if !quiet && info.payload_as_str().is_some() {
                // No more than this: the stack of a model's thread is small.
                eprintln!("{info}");
            }
        }));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                *lock(&count) += 1;
                STATE.with_borrow_mut(|state| {
                    state.found.clear();
                    state.blind.clear();
                });
                model();
            });
        }));
        drop(std::panic::take_hook());
        std::panic::set_hook(hook);
        match outcome {
            Err(thrown) if thrown.is::<Unknown>() => {}
            Ok(()) => {
                println!("{name}: {} interleavings", lock(&tried));
                return Ok(());
            }
            failed => return failed,
        }
    }
}

/// The line of a planted operation.
fn line_of(plant: &Plant) -> u32 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(plant.file);
    let text = std::fs::read_to_string(&path).expect("the file of a planted bug");
    let found = |is: &dyn Fn(&str) -> bool| -> Vec<u32> {
        let lines = (1..).zip(text.lines());
        lines
            .filter(|(_, line)| is(line))
            .map(|(no, _)| no)
            .collect()
    };
    let whole = found(&|line| line.trim() == plant.text);
    let part = found(&|line| line.contains(plant.text));
    match (&whole[..], &part[..]) {
        (&[line], _) | (&[], &[line]) => line,
        _ => panic!("{} and {} such lines: {plant:?}", whole.len(), part.len()),
    }
}

/// What is planted at an operation.
fn fault(at: &Location<'_>) -> Option<Fault> {
    STATE.with_borrow_mut(|state| match state.plant {
        Some((file, line, fault)) if line == at.line() && at.file().ends_with(file) => {
            state.reached += 1;
            Some(fault)
        }
        _ => None,
    })
}

fn thread() -> String {
    format!("{:?}", loom::thread::current().id())
}

fn order_of(fault: Option<Fault>, order: Ordering) -> Ordering {
    match fault {
        Some(Fault::Relaxed) => Relaxed,
        _ => order,
    }
}

/// Does an access; a sequentially consistent one between two fences.
fn access<T>(order: Ordering, access: impl FnOnce(Ordering) -> T) -> T {
    if order != SeqCst {
        return access(order);
    }
    loom::sync::atomic::fence(SeqCst);
    let found = access(SeqCst);
    loom::sync::atomic::fence(SeqCst);
    found
}

fn before_store(fault: Option<Fault>) {
    STATE.with_borrow_mut(|state| {
        if state.blind.is_empty() && fault != Some(Fault::Blind) {
            return;
        }
        let thread = thread();
        if fault == Some(Fault::Blind) {
            state.blind.insert(thread);
        } else {
            state.blind.remove(&thread);
        }
    });
}

/// As [`std::sync::atomic::fence`].
#[track_caller]
pub fn fence(order: Ordering) {
    if panicking() {
        return;
    }
    if !matches!(
        fault(Location::caller()),
        Some(Fault::Skipped | Fault::Relaxed)
    ) {
        loom::sync::atomic::fence(order);
    }
}

// ---- words ------------------------------------------------------------------------------------

macro_rules! word {
    ($name:ident, $value:ty, $to:expr, $of:expr) => {
        /// As the one of the standard library, over loom's.
        #[derive(Debug)]
        pub struct $name {
            /// None: a word that a run which failed asks for while it unwinds.
            atomic: Option<loom::sync::atomic::$name>,
        }

        #[allow(dead_code, reason = "not every kind of word needs every operation")]
        impl $name {
            /// A word.
            #[must_use]
            pub fn new(value: $value) -> Self {
                let atomic = Some(loom::sync::atomic::$name::new(value));
                Self { atomic }
            }

            /// Loads it.
            #[track_caller]
            pub fn load(&self, order: Ordering) -> $value {
                let of: fn(u64) -> $value = $of;
                let to: fn($value) -> u64 = $to;
                let Some(atomic) = self.atomic.as_ref().filter(|_| !panicking()) else {
                    return of(0);
                };
                let fault = fault(Location::caller());
                let watched = STATE.with_borrow(|state| state.plant.is_some());
                if !watched {
                    return access(order, |order| atomic.load(order));
                }
                let key = (thread(), std::ptr::from_ref(self).addr());
                let stale = fault == Some(Fault::Stale)
                    || STATE.with_borrow(|state| state.blind.contains(&key.0));
                if stale {
                    let found = STATE.with_borrow(|state| state.found.get(&key).copied());
                    return of(found.unwrap_or(0));
                }
                let found = access(order_of(fault, order), |order| atomic.load(order));
                STATE.with_borrow_mut(|state| {
                    state.found.insert(key, to(found));
                    if fault == Some(Fault::Blind) {
                        state.blind.insert(thread());
                    }
                });
                found
            }

            /// Stores it.
            #[track_caller]
            pub fn store(&self, value: $value, order: Ordering) {
                let Some(atomic) = self.atomic.as_ref().filter(|_| !panicking()) else {
                    return;
                };
                let fault = fault(Location::caller());
                before_store(fault);
                if fault != Some(Fault::Skipped) {
                    access(order_of(fault, order), |order| atomic.store(value, order));
                }
            }
        }
    };
}

macro_rules! counter {
    ($name:ident, $value:ty) => {
        #[allow(dead_code, reason = "not every kind of word needs every operation")]
        impl $name {
            /// Adds, wrapping; the value before.
            #[track_caller]
            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                self.add(value, order, Location::caller())
            }

            /// Subtracts, wrapping; the value before.
            #[track_caller]
            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.add(value.wrapping_neg(), order, Location::caller())
            }

            fn add(&self, value: $value, order: Ordering, at: &Location<'_>) -> $value {
                let Some(atomic) = self.atomic.as_ref().filter(|_| !panicking()) else {
                    return 0;
                };
                let fault = fault(at);
                before_store(fault);
                access(order_of(fault, order), |order| {
                    atomic.fetch_add(value, order)
                })
            }
        }
    };
}

word!(AtomicU64, u64, |value| value, |value| value);
word!(AtomicU32, u32, u64::from, |value| value as u32);
word!(AtomicU8, u8, u64::from, |value| value as u8);
word!(AtomicBool, bool, u64::from, |value| value != 0);
counter!(AtomicU64, u64);
counter!(AtomicU32, u32);

impl Default for AtomicU32 {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Default for AtomicBool {
    fn default() -> Self {
        Self::new(false)
    }
}

static NO_WORD: AtomicU64 = AtomicU64 { atomic: None };
static NO_HALF: AtomicU32 = AtomicU32 { atomic: None };

// ---- something to sleep on --------------------------------------------------------------------

/// What the kernel gives a thread to sleep on: rung before or during the sleep, it ends it.
#[derive(Debug)]
pub struct Sleeper {
    rung: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Sleeper {
    /// Something to sleep on, not rung.
    ///
    /// # Errors
    /// None.
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            rung: loom::sync::Mutex::new(false),
            changed: loom::sync::Condvar::new(),
        })
    }

    /// Ends the sleep, or the next one.
    #[track_caller]
    pub fn ring(&self) {
        if panicking() || fault(Location::caller()) == Some(Fault::Skipped) {
            return;
        }
        *self.rung.lock().expect("no thread failed") = true;
        self.changed.notify_all();
    }

    /// Sleeps until it was rung.
    pub fn sleep(&self, _timeout: Option<Duration>) {
        before_store(None);
        let mut rung = self.rung.lock().expect("no thread failed");
        while !*rung {
            rung = self.changed.wait(rung).expect("no thread failed");
        }
        *rung = false;
    }

    /// Nothing: no model has a socket.
    ///
    /// # Errors
    /// None.
    pub fn watch(&self, _socket: impl AsFd) -> io::Result<()> {
        Ok(())
    }
}

// ---- regions ----------------------------------------------------------------------------------

#[derive(Debug)]
struct Region {
    name: String,
    bytes: usize,
    words: BTreeMap<usize, AtomicU64>,
    halves: BTreeMap<usize, AtomicU32>,
    sleepers: loom::sync::Mutex<()>,
    changed: loom::sync::Condvar,
}

/// What descriptors of this process stand for.
static REGIONS: Mutex<BTreeMap<RawFd, Weak<Region>>> = Mutex::new(BTreeMap::new());

/// A region of memory shared with another process; of the same shape as the mapped one.
#[derive(Debug)]
pub struct SharedMemory {
    region: Arc<Region>,
}

impl SharedMemory {
    /// Makes a region of those words that models have touched in regions of this name.
    pub fn create(name: &str, bytes: usize, _peer: Access) -> Result<(Self, OwnedFd), SharedError> {
        let known = STATE.with_borrow(|state| state.words.get(name).cloned());
        let (mut words, mut halves) = (BTreeMap::new(), BTreeMap::new());
        for (offset, whole) in known.unwrap_or_default() {
            if whole {
                words.insert(offset, AtomicU64::new(0));
            } else {
                halves.insert(offset, AtomicU32::new(0));
            }
        }
        let region = Arc::new(Region {
            name: name.to_owned(),
            bytes,
            words,
            halves,
            sleepers: loom::sync::Mutex::new(()),
            changed: loom::sync::Condvar::new(),
        });
        let fd = OwnedFd::from(std::fs::File::open("/dev/null")?);
        lock(&REGIONS).insert(fd.as_raw_fd(), Arc::downgrade(&region));
        Ok((Self { region }, fd))
    }

    /// The region that the descriptor stands for.
    pub fn map(fd: impl AsFd, bytes: usize, _access: Access) -> Result<Self, SharedError> {
        let fd = fd.as_fd().as_raw_fd();
        match lock(&REGIONS).get(&fd).and_then(Weak::upgrade) {
            Some(region) if region.bytes == bytes => Ok(Self { region }),
            other => Err(SharedError::Size {
                expected: bytes,
                found: other.map_or(0, |region| region.bytes as u64),
            }),
        }
    }

    /// Bytes of the region.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.region.bytes
    }

    /// The 8-byte word at `offset`.
    #[must_use]
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset <= self.bytes() - 8);
        match self.region.words.get(&offset) {
            Some(word) => word,
            None => {
                self.note(offset, true);
                &NO_WORD
            }
        }
    }

    /// The 4-byte word at `offset`.
    #[must_use]
    pub fn half(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset <= self.bytes() - 4);
        match self.region.halves.get(&offset) {
            Some(half) => half,
            None => {
                self.note(offset, false);
                &NO_HALF
            }
        }
    }

    /// Copies whole words out.
    #[track_caller]
    pub fn copy_out(&self, offset: usize, out: &mut [u8]) {
        assert!(out.len().is_multiple_of(8) && offset + out.len() <= self.bytes());
        for (index, chunk) in out.chunks_exact_mut(8).enumerate() {
            let word = self.word(offset + 8 * index).load(Relaxed);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// Copies whole words in.
    #[track_caller]
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(bytes.len().is_multiple_of(8) && offset + bytes.len() <= self.bytes());
        for (index, chunk) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(chunk.try_into().expect("a chunk of 8"));
            self.word(offset + 8 * index).store(word, Relaxed);
        }
    }

    /// Sleeps while the 4-byte word at `offset` is `expected`; only a wake ends it.
    ///
    /// # Errors
    /// None.
    #[track_caller]
    pub fn wait(&self, offset: usize, expected: u32, _timeout: Duration) -> io::Result<()> {
        let fault = fault(Location::caller());
        before_store(None);
        loom::sync::atomic::fence(SeqCst); // As the kernel does before it looks.
        let held = self.region.sleepers.lock().expect("no thread failed");
        if fault == Some(Fault::Skipped) || self.half(offset).load(Relaxed) == expected {
            drop(self.region.changed.wait(held).expect("no thread failed"));
        }
        Ok(())
    }

    /// Wakes all that sleep in the region.
    #[track_caller]
    pub fn wake(&self, _offset: usize) {
        if panicking() || fault(Location::caller()) == Some(Fault::Skipped) {
            return;
        }
        loom::sync::atomic::fence(SeqCst); // As the kernel does before it looks for sleepers.
        drop(self.region.sleepers.lock().expect("no thread failed"));
        self.region.changed.notify_all();
    }

    /// Nothing: no model has a whole page.
    pub fn discard(&self, _offset: usize, _bytes: usize) {}

    /// Nothing.
    pub fn prefetch(&self, _offset: usize) {}

    fn note(&self, offset: usize, whole: bool) {
        if panicking() {
            return;
        }
        STATE.with_borrow_mut(|state| {
            let words = state.words.entry(self.region.name.clone()).or_default();
            let before = words.insert(offset, whole);
            assert!(
                before.is_none_or(|before| before == whole),
                "{} has a word of two sizes at {offset}",
                self.region.name
            );
        });
        resume_unwind(Box::new(Unknown));
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
