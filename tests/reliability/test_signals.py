"""A signal in the middle of a program: the state is saved, one line says how to go on, and that gives the same result."""

import shlex
import signal

import pytest
from harness import SCRIPTS, Points


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_stopped_program_says_how_to_go_on_and_does(programs, name, number):
    writes, wrong = programs.writes[name], {}
    for at in (len(writes) // 3, 2 * len(writes) // 3):
        programs.begin(name)
        code = programs.run(name, points=Points(programs.root / name, at, number))
        line = programs.said().splitlines()[-1]
        assert code == 128 + number and line.startswith(f"stopped by {number.name}; go on with: python "), programs.said()
        saved = [path for path in (programs.root / name).rglob("*") if path.name in ("state.pt", "manifest.jsonl")]
        assert saved
        words = shlex.split(line.partition("go on with: ")[2])
        program = ["-m", SCRIPTS[name]] if name == "made" else [SCRIPTS[name]]
        assert words == ["python", *program, *programs.commands[name], "--resume"]
        assert programs.run(name, "--resume") == 0, programs.said()
        wrong[at, writes[at]] = programs.differences(name)
    programs.restore(name)
    assert {point: found for point, found in wrong.items() if found} == {}
