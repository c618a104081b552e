"""The demo goes on where it was stopped, and says how it is called."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emit import demo, errors


@pytest.fixture
def calls(monkeypatch):
    called = []
    monkeypatch.setattr(demo, "call", lambda command, processes, log: called.append((command, processes)))
    monkeypatch.setattr(demo, "write_phantoms", lambda folder, fresh: folder.mkdir(parents=True))
    return called


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, words)])
    demo.main()


def test_a_second_call_resumes_every_command(calls, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "CORES", 8)
    run(monkeypatch, tmp_path / "x")
    run(monkeypatch, tmp_path / "x")
    assert len(calls) == 8 and calls[:4] == calls[4:]
    assert all(command[-1] == "--resume" for command, _ in calls)
    assert [processes for _, processes in calls[:4]] == [1, 3, 3, 3]


def test_phantoms_that_are_not_whole_are_written_again_and_strange_folders_refused(calls, monkeypatch, tmp_path):
    (tmp_path / "x" / ".phantoms.tmp").mkdir(parents=True)
    run(monkeypatch, tmp_path / "x")
    assert (tmp_path / "x" / "phantoms").is_dir()
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.txt").touch()
    with pytest.raises(errors.InputError, match="already holds something that is no demo"):
        run(monkeypatch, tmp_path / "y")


def test_what_stops_the_demo_stops_its_commands(monkeypatch, tmp_path):
    """Every child gets the same signal, and the demo waits for their ends: they are saving their states."""
    code = "import signal, time; signal.signal(15, lambda *_: exit(3)); print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    children, threads, ready, start = [], [], [], subprocess.Popen

    class Child(start):
        def wait(self):
            if self is children[0] and len(ready) < 2:
                ready.extend(child.stdout.readline() for child in children)
                raise errors.Stopped(signal.SIGTERM)
            return super().wait()

    def popen(*words, env, **options):
        threads.append(env["OMP_NUM_THREADS"])
        children.append(Child(*words, env=env, **options | {"stdout": subprocess.PIPE}))
        return children[-1]

    monkeypatch.setattr(demo, "CORES", 6)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(errors.Stopped):
        demo.call(command, 2, tmp_path / "log")
    assert [child.returncode for child in children] == [3, 3] and threads == ["3", "3"]
    for child in children:
        child.stdout.close()


@pytest.mark.parametrize(("bad", "words"), [(0, "printed here"), (1, "printed in .*log")])
def test_one_process_that_fails_fails_the_demo(bad, words, tmp_path):
    """The first process is the one that does not print into the log."""
    log = tmp_path / "log"
    code = f"import os, sys; first = os.fstat(1).st_ino != os.stat({str(log)!r}).st_ino; sys.exit(2 * (first == {bad == 0}))"
    command = [sys.executable, "-c", code]
    with pytest.raises(errors.InputError, match=words):
        demo.call(command, 1 + bad, tmp_path / "log")


def test_help_gives_the_real_name(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "--help")
    assert "usage: python -m emit.demo " in capsys.readouterr().out
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-m", "emit.generate", "--help"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and "usage: python -m emit.generate " in done.stdout
