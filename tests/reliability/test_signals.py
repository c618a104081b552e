"""A signal in the middle of a program: the state is saved, one line says how to go on, and that gives the same result."""

import shlex

import pytest
from harness import SCRIPTS, Points

from emit.errors import SIGNALS


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stopped_program_says_how_to_go_on_and_does(programs, name, number):
    program = ["python", "-m", SCRIPTS[name]] if name == "made" else ["python", SCRIPTS[name]]
    command = shlex.join([*program, *programs.commands[name], "--resume"])
    writes, turn = programs.writes[name], (SIGNALS.index(number) + list(SCRIPTS).index(name)) % 4
    at = len(writes) * (2 + turn) // 7  # another place for each signal
    programs.begin(name)
    code = programs.run(name, points=Points(programs.root / name, at, number))
    assert code == 128 + number and any((programs.root / name).rglob("state.pt" if name != "made" else "manifest.jsonl"))
    assert programs.said().splitlines()[-1] == f"stopped by {number.name}; go on with: {command}"
    assert programs.run(name, "--resume") == 0, programs.said()
    assert programs.differences(name) == [], writes[at]
