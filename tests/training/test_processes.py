"""Real processes: one that is killed and goes on, and two that learn what one learns."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

CHILD = Path(__file__).with_name("child.py")
ROOT = Path(__file__).resolve().parents[2]


def start_child(*arguments, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen([sys.executable, CHILD, *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def finish(*children):
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors


def assert_same(one, other):
    """Require two nested states to be equal, tensors bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list | tuple):
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
@pytest.mark.parametrize("stall", [1, 4])  # before the first state.pt, and after it (save_every is 3)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, stall):
    finish(start_child(tmp_path / "whole", "--noise"))
    broken = tmp_path / "broken"
    child = start_child(broken, "--noise", "--stall", str(stall))
    limit = time.monotonic() + 60
    while not (broken / "stalled").exists():
        assert child.poll() is None and time.monotonic() < limit
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (broken / "state.pt").exists() == (stall > 3)
    finish(start_child(broken, "--noise", "--resume"))
    whole, resumed = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "broken"))
    assert_same(whole, resumed)
    steps = [json.loads(line)["step"] for line in (broken / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(6))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path):
    finish(start_child(tmp_path / "one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    finish(*[start_child(tmp_path / "two", RANK=rank, LOCAL_RANK=rank, **group) for rank in "01"])
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("one", "two"))
    assert one["step"] == two["step"] == 6
    assert one["weights"]["network.never"] == two["weights"]["network.never"] == 1  # no gradient, so no decay either
    assert one["weights"]["network.rare"] != 1
    for part in ("weights", "ema"):
        # Sums in another order: relative error about 1e-6 in a gradient, times lr 0.01 for each of 6 steps.
        torch.testing.assert_close(one[part], two[part], rtol=0, atol=1e-6)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert [len(log) for log in logs] == [6, 6]  # rank 1 wrote nothing
    for alone, shared in zip(*[map(json.loads, log) for log in logs], strict=True):
        for name in ("loss", "gradient_norm"):  # AdamW after clipping would forgive a sum in place of a mean
            assert alone[name] == pytest.approx(shared[name], rel=1e-5)
