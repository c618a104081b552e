"""Two processes on one folder: pre-training refuses the second; folds and segmenters are shared, and come out the same."""

import json
import time

import pytest
from harness import SCRIPTS

pytestmark = [pytest.mark.slow]


def start_two(programs, name):
    """Start a program twice on a new folder; return both processes and the files of what they print."""
    programs.begin(name)
    logs = [programs.root / f"log{number}" for number in (0, 1)]
    return [programs.start(name, "--resume", log=log) for log in logs], logs


def test_the_second_pre_training_is_refused(programs):
    both, logs = start_two(programs, "pre")
    for process in both:
        process.join()
    assert sorted(process.exitcode for process in both) == [0, 2]
    said = logs[0 if both[0].exitcode else 1].read_text().strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and "is in use by process" in said[0]
    assert not programs.differences("pre")


@pytest.mark.parametrize("share", (None, 0.3, 0.6))
@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "pre"])
def test_two_processes_give_the_folder_of_one(programs, name, share):
    """share: of the whole run's time, after which one of the two is killed, so that the other takes over what it held."""
    both, logs = start_two(programs, name)
    if share:
        time.sleep(share * programs.seconds[name])
        both[0].kill()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] in ([0, 0], [-9, 0]), [log.read_text()[-500:] for log in logs]
    assert not programs.differences(name)
    for manifest in (programs.root / name).rglob("manifest.jsonl"):
        files = [json.loads(line)["file"] for line in manifest.read_text().splitlines()]
        assert len(files) == len(set(files))
