"""A disk that is full, in bytes or in files, at six fillings: one line, exit code 2; with more room the same result."""

import pytest
from harness import SCRIPTS, Disk

SHARES = (0.02, 0.2, 0.4, 0.6, 0.8, 0.97)  # of what the whole run's folder holds
pytestmark = pytest.mark.slow


def names_in(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("kind", ["size", "files"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_full_disk_costs_nothing_but_a_line(programs, name, kind):
    programs.begin(name)
    folder, before = programs.root / name, set()
    whole = -Disk(programs.root / f"whole_{name}", 0, 0).room()[kind == "files"]
    for share in SHARES:
        code = programs.run(name, "--resume", fault=Disk(folder, **{kind: int(share * whole)}))
        if code == 0:  # a figure may be lost: it costs no result
            assert "not drawn (" in programs.said(), programs.said()[-2000:]
            continue
        said = [line for line in programs.said().splitlines() if line.startswith("error: ")]
        assert code == 2 and len(said) == 1 and "Traceback" not in programs.said(), (share, programs.said()[-2000:])
        assert "No space left" in said[0] or "unexpected pos" in said[0], said
        assert str(folder) in said[0] and not [*folder.rglob("*.tmp")], (share, said)
        assert names_in(folder) >= before, share
        before = names_in(folder)
    assert programs.run(name, "--resume") == 0, programs.said()
    assert programs.differences(name) == []
