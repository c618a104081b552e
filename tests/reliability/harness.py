"""The four programs, each in a process that ends itself at a chosen write, and the comparison of two run folders.

A server process imports torch once; each run is a fork of it and runs a script as its command line does, but for sizes:
one thread, a cache that keeps two pictures, more lines of the log, small sample grids. A write is a file that takes its
name, half a line that is appended, or a file written in place. Other writes go to temporary names.
"""

import builtins
import errno
import functools
import io
import math
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import torch

from emit import probes
from emit.data.cache import Memo
from emit.data.phantom import write_phantoms
from emit.model import Sampling
from emit.training.loop import Run

ROOT = Path(__file__).resolve().parents[2]
ROOM = 20_000  # bytes that a Memo keeps: two pictures of 32 pixels with their masks, or four edges
PACKAGED = {"set": "emit.dataset", "made": "emit.generate"}
SCRIPTS = {"pre": "train_pretrain.py", "fine": "train_finetune.py", "made": "emit.generate", "seg": "train_seg.py"}


def commands(root):
    """Return {run folder: the program's words}: two states of each part, steps between them, every draw in use."""
    data = root / "phantoms"
    model = ["--model", root / "pre" / "model.safetensors", "--hed", root / "pre" / "hed.safetensors"]
    states = ["--save-every", 2, "--warmup", 1, "--steps", 4, "--batch", 4]
    shared = [*states, "--ema", 0.9, "--caption-dropout", 0.5, "--accumulate", 2]
    parts = [f"--{part}-{name}=4" for part in ("vae", "hed", "unet") for name in ("steps", "batch")]
    pre = ["--data", data / "radiology_ai", "--boundaries", data / "boundaries", "--size", 32, "--sample-every", 3, "--sharp", 0.5]
    fine = ["--data", root / "set", "--size", 32, *model, "--probe-every", 2]
    made = [*model, "--finetuned", root / "fine", "--n", 1, "--steps", 2, "--batch", 2, "--tissue", data / "radiology_ai"]
    seg = ["--generated", root / "made", "--arms", "baseline,ours", "--keep-best", 0.7, *states, "--select-every", 2]
    words = {"pre": [*pre, *parts, *shared], "fine": [*fine, *shared], "made": made, "seg": seg}
    words["set"] = ["--data", data / "BUSI", "--folds", 2]
    return {name: [*map(str, given), "--out", str(root / name)] for name, given in words.items()}


# ---- in the child

OPEN = builtins.open


class Points:
    """Counts the writes below a folder; before number `at` the process sends itself a signal."""

    def __init__(self, folder, at=None, number=signal.SIGKILL):
        self.folder, self.at, self.number, self.passed = str(folder) + os.sep, at, number, []

    def here(self, what, path):
        path = os.path.abspath(path)
        if path.startswith(self.folder):
            self.passed.append(f"{what} {path.removeprefix(self.folder)}")
            if len(self.passed) - 1 == self.at:
                os.kill(os.getpid(), self.number)

    def before(self, function, place):
        """Return the function with a point before it; `place`: which argument is the path that changes."""

        @functools.wraps(function)
        def wrapped(*arguments, **options):
            self.here(function.__name__, arguments[place])
            return function(*arguments, **options)

        return wrapped

    def open(self, path, mode="r", *arguments, **options):
        """Open a file: one that is written in place is empty at its point; lines are appended in halves, a point before each."""
        file = OPEN(path, mode, *arguments, **options)
        whole = file.write

        def write(text):
            for what, half in (("line", text[: len(text) // 2]), ("rest of line", text[len(text) // 2 :])):
                self.here(what, path)
                whole(half)
                file.flush()

        if mode == "a":
            file.write = write
        elif mode[0] == "w" and not str(path).endswith(".tmp"):
            self.here("empty", path)
        return file


class Disk:
    """In the process of a program: a disk with room for so many bytes, or files and folders, below a folder; then it is full.

    A file is cut or refused as by the system, but for those that torch and safetensors write on their own: they are looked at
    once they are there.
    """

    def __init__(self, folder, size=math.inf, files=math.inf):
        self.folder, self.size, self.files = str(folder), size, files

    def room(self):
        """Return how many bytes and how many files more have room."""
        paths = [Path(self.folder), *Path(self.folder).rglob("*")] if os.path.exists(self.folder) else []
        return self.size - sum(path.lstat().st_size for path in paths if path.is_file()), self.files - len(paths)

    def check(self, size=0, files=0):
        room = self.room()
        if room[0] < size or room[1] < files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __call__(self):
        self.fsync, self.mkdir, self.write, self.save = os.fsync, os.mkdir, os.write, torch.save
        for name in ("fsync", "mkdir", "write"):
            setattr(os, name, getattr(self, f"do_{name}"))
        builtins.open = io.open = self.do_open
        torch.save = self.do_save

    def do_fsync(self, number):
        self.check()
        self.fsync(number)

    def do_mkdir(self, path, *arguments, **options):
        if os.path.abspath(path).startswith(self.folder) and not os.path.exists(path):
            self.check(files=1)
        self.mkdir(path, *arguments, **options)

    def do_write(self, number, content):
        if stat.S_ISREG(os.fstat(number).st_mode):  # a pipe needs no disk
            self.check(size=len(content))
        return self.write(number, content)

    def do_open(self, path, mode="r", *arguments, **options):
        inside = not isinstance(path, int) and os.path.abspath(path).startswith(self.folder)
        if not inside or "r" in mode:
            return OPEN(path, mode, *arguments, **options)
        if not os.path.exists(path):
            self.check(files=1)
        file = OPEN(path, mode, *arguments, **options)
        whole = file.write

        def write(content):
            room = self.room()[0]
            whole(content[: max(0, min(room, len(content)))])
            file.flush()
            if room < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        file.write = write
        return file

    def do_save(self, content, path):
        self.save(content, path)
        if min(self.room()) < 0:
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 192 vs 86")


def child(name, words, log, fault, points):
    """Be the program: stdout and stderr go to `log`, the list of writes to `log`.points at the end."""
    with OPEN(log, "wb") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    Memo.__init__.__defaults__ = (ROOM,)
    Run.__init__.__kwdefaults__["log_every"] = 3  # states come every second step: sums must survive
    probes.save_samples.__defaults__ = (2, 1, Sampling(steps=2))  # two cases; the full grid takes seconds
    if points is not None:
        os.replace, os.unlink = points.before(os.replace, 1), points.before(os.unlink, 0)
        builtins.open = points.open
    if fault is not None:
        fault()
    sys.argv, started = [name, *words], ["-m", PACKAGED[name]] if name in PACKAGED else [SCRIPTS[name]]
    sys.orig_argv = ["python", *started, *words]
    if name in PACKAGED:
        runpy.run_module(PACKAGED[name], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(ROOT / SCRIPTS[name]), run_name="__main__")
    if points is not None:
        Path(f"{log}.points").write_text("\n".join(points.passed))


# ---- in the parent


class Programs:
    """The four programs in one folder, run once; each can then be broken off, resumed and compared.

    writes: {run folder: the names of its writes, in order}; seconds: {run folder: how long it took}.
    """

    def __init__(self, root):
        self.root, self.log, self.commands = Path(root), Path(root) / "log", commands(Path(root))
        os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)]), "OMP_NUM_THREADS": "1"}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["harness", "inputs", "train_pretrain", "train_finetune", "train_seg"])
        self.writes, self.seconds = {}, {}
        write_phantoms(self.root / "phantoms", size=32, pretrain=13, busi=8, patients=0)
        assert self.run("set") == 0, self.said()  # starts the server too
        for name in SCRIPTS:
            started = time.perf_counter()
            code = self.run(name, points=Points(self.root / name))
            assert code == 0, self.said()
            self.seconds[name] = time.perf_counter() - started
            self.writes[name] = Path(f"{self.log}.points").read_text().splitlines()

    def said(self):
        """Return what the last run printed."""
        return self.log.read_text()

    def start(self, name, *extra, log=None, fault=None, points=None):
        """Start a program, whose words go to `log`, and return its process."""
        words = (name, [*self.commands[name], *map(str, extra)], log or self.log, fault, points)
        process = self.context.Process(target=child, args=words)
        process.start()
        return process

    def run(self, name, *extra, after=None, fault=None, points=None):
        """Run a program and return its exit code, negative for a signal. after: seconds, then it is killed.

        fault: function, of a module that the server can import, called in the process before the program.
        """
        process = self.start(name, *extra, fault=fault, points=points)
        process.join(after)
        if after is not None:
            process.kill()
            process.join()
        return process.exitcode

    def begin(self, name):
        """Set the whole run aside, under another name: all paths stay the same, so files can be compared."""
        for other in SCRIPTS:  # a test that failed left its broken run
            self.restore(other)
        (self.root / name).rename(self.root / f"whole_{name}")

    def restore(self, name):
        """Throw the run away; the whole one takes its name back."""
        if (self.root / f"whole_{name}").exists():
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / f"whole_{name}").rename(self.root / name)

    def differences(self, name):
        """Return the files that the run and the whole one do not share, or that differ."""
        return compare(self.root / f"whole_{name}", self.root / name)


def compare(one, other):
    """Return which files of two folders are not in both or differ.

    Compared are bytes; of state.pt, whose archive names its temporary file, all that is in it; of log.jsonl all but the
    speed; of settings all but `resume`; of locks, which name a process, nothing.
    """
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
        for folder in (one, other)
    ]
    both = sorted(names[0] & names[1])
    return sorted(names[0] ^ names[1]) + [name for name in both if not _same(one / name, other / name)]


UNLIKE = {  # what may differ in a kind of file
    ".jsonl": r'"images_per_second": [\d.]+',
    ".json": r'"resume": (true|false)',
    ".html": r"resume</td><td>\w+( \(given\))?",
}


def _same(one, other):
    if one.name == "state.pt":
        return _equal(*(torch.load(path, weights_only=True) for path in (one, other)))
    if one.suffix in UNLIKE:
        return len({re.sub(UNLIKE[one.suffix], "", path.read_text()) for path in (one, other)}) == 1
    return one.read_bytes() == other.read_bytes()


def _equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
