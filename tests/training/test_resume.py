"""A run that was stopped and goes on equals one that was not, bit for bit (tests/reliability kills real ones)."""

import json
import math

import pytest
import torch

from emit.errors import InputError, Stopped
from emit.training import loop
from emit.training.loop import Run
from emit.training.settings import RunSettings

SETTINGS = {"lr": 0.02, "steps": 6, "batch": 4, "seed": 5, "ema": 0.9, "warmup": 2, "schedule": "cosine"}
SETTINGS |= {"save_every": 3}
VARIANTS = [{}, {"accumulate": 2}, {"precision": "bf16"}, {"log_every": 1}]


class Stop(Exception):
    """Stands for a crash."""


class Points:
    """Sample i is a point of the plane, moved by a draw."""

    def __len__(self):
        return 7

    def batch(self, indices, rng):
        angle = torch.tensor(indices, dtype=torch.float32)[:, None]
        return torch.cat([angle.sin(), angle.cos()], 1) + 0.1 * torch.randn(len(indices), 2, generator=rng)


def make_network():
    """Return a network with a buffer that training moves (the batch norm's)."""
    layers = torch.nn.Linear(2, 5), torch.nn.BatchNorm1d(5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    network = torch.nn.Sequential(*layers)
    rng = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return network


def train(folder, stop=None, data=None, log_every=2, **changes):
    """Learn to remove noise; raise Stop in the body of step `stop`. Return the run and the steps it made."""
    network = make_network()
    run = Run(folder, {"network": network}, RunSettings(**{**SETTINGS, **changes}), log_every=log_every)
    made = []
    for step, points in run.steps(data or Points()):
        if step == stop:
            raise Stop
        noise = torch.randn(points.shape, generator=run.rng)
        with run.autocast():
            loss = (network(points + noise) - noise).square().mean()
        run.update(loss, noise=noise.square().mean())
        made.append(step)
    return run, made


def read_log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second")  # time is not part of the promise
    return lines


def assert_same_run(one, other):
    """Require equal weights, buffers, averages, optimiser states (bit for bit) and logs."""
    first, second = (run.modules["network"].state_dict() for run in (one, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(a, b) for a, b in zip(one.ema, other.ema, strict=True))
    for a, b in zip(one.parameters, other.parameters, strict=True):
        states = one.optimizer.state[a], other.optimizer.state[b]
        assert set(states[0]) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert read_log(one.folder) == read_log(other.folder)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("stop", [2, 3, 5])  # before the first state.pt, right after it, with steps to be made again
def test_six_steps_are_three_a_stop_and_three(tmp_path, stop, changes):
    whole, _ = train(tmp_path / "whole", **changes)
    with pytest.raises(Stop):
        train(tmp_path / "broken", stop=stop, **changes)
    resumed, made = train(tmp_path / "broken", resume=True, **changes)
    assert sorted(set(made)) == list(range(3 if stop >= 3 else 0, 6))
    assert_same_run(whole, resumed)


def test_the_state_is_written_after_the_body(tmp_path):
    """What the body wrote at a step is there before the state that says so: a crash in it repeats the step."""
    steps = []
    run = Run(tmp_path, {"network": make_network()}, RunSettings(**SETTINGS))
    with pytest.raises(Stop):
        for step, points in run.steps(Points()):
            run.update(run.modules["network"](points).square().mean())
            steps.append((step, (tmp_path / "state.pt").exists()))
            if step == 5:
                raise Stop
    assert steps == [(0, False), (1, False), (2, False), (3, True), (4, True), (5, True)]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3


def test_a_signal_ends_the_run_after_a_saved_step_and_it_goes_on_to_the_same_result(tmp_path, monkeypatch):
    whole, _ = train(tmp_path / "whole")
    asked = iter([None, 15])
    monkeypatch.setattr(loop, "asked_to_stop", lambda: next(asked))
    with pytest.raises(Stopped) as stopped:
        train(tmp_path / "broken")
    assert stopped.value.args == (15,)
    assert torch.load(tmp_path / "broken" / "state.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(loop, "asked_to_stop", lambda: None)
    resumed, made = train(tmp_path / "broken", resume=True)
    assert made == [2, 3, 4, 5]
    assert_same_run(whole, resumed)


class Counted(Points):
    """Points that count what was read."""

    def __init__(self):
        self.hashes = torch.zeros(7, dtype=torch.int64)

    def batch(self, indices, rng):
        self.hashes[indices] = torch.tensor(indices) + 100
        return super().batch(indices, rng)


def test_what_was_read_before_a_stop_is_still_counted(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, stop=3, data=Counted())
    data = Counted()
    train(tmp_path, resume=True, data=data)
    assert data.hashes.tolist() == [100, 101, 102, 103, 104, 105, 106]
    assert torch.equal(torch.load(tmp_path / "state.pt", weights_only=True)["hashes"], data.hashes)
    data = Counted()
    train(tmp_path, resume=True, data=data)  # finished: nothing is read any more
    assert data.hashes.tolist() == [100, 101, 102, 103, 104, 105, 106]


def test_a_half_written_line_of_the_log_goes(tmp_path):
    whole, _ = train(tmp_path / "whole", log_every=1)
    with pytest.raises(Stop):
        train(tmp_path / "broken", stop=5, log_every=1)
    with open(tmp_path / "broken" / "log.jsonl", "a") as log:
        log.write('{"step": 5, "lo')
    assert_same_run(whole, train(tmp_path / "broken", resume=True, log_every=1)[0])
    assert [line["step"] for line in read_log(tmp_path / "broken")] == list(range(6))


def test_a_finished_run_is_loaded_and_makes_no_step(tmp_path):
    whole, _ = train(tmp_path)
    again, made = train(tmp_path, resume=True)
    state = torch.load(tmp_path / "state.pt", weights_only=True)  # tensors and plain numbers
    assert made == [] and [len(state[part]) for part in ("weights", "buffers", "ema")] == [6, 3, 6]
    assert_same_run(whole, again)
    average = [tensor.clone() for tensor in again.ema]
    again.finish()
    assert all(torch.equal(a, b) for a, b in zip(average, again.parameters, strict=True))


def test_resume_in_an_empty_folder_starts(tmp_path):
    assert_same_run(train(tmp_path / "1")[0], train(tmp_path / "2", resume=True)[0])


@pytest.mark.parametrize("stop", [2, 5, None])  # only a log, a log and a state, finished
def test_a_used_folder_needs_resume(tmp_path, stop):
    if stop is None:
        train(tmp_path)
    else:
        with pytest.raises(Stop):
            train(tmp_path, stop=stop)
    before = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a run; go on with --resume or choose another folder"):
        train(tmp_path)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    (tmp_path / "state.pt").unlink(missing_ok=True)
    (tmp_path / "log.jsonl").write_text('{"step": 0, "lo')  # all that a kill left
    with pytest.raises(InputError, match="already holds a run"):
        train(tmp_path)


def test_another_model_or_a_damaged_state_is_refused(tmp_path):
    train(tmp_path)
    wider = make_network()
    wider[3] = torch.nn.Linear(5, 3)
    for other in (torch.nn.Linear(2, 5), wider):  # other names; one other size
        with pytest.raises(InputError, match="holds another model's weights"):
            Run(tmp_path, {"network": other}, RunSettings(resume=True, **SETTINGS))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    moments = {0: state["optimizer"]["state"][0] | {"exp_avg": torch.zeros(9)}}
    faults = {"step": 99, "sums": {"loss": "x"}, "ema": [torch.zeros(9)], "optimizer": state["optimizer"] | {"state": moments}}
    faults["weights"] = {name: weight * math.nan for name, weight in state["weights"].items()}
    faulty = [state | {name: value} for name, value in faults.items()]
    for other in (torch.ones(3), {"weights": {}}, {"weights": 1, "buffers": 2}, *faulty, None):
        torch.save(other, tmp_path / "state.pt")
        if other is None:
            (tmp_path / "state.pt").write_bytes(b"nonsense")
        with pytest.raises(InputError, match="is no state of this run, or is damaged"):
            train(tmp_path, resume=True)
