//! The habits that no compiler checks: which room may import which, how long things get, what may
//! be named where.
//!
//! Reads the tree as text. Each rule is a pure function from a file to its findings, with a test
//! that feeds it what it must find. Exceptions stand in one table per rule, each with its reason;
//! one that is no longer needed is itself a finding.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Rooms by floor. Imports go down; never up, never sideways.
const FLOORS: [&[&str]; 6] = [
    &["id", "config", "crash", "metrics", "mesh", "shared"],
    &["agent", "cache", "segment", "state", "prefetch"],
    &["shard", "client"],
    &["io", "topology"],
    // The only room above `io` and `topology`: it wires them to shards.
    &["runtime"],
    &["cli"],
];

/// Arrows that a floor would forbid.
const ARROWS_ALLOWED: [(&str, &str, &str); 1] =
    [("mesh", "id", "ids are the words every room speaks with")];

/// Where dependencies are used: a room, or several where the seam between them is made of it.
const DEPENDENCY_ROOMS: [(&str, &[&str]); 21] = [
    ("anyhow", &["cli"]),
    ("atomic_waker", &["io"]),
    ("blake3", &["id"]),
    ("clap", &["cli"]),
    ("core_affinity", &["topology"]),
    ("crc32fast", &["segment"]),
    ("crossbeam_queue", &["runtime", "shard"]),
    ("csv", &["cli"]),
    ("fastcdc", &["state"]),
    ("flate2", &["cli"]),
    ("glommio", &["io"]),
    ("hashbrown", &["cache", "segment", "shard", "state"]),
    ("hdrhistogram", &["metrics", "cli"]),
    ("hwlocality", &["topology"]),
    ("indicatif", &["cli"]),
    ("memmap2", &["cache", "shared"]),
    ("postcard", &["agent"]),
    ("ringbuf", &["io", "mesh", "prefetch"]),
    ("serde_json", &["cli"]),
    ("toml", &["config"]),
    ("tracing_subscriber", &["cli"]),
];

/// Lines of code in a file of `src/`, without comments, blank lines and tests.
const FILE_LINES_MAX: usize = 600;
/// Files that may be longer, how long, and why.
const LONG_FILES: [(&str, usize, &str); 0] = [];

/// Lines of code in a function.
const FUNCTION_LINES_MAX: usize = 90;
/// Functions that may be longer, how long, and why.
const LONG_FUNCTIONS: [(&str, &str, usize, &str); 1] = [(
    "src/shard/read.rs",
    "multi_get",
    95,
    "one pass over a packed list whose items share its buffers",
)];

/// Files that may hold words that others may not: written by a tool that puts them there.
const WORDS_ALLOWED: [&str; 2] = ["Cargo.lock", "fuzz/Cargo.lock"];

/// Words that have no business in the tree: names of the places where it is worked on, and of the
/// hosts that packages come from.
fn forbidden_words() -> Vec<String> {
    [
        ["/wo", "rk/"],
        ["farm", "-bench"],
        ["farm", "-studio"],
        ["crates", ".io"],
        ["registry.npmjs", ".org"],
        ["pypi", ".org"],
        ["files.python", "hosted.org"],
        ["deb.debian", ".org"],
        ["proxy.golang", ".org"],
    ]
    .map(|halves| halves.concat())
    .to_vec()
}

// ---- the tree -------------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A text file, and where it is from the root of the tree.
struct File {
    path: String,
    text: String,
    /// The text with comments gone and the insides of literals masked, line for line; of Rust only.
    code: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") {
            strip(text)
        } else {
            String::new()
        };
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
        }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_source(&self) -> bool {
        self.is_rust() && self.path.starts_with("src/")
    }

    /// Tests in files of their own; those within a file are cut out by [`without_tests`].
    fn is_test(&self) -> bool {
        self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
            || self.path.starts_with("tests/")
    }

    /// `shard` of `src/shard/read.rs`. The crate root has none.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        match inside {
            "lib.rs" => None,
            "main.rs" => Some("cli"),
            _ => inside
                .split('/')
                .next()
                .map(|first| first.trim_end_matches(".rs")),
        }
    }

    /// How many modules the file is below the crate root.
    fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        match inside {
            "lib" | "main" => 0,
            _ => inside.trim_end_matches("/mod").split('/').count(),
        }
    }
}

/// Every text file that git tracks or would track; without git, every file but what is made here.
fn tree() -> Vec<File> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output();
    let paths: BTreeSet<PathBuf> = match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_terminator('\0')
            .map(PathBuf::from)
            .collect(),
        _ => {
            let mut paths = BTreeSet::new();
            walk(root(), &mut paths);
            paths
        }
    };
    let read = |path: &PathBuf| {
        // Gone from the disk, or no text.
        let text = fs::read_to_string(root().join(path)).ok()?;
        Some(File::new(path.to_str()?, &text))
    };
    let files: Vec<File> = paths.iter().filter_map(read).collect();
    assert!(
        files.iter().any(|file| file.path == "src/lib.rs"),
        "the tree was not found at {}",
        root().display()
    );
    files
}

fn walk(folder: &Path, paths: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable tree").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if ![".git", "target", "helios-data"].contains(&name.to_str().unwrap_or_default()) {
                walk(&path, paths);
            }
        } else if let Ok(path) = path.strip_prefix(root()) {
            paths.insert(path.to_owned());
        }
    }
}

// ---- reading Rust ---------------------------------------------------------------------------

/// Rust without its comments, and with every character inside a literal an underscore, so that
/// what is left can be searched. Line breaks stay.
fn strip(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let after_word = at > 0 && is_word(chars[at - 1]);
        let (kind, len) = if rest.starts_with(&['/', '/']) {
            let line = rest.iter().position(|&c| c == '\n');
            (Token::Comment, line.unwrap_or(rest.len()))
        } else if rest.starts_with(&['/', '*']) {
            (Token::Comment, block_comment(rest))
        } else if rest[0] == '"' {
            (Token::Literal, quoted(rest))
        } else if let Some(len) = raw_string(rest).filter(|_| !after_word) {
            (Token::Literal, len)
        } else if let Some(len) = char_literal(rest) {
            (Token::Literal, len)
        } else {
            (Token::Code, 1)
        };
        for (index, &c) in rest[..len].iter().enumerate() {
            let edge = index == 0 || index + 1 == len;
            match kind {
                _ if c == '\n' => out.push('\n'),
                Token::Comment => {}
                Token::Literal if !edge => out.push('_'),
                Token::Literal => out.push('"'),
                Token::Code => out.push(c),
            }
        }
        at += len;
    }
    out
}

#[derive(Clone, Copy)]
enum Token {
    Comment,
    Literal,
    Code,
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn quoted(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `r"..."`, `br#"..."#` and the like.
fn raw_string(rest: &[char]) -> Option<usize> {
    let prefix = rest.iter().take_while(|c| matches!(c, 'b' | 'c')).count();
    if prefix > 1 || rest.get(prefix) != Some(&'r') {
        return None;
    }
    let hashes = rest[prefix + 1..].iter().take_while(|&&c| c == '#').count();
    let open = prefix + 1 + hashes;
    if rest.get(open) != Some(&'"') {
        return None;
    }
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    let body = &rest[open + 1..];
    let end = (0..body.len()).find(|&at| body[at..].starts_with(&close));
    Some(end.map_or(rest.len(), |end| open + 1 + end + close.len()))
}

/// `'a'` and `'\n'`, but not the lifetime `'a`.
fn char_literal(rest: &[char]) -> Option<usize> {
    match rest {
        ['\'', '\\', _, tail @ ..] => Some(3 + tail.iter().position(|&c| c == '\'')? + 1),
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// The code without its `#[cfg(test)] mod ... { ... }`.
fn without_tests(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let item = &found["#[cfg(test)]".len()..];
        let open = item.find('{');
        let is_block = open.is_some_and(|open| !item[..open].contains(';'));
        let is_mod = item.trim_start().starts_with("mod ") || item.trim_start().starts_with("pub");
        rest = match open {
            Some(open) if is_block && is_mod => &item[open + block(&item[open..])..],
            _ => item,
        };
    }
    out.push_str(rest);
    out
}

/// Length of the block that begins here.
fn block(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if c == '}' && depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

fn code_lines(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Places where `word` stands as a whole word.
fn words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |at| {
            let before = code[..*at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
}

fn first_word(code: &str) -> &str {
    let code = code.trim_start();
    &code[..code.find(|c| !is_word(c)).unwrap_or(code.len())]
}

// ---- the rules ------------------------------------------------------------------------------

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// Arrows between rooms that do not go down.
fn arrows(file: &File) -> Vec<String> {
    let (true, Some(room)) = (file.is_source(), file.room()) else {
        return Vec::new();
    };
    let Some(own) = floor(room) else {
        return vec![format!(
            "{}: room `{room}` has no floor in FLOORS",
            file.path
        )];
    };
    let mut found = Vec::new();
    for (at, target) in crate_paths(&file.code) {
        let allowed = ARROWS_ALLOWED
            .iter()
            .any(|(from, to, _)| (*from, *to) == (room, target));
        let place = format!("{}:{}", file.path, line_of(&file.code, at));
        match floor(target) {
            _ if target == room || allowed => {}
            Some(to) if to < own => {}
            Some(to) if to == own => found.push(format!(
                "{place}: `{room}` imports `{target}`, sideways on floor {own}"
            )),
            Some(to) => found.push(format!(
                "{place}: `{room}` (floor {own}) imports `{target}` (floor {to}), up"
            )),
            None => found.push(format!("{place}: `crate::{target}` is no room")),
        }
    }
    for at in escapes(file) {
        found.push(format!(
            "{}:{}: `super` leaves the room `{room}`; say `crate::`",
            file.path,
            line_of(&file.code, at)
        ));
    }
    found
}

/// First words of all paths that begin with `crate::`, those of `use crate::{a, b}` each.
fn crate_paths(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for at in words(code, "crate") {
        let Some(path) = code[at + "crate".len()..].trim_start().strip_prefix("::") else {
            continue;
        };
        let path = path.trim_start();
        let Some(group) = path.strip_prefix('{') else {
            found.push((at, first_word(path)));
            continue;
        };
        let group = &group[..block(path).saturating_sub(2).min(group.len())];
        let mut depth = 0;
        let mut start = 0;
        for (end, c) in group.char_indices().chain([(group.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    let word = first_word(&group[start..end]);
                    if !word.is_empty() && word != "self" {
                        found.push((at, word));
                    }
                    start = end + 1;
                }
                _ => {}
            }
        }
    }
    found
}

/// Places where a chain of `super` reaches the crate root.
fn escapes(file: &File) -> Vec<usize> {
    let code = &file.code;
    let mut found = Vec::new();
    for at in words(code, "super") {
        if code[..at].trim_end().ends_with("::") {
            continue;
        }
        let mut supers = 0;
        let mut rest = &code[at..];
        while let Some(next) = rest.strip_prefix("super") {
            supers += 1;
            rest = next.trim_start().trim_start_matches("::").trim_start();
        }
        // `pub(super)` makes visible, it does not reach.
        let path = code[at + "super".len()..].trim_start().starts_with("::");
        if path && supers >= file.depth() + modules_around(code, at) {
            found.push(at);
        }
    }
    found
}

/// Inline modules open at a place.
fn modules_around(code: &str, at: usize) -> usize {
    words(code, "mod")
        .filter(|&module| module < at)
        .filter(|&module| {
            let Some(open) = code[module..].find(['{', ';']) else {
                return false;
            };
            let open = module + open;
            code[open..].starts_with('{') && (open..open + block(&code[open..])).contains(&at)
        })
        .count()
}

/// Dependencies outside the rooms that they belong to.
fn dependencies(file: &File) -> Vec<String> {
    let (true, false, Some(room)) = (file.is_source(), file.is_test(), file.room()) else {
        return Vec::new();
    };
    let code = without_tests(&file.code);
    let mut found = Vec::new();
    for (name, rooms) in DEPENDENCY_ROOMS {
        let used = words(&code, name).any(|at| {
            let before = code[..at].trim_end();
            let after = code[at + name.len()..].trim_start();
            // A module of ours may have the name of a crate.
            let inner = before
                .strip_suffix("::")
                .is_some_and(|path| path.ends_with(is_word));
            let path = after.starts_with("::") && !inner;
            path || before.ends_with("use") || before.ends_with("extern crate")
        });
        if used && !rooms.contains(&room) {
            found.push(format!(
                "{}: `{name}` is used in {rooms:?} only, not in `{room}`",
                file.path
            ));
        }
    }
    found
}

/// A file that does not say what it is.
fn header(file: &File) -> Option<String> {
    let bad = file.is_rust() && !file.text.starts_with("//! ");
    bad.then(|| format!("{}: does not begin with a `//!` line", file.path))
}

/// A file over its budget, or one that has an exception it does not need.
fn file_budget(file: &File, exceptions: &[(&str, usize, &str)]) -> Option<String> {
    if !file.is_source() || file.is_test() {
        return None;
    }
    let lines = code_lines(&without_tests(&file.code));
    let exception = exceptions.iter().find(|(path, ..)| *path == file.path);
    let max = exception.map_or(FILE_LINES_MAX, |(_, max, _)| *max);
    if lines > max {
        return Some(format!("{}: {lines} lines of code, of {max}", file.path));
    }
    (exception.is_some() && lines <= FILE_LINES_MAX).then(|| {
        format!(
            "{}: {lines} lines of code need no exception any more",
            file.path
        )
    })
}

/// Functions over their budget.
fn function_budgets(file: &File, exceptions: &[(&str, &str, usize, &str)]) -> Vec<String> {
    if !file.is_source() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (name, at, lines) in functions(&file.code) {
        let exception = exceptions
            .iter()
            .find(|(path, function, ..)| (*path, *function) == (&*file.path, name));
        let max = exception.map_or(FUNCTION_LINES_MAX, |(.., max, _)| *max);
        if lines > max {
            found.push(format!(
                "{}:{}: `{name}` has {lines} lines of code, of {max}",
                file.path,
                line_of(&file.code, at)
            ));
        }
    }
    found
}

/// Name, place and lines of code of each function with a body.
fn functions(code: &str) -> Vec<(&str, usize, usize)> {
    let mut found = Vec::new();
    for at in words(code, "fn") {
        let name = first_word(&code[at + 2..]);
        if name.is_empty() || !code[at + 2..].starts_with(char::is_whitespace) {
            continue;
        }
        // Past the array types in its signature.
        let mut depth = 0;
        let open = code[at..].char_indices().find(|(_, c)| {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(c, '{' | ';')
        });
        if let Some((open, '{')) = open {
            let end = open + block(&code[at + open..]);
            found.push((name, at, code_lines(&code[at..at + end])));
        }
    }
    found
}

/// `unsafe` in a file that does not say that it expects it and why.
fn unsafe_code(file: &File) -> Vec<String> {
    let mut found = Vec::new();
    if !file.is_rust() {
        return found;
    }
    let squeezed: String = file.code.split_whitespace().collect();
    if squeezed.contains("allow(unsafe_code") {
        found.push(format!(
            "{}: allows unsafe code; expect it, with a reason",
            file.path
        ));
    }
    let expected = squeezed.contains("expect(unsafe_code,reason=");
    if let Some(at) = words(&file.code, "unsafe").next()
        && !expected
    {
        found.push(format!(
            "{}:{}: `unsafe` without #[expect(unsafe_code, reason = ...)] in the file",
            file.path,
            line_of(&file.code, at)
        ));
    }
    found
}

fn forbidden(file: &File, forbidden: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    if WORDS_ALLOWED.contains(&file.path.as_str()) {
        return found;
    }
    for (number, line) in file.text.lines().enumerate() {
        for word in forbidden {
            if line.contains(word.as_str()) {
                found.push(format!(
                    "{}:{}: says {word:?}: {line}",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    found
}

/// Links and paths in Markdown that lead nowhere. `exists` answers for paths from the root.
fn dead_links(file: &File, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = Path::new(&file.path).parent().unwrap_or(Path::new(""));
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let links = line
            .match_indices("](")
            .filter_map(|(at, _)| line[at + 2..].split(')').next())
            .filter(|target| !target.contains("://") && !target.starts_with('#'))
            .map(|target| {
                (
                    target,
                    folder.join(target.split('#').next().unwrap_or_default()),
                )
            });
        // Paths of this tree between backticks, as far as they are one file or folder.
        let paths = line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|code| {
                ["src/", "tests/", "scripts/", "benches/", "runtime-config/"]
                    .iter()
                    .any(|folder| code.starts_with(folder))
            })
            .filter(|code| !code.contains(['*', '<', '{', '…', ' ']))
            .map(|code| (code, PathBuf::from(code)));
        for (target, path) in links.chain(paths) {
            if !exists(&path) {
                found.push(format!(
                    "{}:{}: `{target}` is not there",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    found
}

// ---- the rules, on the tree -----------------------------------------------------------------

fn check(rule: impl Fn(&File) -> Vec<String>) {
    let found: Vec<String> = tree().iter().flat_map(rule).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn imports_go_down() {
    check(arrows);
}

#[test]
fn dependencies_stay_in_their_rooms() {
    check(dependencies);
}

#[test]
fn files_say_what_they_are() {
    check(|file| header(file).into_iter().collect());
}

#[test]
fn files_keep_to_their_budget() {
    check(|file| file_budget(file, &LONG_FILES).into_iter().collect());
}

#[test]
fn functions_keep_to_their_budget() {
    check(|file| function_budgets(file, &LONG_FUNCTIONS));
}

#[test]
fn unsafe_code_is_expected_by_name() {
    check(unsafe_code);
}

#[test]
fn nothing_names_the_places_it_was_made_at() {
    let words = forbidden_words();
    check(|file| forbidden(file, &words));
}

#[test]
fn links_lead_somewhere() {
    check(|file| dead_links(file, |path| root().join(path).exists()));
}

#[test]
fn exceptions_name_what_is_there() {
    for path in LONG_FILES.iter().map(|(path, ..)| *path) {
        assert!(root().join(path).exists(), "{path} has an exception");
    }
    for (path, function, max, _) in LONG_FUNCTIONS {
        let text = fs::read_to_string(root().join(path)).unwrap_or_default();
        let code = strip(&text);
        let lines = functions(&code)
            .iter()
            .filter(|(name, ..)| *name == function)
            .map(|(.., lines)| *lines)
            .max();
        assert!(
            lines.is_some_and(|lines| lines > FUNCTION_LINES_MAX && lines <= max),
            "{path}: `{function}` has an exception and {lines:?} lines"
        );
    }
}

// ---- the rules, on what they must find ------------------------------------------------------

mod finds {
    use super::*;

    fn arrows_of(path: &str, text: &str) -> usize {
        arrows(&File::new(path, text)).len()
    }

    #[test]
    fn arrows_that_do_not_go_down() {
        assert_eq!(arrows_of("src/shard/read.rs", "use crate::agent::Lane;"), 0);
        assert_eq!(
            arrows_of("src/shard/read.rs", "use crate::shard::store;"),
            0
        );
        assert_eq!(arrows_of("src/mesh.rs", "use crate::id::ShardNo;"), 0);
        assert_eq!(arrows_of("src/id.rs", "use crate::mesh::Port;"), 1);
        assert_eq!(
            arrows_of("src/agent/bell.rs", "use crate::shard::Shard;"),
            1
        );
        assert_eq!(arrows_of("src/agent/mod.rs", "use crate::cache::L2;"), 1);
        assert_eq!(
            arrows_of("src/io/mod.rs", "fn f() { crate :: runtime::go() }"),
            1
        );
        assert_eq!(arrows_of("src/io/mod.rs", "use crate::nowhere::X;"), 1);
        assert_eq!(arrows_of("src/attic.rs", "fn f() {}"), 1);
        let group = "use crate::{agent::{Lane, shard}, runtime::Runtime, topology};";
        assert_eq!(arrows_of("src/shard/mod.rs", group), 2);
        let hidden = "// use crate::runtime::X;\nconst A: &str = \"use crate::runtime::X\";";
        assert_eq!(arrows_of("src/id.rs", hidden), 0);
    }

    #[test]
    fn supers_that_leave_the_room() {
        assert_eq!(
            arrows_of("src/shard/read.rs", "use super::store::Store;"),
            0
        );
        assert_eq!(
            arrows_of("src/shard/read.rs", "use super::super::runtime::Runtime;"),
            1
        );
        assert_eq!(arrows_of("src/shard/mod.rs", "use super::io::IoCore;"), 1);
        assert_eq!(arrows_of("src/shard/mod.rs", "pub(super) fn f() {}"), 0);
        assert_eq!(arrows_of("src/id.rs", "mod tests { use super::*; }"), 0);
        assert_eq!(
            arrows_of("src/id.rs", "mod tests { use super::super::mesh; }"),
            1
        );
        assert_eq!(arrows_of("src/id.rs", "mod a {} use super::mesh::Port;"), 1);
    }

    #[test]
    fn dependencies_that_stray() {
        let of = |path, text| dependencies(&File::new(path, text)).len();
        assert_eq!(of("src/id.rs", "fn f() { blake3::hash(b\"\") }"), 0);
        assert_eq!(
            of("src/segment/log.rs", "fn f() { blake3::hash(b\"\") }"),
            1
        );
        assert_eq!(of("src/runtime.rs", "use ::glommio::LocalExecutor;"), 1);
        assert_eq!(of("src/runtime.rs", "use crate::io::glommio::Ring;"), 0);
        assert_eq!(of("src/shard/mod.rs", "use anyhow;"), 1);
        assert_eq!(of("src/shard/tests.rs", "use core_affinity::CoreId;"), 0);
        assert_eq!(of("src/shard/mod.rs", "/// blake3::hash\nfn f() {}"), 0);
    }

    #[test]
    fn files_without_a_header() {
        assert!(header(&File::new("src/id.rs", "//! Ids.\n")).is_none());
        assert!(header(&File::new("src/id.rs", "use std::fmt;\n//! Ids.\n")).is_some());
        assert!(header(&File::new("tests/a.rs", "")).is_some());
        assert!(header(&File::new("README.md", "# Title\n")).is_none());
    }

    #[test]
    fn files_over_their_budget() {
        let of = |path: &str, text: &str, exceptions: &[(&str, usize, &str)]| {
            file_budget(&File::new(path, text), exceptions).is_some()
        };
        let full = "let a = 1;\n".repeat(FILE_LINES_MAX);
        let over = format!("{full}let b = 1;\n");
        let comments = format!("{full}\n\n// one\n/* two\nthree */\n");
        let tests = format!("{full}#[cfg(test)]\nmod tests {{\n{full}}}\n");
        let tests_lines_only = tests.replace("#[cfg(test)]", "");
        assert!(!of("src/id.rs", &full, &[]));
        assert!(of("src/id.rs", &over, &[]));
        assert!(!of("src/id.rs", &comments, &[]));
        assert!(!of("src/id.rs", &tests, &[]));
        assert!(of("src/id.rs", &tests_lines_only, &[]));
        assert!(!of("src/shard/tests.rs", &over, &[]));
        assert!(!of("src/id.rs", &over, &[("src/id.rs", 700, "why")]));
        assert!(of("src/id.rs", &full, &[("src/id.rs", 700, "why")]));
    }

    #[test]
    fn functions_over_their_budget() {
        let of = |text: &str| function_budgets(&File::new("src/id.rs", text), &[]).len();
        let body = "    step();\n".repeat(FUNCTION_LINES_MAX - 2);
        let at_most = format!("fn f(a: [u8; 2]) -> [u8; 2] {{\n{body}}}\n");
        let over = format!("fn f(g: fn(u8)) {{\n{body}    step();\n}}\n");
        assert_eq!(of(&at_most), 0);
        assert_eq!(of(&over), 1);
        assert_eq!(of(&format!("{over}{at_most}{over}")), 2);
        assert_eq!(of("trait T { fn f(&self); fn g(&self); }"), 0);
        let exception = [("src/id.rs", "f", 100, "why")];
        assert!(function_budgets(&File::new("src/id.rs", &over), &exception).is_empty());
    }

    #[test]
    fn unsafe_code_that_nobody_expects() {
        let of = |text: &str| unsafe_code(&File::new("src/id.rs", text)).len();
        assert_eq!(of("fn f() { unsafe { g() } }"), 1);
        assert_eq!(of("#![allow(unsafe_code)]\nfn f() {}"), 1);
        assert_eq!(
            of("#![expect(\n unsafe_code,\n reason = \"why\")]\nunsafe fn f() {}"),
            0
        );
        assert_eq!(of("#![deny(unsafe_code)]\n// unsafe\nfn unsafe_f() {}"), 0);
    }

    #[test]
    fn words_that_are_forbidden() {
        for word in forbidden_words() {
            let file = File::new("a.toml", &format!("x\nsee {word} there\n"));
            assert_eq!(forbidden(&file, &forbidden_words()).len(), 1, "{word}");
        }
        let file = File::new("a.toml", "work/ crates and io\n");
        assert!(forbidden(&file, &forbidden_words()).is_empty());
    }

    #[test]
    fn links_that_are_dead() {
        let of = |path: &str, text: &str| {
            let there = |path: &Path| [Path::new("src/a.rs"), Path::new("b.md")].contains(&path);
            dead_links(&File::new(path, text), there).len()
        };
        assert_eq!(of("c.md", "[a](src/a.rs), [b](b.md#part), [c](#here)"), 0);
        assert_eq!(of("c.md", "[a](https://example.com/x) `src/a.rs`"), 0);
        assert_eq!(of("src/c.md", "[a](a.rs)"), 0);
        assert_eq!(of("src/c.md", "[b](b.md)"), 1);
        assert_eq!(of("c.md", "[a](a.rs) and `src/b.rs` and `src/*.rs`"), 2);
        assert_eq!(of("c.rs", "[a](a.rs)"), 0);
    }

    #[test]
    fn code_between_comments_and_literals() {
        let check = |text: &str, expected: &str| assert_eq!(strip(text), expected, "{text}");
        check("a // b\nc", "a \nc");
        check("a /* b /* c */ d */ e", "a  e");
        check("f(\"un//safe\\\"{\")", "f(\"___________\")");
        check("r#\"a\"b\"# + br\"c\"", "\"______\" + \"___\"");
        check("'{' '\\'' b'\\n' &'a str", "\"_\" \"__\" b\"__\" &'a str");
        check("\"a\nb\" c", "\"_\n_\" c");
        check("for\"x\"", "for\"_\"");
    }
}
