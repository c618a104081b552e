"""Claims: one process holds a folder, its end frees it, and shared jobs are each done once."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from emit.claims import Held, claim, is_any_held, share
from emit.errors import InputError

FORK = multiprocessing.get_context("fork")  # nothing is imported anew


def hold(folder, ready):
    with claim(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds tmp_path / "run"."""
    ready = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_the_second_process_is_told_who_holds_the_folder(holder, tmp_path):
    with pytest.raises(Held, match=rf"run: is in use by process {holder.pid} on \S+; wait until it ends"), claim(tmp_path / "run"):
        pass
    with claim(tmp_path / "another"):
        assert (tmp_path / "another" / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_folder_below_is_seen_to_be_held_and_torchrun_ends(holder, tmp_path, monkeypatch):
    assert is_any_held(tmp_path) and not is_any_held(tmp_path / "run")  # its own lock is not below
    monkeypatch.setattr("emit.claims.distributed.ranks", lambda: 2)
    with pytest.raises(InputError) as refused, claim(tmp_path / "run"):
        pass
    assert refused.type is InputError  # not Held: rank 0 would go on to the next fold without the others
    holder.kill()
    holder.join()
    assert not is_any_held(tmp_path)


def test_a_killed_holder_frees_the_folder_and_leaves_its_name(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with claim(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_waiting_takes_turns(holder, tmp_path):
    began = time.monotonic()
    threading.Timer(0.3, holder.kill).start()
    with claim(tmp_path / "run", wait=True):
        assert time.monotonic() - began > 0.2


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be written .*; choose another folder"), claim(tmp_path / "file"):
        pass


def test_a_disk_without_locks_is_one_line(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("emit.claims.fcntl.flock", refuse)
    with pytest.raises(InputError, match=r"cannot be locked \(No locks available\)"), claim(tmp_path):
        pass


def test_what_another_process_holds_comes_last_and_results_keep_their_order(monkeypatch, capsys):
    """Job "b" is held twice; with nothing else to do the process waits before it asks again."""
    calls, waits = [], []
    monkeypatch.setattr("emit.claims.time.sleep", waits.append)

    def work(job):
        calls.append(job)
        if job == "b" and calls.count("b") < 4:
            raise Held("b: is in use")
        return job.upper()

    assert share(iter("abc"), work) == ["A", "B", "C"]
    assert calls == ["a", "b", "c", "b", "b", "b"] and waits == [1, 1]
    assert capsys.readouterr().out.count("left to another process: b: is in use") == 1
