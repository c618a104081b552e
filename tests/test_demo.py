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
    monkeypatch.setattr(demo, "call", lambda command: called.append(command))
    monkeypatch.setattr(demo, "write_phantoms", lambda folder, fresh: folder.mkdir(parents=True))
    return called


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, words)])
    demo.main()


def test_a_second_call_resumes_every_command(calls, monkeypatch, tmp_path):
    run(monkeypatch, tmp_path / "x")
    run(monkeypatch, tmp_path / "x")
    assert len(calls) == 8
    assert [command[-1] == "--resume" for command in calls] == [False] * 4 + [True] * 4
    assert [a == b[:-1] for a, b in zip(calls[:4], calls[4:], strict=True)] == [True] * 4


def test_phantoms_that_are_not_whole_are_written_again_and_strange_folders_refused(calls, monkeypatch, tmp_path):
    (tmp_path / "x" / ".phantoms.tmp").mkdir(parents=True)
    run(monkeypatch, tmp_path / "x")
    assert (tmp_path / "x" / "phantoms").is_dir() and "--resume" not in calls[0]
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "thesis.txt").touch()
    with pytest.raises(errors.InputError, match="already holds something that is no demo"):
        run(monkeypatch, tmp_path / "y")


def test_what_stops_the_demo_stops_its_command(monkeypatch):
    """The child gets the same signal, and the demo waits for its end: it is saving its state."""
    code = "import signal, time; signal.signal(15, lambda *_: exit(3)); print(1, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    children, start = [], subprocess.Popen

    class Child(start):
        def wait(self):
            if not children:
                children.append(self)
                self.stdout.readline()
                raise errors.Stopped(signal.SIGTERM)
            return super().wait()

    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: Child(*words, stdout=subprocess.PIPE, **options))
    with pytest.raises(errors.Stopped):
        demo.call(command)
    with children[0]:
        assert children[0].returncode == 3


def test_help_gives_the_real_name(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "--help")
    assert "usage: python -m emit.demo " in capsys.readouterr().out
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-m", "emit.generate", "--help"], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0 and "usage: python -m emit.generate " in done.stdout
