#!/usr/bin/python3
"""Turns a raw strace recording into a trace: agent_id,seq,key,op. Called by scripts/record-traces, which says what counts.

The same recording gives the same bytes: nothing is read but the raw file and the name maps. Figures go to standard error.
"""

import argparse
import collections
import csv
import posixpath
import re
import sys

LINE = re.compile(r"(\d+) +(.*)")
CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)(?:<((?:[^<>]|->)*)>)?")
STRING = r'"((?:[^"\\]|\\.)*)"'
PLACED = re.compile(r"(?:(AT_FDCWD|-?\d+)(?:<([^<>]*)>)?, )?" + STRING)
ESCAPE = re.compile(r"\\([0-7]{1,3}|x[0-9a-f]{2}|.)")
NAMED = {"n": 10, "t": 9, "r": 13, "v": 11, "f": 12, "a": 7, "b": 8, "e": 27}
WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC")
OPENS = ("open", "openat", "openat2", "creat")
STATS = ("stat", "lstat", "newfstatat", "statx")
LINKS = ("rename", "renameat", "renameat2", "link", "linkat")
FORKS = ("clone", "clone3", "fork", "vfork")
OUTSIDE = ("/proc/", "/sys/", "/dev/", "/run/")

# Names made up afresh at every run, by shape; the part to replace is the group. Kept apart as tmp1, tmp2, ...
MADE_UP = [
    re.compile(pattern)
    for pattern in (
        r"^/etc/(image[^/]*)",  # what a machine image leaves behind
        r"^/tmp/(?!build/)([^/.]+)",  # anything placed straight in /tmp
        r"/tmp_(?:obj|pack|idx|rev|mtimes)_(\w{6})$",  # git
        r"/\.tmp-(\d+)-",  # git repack
        r"/\.?(?:git|sed|st|cc)([A-Z0-9][A-Za-z0-9]{5}|[A-Za-z0-9]{5}[A-Z0-9])(?:[./]|$)",  # sed -i, binutils, cc
        r"\.pyc\.(\d{6,})$",  # python's byte code, before its rename
        r"/_cacache/tmp/([^/]+)",  # npm
        r"/node_modules/(?:@[^/]+/)?\.[^/]+-([A-Za-z0-9]{8})(?:/|$)",  # npm
        r"/_logs/([^/]+?)-debug",  # npm
        r"/(?:rmeta|rustc)([A-Za-z0-9]{6})(?:/|$)",  # rustc
        r"/pip-[a-z-]+-([a-z0-9_]{8})(?:/|$)",  # pip
        r"/pymp-([a-z0-9_]{8})(?:/|$)",
        r"/\.tmp([A-Za-z0-9]{6})(?:/|$)",  # cargo
        r"/tmp([a-z0-9_]{8})(?:[./]|$)",  # python's tempfile
    )
]
# Common names of places on build machines, replaced wherever a component starts so: searching the trace finds none.
PLACES = re.compile(r"/(root|work)")
LISTS = re.compile(r"^(/var/lib/apt/lists/(?:partial/|auxfiles/)?)[^_/]+_")


def unescape(text):
    """The path that strace printed with C escapes."""
    if "\\" not in text:
        return text

    def one(match):
        code = match.group(1)
        if code[0] in "01234567":
            return chr(int(code, 8))
        if code[0] == "x" and len(code) == 3:
            return chr(int(code[1:], 16))
        return chr(NAMED.get(code, ord(code)))

    return ESCAPE.sub(one, text).encode("latin-1", "replace").decode("utf-8", "backslashreplace")


def calls(raw):
    """Finished calls and ends of tasks as (task, name, arguments, result, result's path), in the order they finished."""
    waiting = {}
    for line in raw:
        match = LINE.match(line)
        if not match:
            continue
        task, rest = match.groups()
        if rest.startswith("+++"):
            waiting.pop(task, None)
            yield task, "exit", "", 0, None
            continue
        if rest.endswith("<unfinished ...>"):
            waiting[task] = rest[: -len("<unfinished ...>")]
            continue
        if rest.startswith("<... "):
            rest = waiting.pop(task, "") + rest[rest.index("resumed>") + len("resumed>") :]
        match = CALL.match(rest)
        if match:
            name, args, result, path = match.groups()
            yield task, name, args, int(result), path


def parents(raw):
    """For each task id, in order of use: (parent task id, is a thread). A child may speak before its parent's call ends."""
    born = collections.defaultdict(list)
    for task, name, args, result, _ in calls(raw):
        if name in FORKS and result > 0:
            born[str(result)].append((task, "CLONE_THREAD" in args))
    return born


class Processes:
    """Which process a task belongs to, and where that process stands in the file tree."""

    def __init__(self, born):
        self.born = born
        self.used = collections.Counter()
        self.live = {}
        self.cwd = {}
        self.last = 0

    def of(self, task):
        if task in self.live:
            return self.live[task]
        found = self.born.get(task, [])
        parent, thread = found[self.used[task]] if self.used[task] < len(found) else (None, False)
        self.used[task] += 1
        above = self.live.get(parent)
        if above is None and self.used[parent] < len(self.born.get(parent, [])):
            above = self.of(parent)  # the parent has not spoken yet
        if thread and above is not None:
            process = above
        else:
            self.last += 1
            process = self.last
            self.cwd[process] = self.cwd.get(above, "/")
        self.live[task] = process
        return process

    def end(self, task):
        self.live.pop(task, None)


def absolute(base, path):
    path = posixpath.normpath(posixpath.join(base, path))
    if path.startswith("//"):
        path = path[1:]
    if path.startswith(("/lib/", "/lib64/", "/bin/", "/sbin/")):
        path = "/usr" + path
    return path


def placed(processes, process, args):
    """Every path argument of a call, absolute, and the text after the last one."""
    paths = []
    at = 0
    while match := PLACED.match(args, at):
        dirfd, base, path = match.groups()
        if dirfd == "AT_FDCWD" and base:
            processes.cwd[process] = unescape(base)
        if dirfd in (None, "AT_FDCWD"):
            base = processes.cwd[process]
        else:
            base = unescape(base or "/")
        path = unescape(path)
        paths.append(absolute(base, path) if path else None)
        at = match.end()
        if args[at : at + 2] != ", ":
            break
        at += 2
    return paths, args[at:]


def accesses(raw, born):
    """(process, path, op), and the folders seen on the way (a second pass needs them)."""
    processes = Processes(born)
    for task, name, args, result, opened in calls(raw):
        if name == "exit":
            processes.end(task)
            continue
        process = processes.of(task)
        if name == "chdir" and result == 0:
            paths, _ = placed(processes, process, args)
            processes.cwd[process] = paths[0]
            continue
        if name == "fchdir" and result == 0:
            processes.cwd[process] = unescape(args.partition("<")[2].rpartition(">")[0])
            continue
        if result < 0 or name in FORKS:
            continue
        paths, rest = placed(processes, process, args)
        if not paths:
            continue
        if paths[0] is None:  # the file behind a descriptor: not an access, but it tells folders
            if "S_IFDIR" in rest:
                yield process, absolute("/", unescape(args.partition("<")[2].partition(">")[0])), "folder"
            continue
        if name in ("mkdir", "mkdirat"):
            yield process, paths[0], "folder"
        elif name in OPENS:
            if any(flag in rest for flag in ("O_DIRECTORY", "O_PATH", "O_TMPFILE")):
                yield process, paths[0], "folder"
            elif opened and opened.startswith("/"):
                write = name == "creat" or any(flag in rest for flag in WRITES)
                yield process, paths[0], "write" if write else "read"
        elif name in STATS:
            if "S_IFREG" in rest:
                yield process, paths[0], "read"
            elif "S_IFDIR" in rest:
                yield process, paths[0], "folder"
        elif name in ("execve", "execveat"):
            yield process, paths[0], "read"
        elif name in LINKS and len(paths) > 1 and paths[1]:
            yield process, (paths[0], paths[1]), "write"


class Names:
    """The machine's own names to neutral ones; made-up names to numbered ones."""

    def __init__(self, maps):
        lines = [line.rstrip("\n") for line in maps]
        self.moves = [tuple(line.split("=", 1)) for line in lines if not line.startswith("!")]
        self.forbidden = [line[1:] for line in lines if line.startswith("!")]
        self.numbers = {}
        self.known = {}

    def neutral(self, path):
        if path not in self.known:
            self.known[path] = self.make(path)
        return self.known[path]

    def make(self, path):
        for old, new in self.moves:
            if path == old or path.startswith(old + "/"):
                path = new + path[len(old) :]
                break
        path = PLACES.sub(r"/x\1", LISTS.sub(r"\1mirror_", path))
        for pattern in MADE_UP:
            match = pattern.search(path)
            if match:
                start, end = match.span(1)
                number = self.numbers.setdefault(match.group(1), len(self.numbers) + 1)
                path = f"{path[:start]}tmp{number}{path[end:]}"
        return path

    def bad(self, path):
        if path.startswith(("/xroot/", "/xwork/")):  # not a program's file but a place of this machine
            return True
        return any(word in path + "/" for word in self.forbidden)


def figures(rows, out):
    per = collections.Counter(row[0] for row in rows)
    readers = collections.defaultdict(set)
    for agent, key, op in rows:
        if op == "read":
            readers[key].add(agent)
    counts = sorted(per.values())
    writes = sum(row[2] == "write" for row in rows)
    keys = {row[1] for row in rows}
    common = {key for key, who in readers.items() if len(who) * 10 > len(per)}
    shared = sum(row[1] in common for row in rows)
    print(f"processes {len(per)}, with at least 20 accesses {sum(n >= 20 for n in counts)}", file=out)
    print(f"accesses {len(rows)}, reads {len(rows) - writes}, writes {writes} ({100 * writes / len(rows):.1f}%)", file=out)
    print(f"distinct keys {len(keys)}, distinct (agent, key) {len({row[:2] for row in rows})}", file=out)
    at = lambda share: counts[min(len(counts) - 1, int(share * len(counts)))]
    print(f"accesses per process p50 {at(0.5)}, p95 {at(0.95)}, max {counts[-1]}", file=out)
    print(f"keys read by more than a tenth of the processes {len(common)}, with {shared} accesses", file=out)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--raw", required=True)
    options.add_argument("--maps", required=True)
    options.add_argument("--max-per-process", type=int, required=True)
    options = options.parse_args()
    text = {"encoding": "utf-8", "errors": "backslashreplace"}
    with open(options.maps, **text) as maps:
        names = Names(maps)
    with open(options.raw, **text) as raw:
        born = parents(raw)
    with open(options.raw, **text) as raw:
        found = list(accesses(raw, born))
    folders = {path for _, path, op in found if op == "folder"}
    agents, kept, rows, bad = {}, collections.Counter(), [], set()
    for process, path, op in found:
        if op == "folder":
            continue
        if isinstance(path, tuple):
            if path[0] in folders or path[1] in folders:
                continue
            path = path[1]
        if (op == "read" and path in folders) or path.startswith(OUTSIDE):
            continue
        if kept[process] >= options.max_per_process:
            continue
        kept[process] += 1
        key = names.neutral(path)
        if names.bad(key):
            bad.add(key)
        rows.append((agents.setdefault(process, f"p{len(agents) + 1}"), key, op))
    if bad:
        sys.exit("record-traces: names of this machine left in the trace:\n" + "\n".join(sorted(bad)[:40]))
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(("agent_id", "seq", "key", "op"))
    out.writerows((agent, seq, key, op) for seq, (agent, key, op) in enumerate(rows))
    figures(rows, sys.stderr)


main()
