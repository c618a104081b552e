"""Every fault of tests/mutants.py is noticed: the test named there passes on a copy and fails once the line is changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the repository's code, scripts and tests."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("emit", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (ROOT / "pyproject.toml", *ROOT.glob("*.py")):
        shutil.copy(path, folder)
    return folder


def run(folder, test):
    """Run one test file in a process of its own; return pytest's exit code (0 passed, 1 failed) and its output."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("test", sorted({test for _, _, _, test in MUTANTS}))
def test_the_copy_passes(copy, test):
    code, output = run(copy, test)
    assert code == 0, output


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{Path(mutant[0]).stem}: {mutant[2]}")
def test_the_fault_is_noticed(copy, mutant):
    file, old, new, test = mutant
    path = copy / file
    text = path.read_text()
    assert text.count(old) == 1 and new != old, f"{file}: {text.count(old)} times {old}"
    try:
        path.write_text(text.replace(old, new))
        code, output = run(copy, test)
    finally:
        path.write_text(text)
    assert code == 1 and "SyntaxError" not in output and "NameError" not in output, output
