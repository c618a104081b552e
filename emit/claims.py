"""One folder, one process; and one comparison, several processes: whoever works in a folder holds its lock.

The lock is the operating system's (flock), so the end of its process frees it, also SIGKILL. Start a program a second time with
--resume: it takes the folds or segmenters that the first is not at, and both end when all are done.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from emit.errors import InputError
from emit.training import distributed


class Held(InputError):
    """Another process works in the folder."""


@contextlib.contextmanager
def claim(folder: Path, wait: bool = False):
    """Hold a folder, made if it is not there, within this context. Where another process does: Held, or wait for its turn.

    Under torchrun the first process holds it for all, and a folder that is held ends the run.
    """
    if distributed.rank() > 0:
        yield
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock = open(Path(folder) / ".lock", "a+")  # noqa: SIM115, closed below, which frees it
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            os.truncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            lock.seek(0)
            words = f"{folder}: is in use by {lock.read() or 'another process'}; wait until it ends, or choose another folder"
            raise (Held if distributed.ranks() == 1 else InputError)(words) from None  # torchrun's processes stay together
        except OSError as error:
            raise InputError(f"{folder}: cannot be locked ({error.strerror}); choose a folder on another disk") from error
        yield


def is_any_held(folder: Path) -> bool:
    """Tell whether a process works in a folder below this one."""
    for lock in Path(folder).rglob("*/.lock"):
        try:
            with claim(lock.parent):
                pass
        except Held:
            return True
    return False


def share(jobs: Iterable, work: Callable) -> list:
    """Return [work(job), ...]. A job that raises Held is called again later: it must find the other process's result then."""
    jobs, done, told = list(jobs), {}, set()
    while len(done) < len(jobs):
        before = len(done)
        for number, job in enumerate(jobs):
            if number in done:
                continue
            try:
                done[number] = work(job)
            except Held as held:
                if number not in told:
                    tqdm.write(f"left to another process: {str(held).partition(';')[0]}")
                told.add(number)
        if len(done) == before:
            time.sleep(1)
    return [done[number] for number in range(len(jobs))]
