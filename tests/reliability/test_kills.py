"""A program that is killed at any moment and resumed gives the uninterrupted run's result, bit for bit."""

import os
import random
import signal

import pytest
from harness import SCRIPTS, Points

EVERY = int(os.environ.get("EMIT_EVERY", 4))  # 1: a kill at every write; 4: at every fourth from the last on
MOMENTS = int(os.environ.get("EMIT_MOMENTS", 3))  # random ones, in each program
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", SCRIPTS)]


def resume(programs, name):
    """Go on with a broken run; return what differs from the whole run, and what the program says where it fails."""
    code = programs.run(name, "--resume")
    return programs.differences(name) if code == 0 else f"exit code {code}: {programs.said()[-500:]}"


def test_a_kill_at_any_write_changes_nothing(programs, name):
    writes, wrong = programs.writes[name], {}
    print(f"{name}: {len(writes)} writes")
    for at, write in list(enumerate(writes))[::-EVERY]:
        programs.begin(name)
        assert programs.run(name, points=Points(programs.root / name, at)) == -signal.SIGKILL
        if found := resume(programs, name):
            wrong[at, write] = found
    assert wrong == {}


def test_a_kill_at_a_random_moment_changes_nothing(programs, name):
    rng, wrong = random.Random(name), {}
    for _ in range(MOMENTS):
        seconds = rng.uniform(0, programs.seconds[name])
        programs.begin(name)
        assert programs.run(name, after=seconds) in (0, -signal.SIGKILL)  # 0: it was done before
        if found := resume(programs, name):
            wrong[seconds] = found
    assert wrong == {}


def test_two_kills_in_one_run_change_nothing(programs, name):
    """The second meets a folder that a resumed run is working in."""
    programs.begin(name)
    for at, words in ((len(programs.writes[name]) // 2, []), (3, ["--resume"])):
        assert programs.run(name, *words, points=Points(programs.root / name, at)) == -signal.SIGKILL
    assert not resume(programs, name)
