"""A thousand pictures, and a kill whenever fifty more are there: each is there once, whole, and can be made again from its line."""

import json
import time

import pytest
from harness import child

from emit.generated import KINDS


def count(manifest):
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0


@pytest.mark.slow
def test_a_thousand_pictures_survive_a_kill_at_every_fifty(programs):
    programs.begin("made")
    fold, kills = programs.root / "made" / "fold0", 0
    words = ["--fold", "0", "--n", "334", "--batch", "20", "--resume"]  # of three cases
    while True:
        process, wanted = programs.start("made", *words), count(fold / "manifest.jsonl") + 50
        while process.is_alive() and count(fold / "manifest.jsonl") < wanted:
            time.sleep(0.02)
        process.kill()
        process.join()
        if process.exitcode == 0:
            break
        kills += 1
        assert process.exitcode == -9, programs.said()
    lines = [json.loads(line) for line in (fold / "manifest.jsonl").read_text().splitlines()]
    names = {line["file"] for line in lines}
    assert kills >= 15 and len(lines) == len(names) == 1002
    assert all({path.name for path in (fold / kind).iterdir()} == names for kind in KINDS)
    again = programs.context.Process(target=child, args=("made", ["verify", str(fold.parent)], programs.log, None, None))
    again.start(), again.join()
    words = "1002 of 1002 images made again, 1002 equal, largest difference 0 grey levels"
    assert again.exitcode == 0 and words in programs.said(), programs.said()[-500:]
    print(f"{kills} kills")
