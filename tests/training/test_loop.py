"""One step of the loop, its numbers and its guards; test_resume.py stops runs and lets them go on."""

import contextlib
import json
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from emit.errors import InputError, Stopped
from emit.evaluation import figures
from emit.training import distributed, loop
from emit.training.loop import Run, ema_decay, learning_rate
from emit.training.settings import RunSettings


class Numbers:
    """Sample i is the number i / 10, plus noise times a draw."""

    def __init__(self, samples=10, noise=0.0):
        self.samples, self.noise = samples, noise

    def __len__(self):
        return self.samples

    def batch(self, indices, rng):
        draws = torch.randn(len(indices), 1, generator=rng)
        return torch.tensor(indices, dtype=torch.float32)[:, None] / 10 + self.noise * draws


def make_network(width=4):
    network = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    rng = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng)
    return network


def make_weight(*values):
    """Return a module with one weight vector, so that losses and gradients can be written down."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.tensor(values))
    return module


OPTIONS = ("shuffle", "log_every")  # of Run itself
PLAIN = {"lr": 0.01, "steps": 6, "batch": 8, "seed": 0, "ema": 0.0, "warmup": 0, "schedule": "constant"}


def start(folder, module, **changes):
    own = {name: changes.pop(name) for name in OPTIONS if name in changes}
    return Run(folder, {"m": module}, RunSettings(**{**PLAIN, **changes}), **own)


def train(folder, data=None, **changes):
    """Train the small network to be the sine; return its weights as one vector."""
    network = make_network()
    run = start(folder, network, **changes)
    for _, x in run.steps(data or Numbers()):
        run.update((network(x) - torch.sin(x)).square().mean())
    run.finish()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- learning rate


@pytest.mark.parametrize(
    "step, constant, cosine",  # lr 1, 12 steps, 2 of warm-up; cosine: (1 + cos(pi (step - 2) / 10)) / 2
    [
        (0, 0.5, 0.5),
        (1, 1.0, 1.0),
        (2, 1.0, 1.0),
        (7, 1.0, 0.5),  # half-way: cos(pi / 2) = 0
        (11, 1.0, (1 - math.sqrt(10 + 2 * math.sqrt(5)) / 4) / 2),  # cos(9 pi / 10) = -sqrt(10 + 2 sqrt 5) / 4
    ],
)
def test_learning_rate(step, constant, cosine):
    assert learning_rate(step, 1.0, 12, warmup=2) == constant
    assert learning_rate(step, 1.0, 12, warmup=2, schedule="cosine") == pytest.approx(cosine, abs=1e-15)


def test_the_run_uses_the_learning_rate_of_its_step(tmp_path):
    """With gradient 1 throughout, AdamW moves by lr (its moments are 1 after bias correction) (1 + 0.01 weight)."""
    module = make_weight(0.0)
    run = start(tmp_path, module, lr=0.1, steps=4, warmup=2, schedule="cosine", log_every=1, batch=1)
    places = [0.0]
    for _ in run.steps(Numbers()):
        run.update(module.weight.sum())
        places.append(module.weight.item())
    rates = [0.05, 0.1, 0.1, 0.05]
    moves = [(before - after) / (1 + 0.01 * before) for before, after in pairwise(places)]
    assert moves == pytest.approx(rates, rel=1e-5)  # float32, and AdamW's 1e-8 in the denominator
    assert [line["lr"] for line in read_log(tmp_path)] == pytest.approx(rates, rel=1e-12)
    assert [line["gradient_norm"] for line in read_log(tmp_path)] == [1, 1, 1, 1]  # none is left from the step before


# ---- one step


@pytest.mark.parametrize(("clip", "moment"), [(2.0, [0.12, 0.16]), (math.inf, [0.3, 0.4]), (7.0, [0.3, 0.4])])
def test_gradients_are_clipped_by_their_norm(tmp_path, monkeypatch, clip, moment):
    """Gradient (3, 4), norm 5, clipped to 2: (1.2, 1.6); AdamW's first moment after one step is a tenth of it."""
    monkeypatch.setattr(loop, "CLIP", clip)
    run = start(tmp_path, module := make_weight(0.0, 0.0), steps=1)
    for _ in run.steps(Numbers()):
        run.update((module.weight * torch.tensor([3.0, 4.0])).sum())
    first = run.optimizer.state[module.weight]["exp_avg"]
    assert first.tolist() == pytest.approx(moment, rel=1e-6)  # clip_grad_norm_ adds 1e-6 to the norm
    assert read_log(tmp_path)[0]["gradient_norm"] == pytest.approx(5.0)  # before clipping


def test_two_halves_are_one_batch(tmp_path):
    """Sums in another order: relative error about 1e-6 in a gradient, times lr 0.01 for each of 6 steps."""
    whole, halves = train(tmp_path / "1"), train(tmp_path / "2", accumulate=2)
    torch.testing.assert_close(whole, halves, rtol=0, atol=1e-6)
    losses = [[line["loss"] for line in read_log(tmp_path / name)] for name in "12"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_average_against_its_closed_form(tmp_path):
    """ema_n = sum_k w_k (1 - d_k) d_{k+1} .. d_n with d_0 = 0: what the recursion adds up to, in float64."""
    module = make_weight(1.0, -2.0)
    run = start(tmp_path, module, ema=0.3, steps=5, lr=0.1)
    weights = [module.weight.detach().double()]
    for step, _ in run.steps(Numbers()):
        run.update(((module.weight - step) ** 2).sum())
        weights.append(module.weight.detach().double())
    decays = [0.0, 2 / 11, 3 / 12, 0.3, 0.3, 0.3]  # 4/13 > 0.3
    assert [ema_decay(n, 0.3) for n in range(1, 6)] == decays[1:]
    expected = sum(weights[k] * (1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(6))
    raw = module.weight.detach().clone()
    with contextlib.suppress(ValueError), run.ema_weights():
        torch.testing.assert_close(module.weight.double(), expected, rtol=1e-6, atol=0)  # a few float32 roundings
        raise ValueError
    assert torch.equal(module.weight, raw)
    run.finish()
    torch.testing.assert_close(module.weight.double(), expected, rtol=1e-6, atol=0)


def test_bfloat16_computes_and_float32_remembers(tmp_path):
    network = make_network()
    run = start(tmp_path, network, precision="bf16", steps=1)
    for _, x in run.steps(Numbers()):
        with run.autocast():
            out = network(x)
        assert out.dtype == torch.bfloat16
        run.update(out.square().mean())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    with start(tmp_path / "plain", network).autocast():
        assert network(torch.ones(1, 1)).dtype == torch.float32


# ---- order and draws


def test_each_step_has_its_own_draws_and_the_seed_makes_them(tmp_path):
    def draw(folder, seed):
        run = start(folder, module := make_weight(1.0), seed=seed, steps=3)
        draws = []
        for _, batch in run.steps(Numbers(samples=1, noise=1.0)):  # sample 0 is 0: the batch is noise alone
            draws += [torch.randn(1, generator=run.rng).item(), batch.sum().item()]
            run.update(module.weight.sum())
        return draws

    first = draw(tmp_path / "1", 0)
    assert len(set(first)) == 6
    assert draw(tmp_path / "2", 0) == first
    assert not set(draw(tmp_path / "3", 1)) & set(first)


def test_the_parts_of_a_step_are_its_batch(tmp_path):
    run = start(tmp_path, module := make_weight(1.0), steps=5, batch=4, accumulate=2)
    seen = []
    for step, batch in run.steps(Numbers(samples=10)):
        seen.append((step, [round(10 * x) for x in batch.flatten().tolist()]))
        run.update(module.weight.sum())
    assert [step for step, _ in seen] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    numbers = [number for _, batch in seen for number in batch]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))  # 20 samples: two epochs


# ---- log


def test_the_log_holds_means_since_its_last_line(tmp_path):
    module = make_weight(0.0)
    run = start(tmp_path, module, steps=5, log_every=2)
    for step, _ in run.steps(Numbers()):
        extra = {"always": float(step), "tensor": torch.tensor(step), "never": None}
        rare = 7.0 if step == 1 else math.nan
        run.update(module.weight.sum() * 0 + 2.0**step, rare=rare, **extra)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [1, 3, 4]  # and the last step
    assert [line["loss"] for line in lines] == [1.5, 6.0, 16.0]
    assert [line["always"] for line in lines] == [line["tensor"] for line in lines] == [0.5, 2.5, 4.0]
    assert [line.get("rare") for line in lines] == [7.0, None, None]
    assert not any("never" in line for line in lines)
    assert all(line["gradient_norm"] == 0 and line["images_per_second"] > 0 for line in lines)


def test_due_once_every_n_steps(tmp_path):
    run = start(tmp_path, module := make_weight(1.0), steps=7, batch=2, accumulate=2)
    before, after, never = [], [], []
    for step, _ in run.steps(Numbers()):
        before += [step] * run.due(3)
        never += [step] * run.due(0)
        run.update(module.weight.sum())
        after += [step] * run.due(3)
    assert before == after == [2, 5] and never == []


# ---- curves and forecast


@pytest.fixture
def clock(monkeypatch):
    """Stand in for the time: clock.now, in seconds, goes on where a test says so."""
    clock = SimpleNamespace(now=1.0)
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def test_curves_show_the_logs_and_a_later_run_changes_them_whole(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(loop, "save_curves", lambda *given: (drawn.append(given), figures.save_curves(*given)))
    run = start(tmp_path, module := make_weight(0.0), lr=0.5, steps=4, log_every=2, warmup=2)
    for step, _ in run.steps(Numbers()):
        run.update(0 * module.weight.sum() + step, hint_true=step if step == 1 else None, q1=9)
        loop.write_lines(tmp_path / "validation.jsonl", [{"step": 3, "dice": 0.75}])
    ((path, curves),) = drawn
    assert path == tmp_path / "curves.png" and path.read_bytes()[:4] == b"\x89PNG"
    expected = {"loss": {"loss": [((1, 3), (0.5, 2.5))]}, "learning rate": {"lr": [((1, 3), (0.5, 0.5))]}}
    expected |= {"loss of the probes": {"hint_true": [((1,), (1.0,))]}, "validation Dice": {"dice": [((3,), (0.75,))]}}
    assert curves == expected and list(curves) == list(expected)  # the order of panels too


@pytest.mark.parametrize(
    ("steps", "seconds", "every", "expected"),
    [
        # From 60 s on, 50 s after a drawing of 0.5 s at the earliest, where a state is saved, before it, and at the end.
        (20, 10, {"save_every": 6, "log_every": 1}, [(6, False), (12, True), (18, True), (20, True)]),
        (20, 10, {"save_every": 1, "log_every": 5}, [(6, True), (11, True), (16, True), (20, True)]),
        (3, 100, {"save_every": 1, "log_every": 3}, [(3, True)]),  # before it the log was empty
    ],
)
def test_drawings_take_a_hundredth_of_the_time_and_the_last_one_is_made(
    tmp_path, monkeypatch, clock, capsys, steps, seconds, every, expected
):
    drawn = []

    def draw(path, curves):
        clock.now += 0.5
        drawn.append((run.done, (tmp_path / "state.pt").exists()))

    monkeypatch.setattr(loop, "save_curves", draw)
    run = start(tmp_path, module := make_weight(1.0), steps=steps, **every)
    for _ in run.steps(Numbers()):
        clock.now += seconds
        run.update(module.weight.sum())
    assert drawn == expected and "run: " not in capsys.readouterr().out


def test_curves_that_fail_cost_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "save_curves", lambda *_: 1 / 0)
    train(tmp_path)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 6
    assert capsys.readouterr().out == f"{tmp_path / 'curves.png'}: not drawn (ZeroDivisionError: division by zero)\n"


def forecasts(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if " images on " in line]


@pytest.mark.parametrize(
    ("steps", "seconds", "said_after", "words"),
    [
        (1000, 0.75, 3, "1,000 steps of 8 images on cpu in float32: about 12 min at 0.75 s a step"),  # 1.5 s are measured
        (400, 100.0, 2, "400 steps of 8 images on cpu in float32: about 11.1 h at 2 min a step"),
        (4, 0.25, 4, "4 steps of 8 images on cpu in float32: about 1 s at 0.25 s a step"),  # too short to measure 1 s
        (1, 3.0, 1, "1 steps of 8 images on cpu in float32: about 60 s at 60 s a step"),  # all there is to measure
    ],
)
def test_each_part_says_once_how_long_it_takes(tmp_path, clock, capsys, steps, seconds, said_after, words):
    run, said = start(tmp_path / "run", module := make_weight(1.0), steps=steps), []
    for step, _ in run.steps(Numbers()):
        said += [(step, line) for line in forecasts(capsys)]
        if step == 5:
            break
        clock.now += 60 if step == 0 else seconds  # the first step loads and compiles
        run.update(module.weight.sum())
    said += [(steps, line) for line in forecasts(capsys)]
    assert said == [(said_after, f"run: {words}")]


def test_a_resumed_part_says_what_is_left_and_one_that_is_done_nothing(tmp_path, capsys, monkeypatch):
    for asked, words in ((iter([None, None, 15]), None), (iter([None] * 3), "3 of 6 steps of 8 images on cpu"), (None, None)):
        monkeypatch.setattr(loop, "asked_to_stop", lambda asked=asked: next(asked))
        with contextlib.suppress(Stopped):
            train(tmp_path, resume=True)
        assert [words in line for line in forecasts(capsys)] == ([True] if words else [])


@pytest.mark.parametrize(("rank", "ranks", "place"), [(0, 1, "mps"), (0, 4, "4 x mps"), (3, 4, None)])
def test_the_forecast_names_the_devices_and_rank_0_says_it(monkeypatch, capsys, rank, ranks, place):
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "ranks", lambda: ranks)
    loop.forecast("fold0: 9 batches of 4 images", torch.device("mps"), "bf16", "batch", 20.0, 9)
    expected = f"fold0: 9 batches of 4 images on {place} in bf16: about 3 min at 20 s a batch\n"
    assert capsys.readouterr().err == (expected if place else "")


# ---- guards


BAD = {"loss": lambda weight: weight.sum() + math.inf, "gradient": lambda weight: (weight * 0).sqrt().sum()}  # 0 times infinity


@pytest.mark.parametrize("kind", BAD)
def test_a_number_that_is_not_finite_stops_before_step_and_save(tmp_path, kind):
    module = make_weight(1.0, 2.0)
    run = start(tmp_path, module, save_every=2, log_every=1, ema=0.5)
    with pytest.raises(InputError) as raised:
        for step, _ in run.steps(Numbers()):
            if step == 4:
                good, saved = module.weight.detach().clone(), (tmp_path / "state.pt").read_bytes()
            run.update(BAD[kind](module.weight) if step == 4 else module.weight.square().sum())
    assert "at step 4" in str(raised.value) and "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"{tmp_path}: loss ")
    assert torch.equal(module.weight, good)
    assert (tmp_path / "state.pt").read_bytes() == saved
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == 4 and torch.equal(state["weights"]["m.weight"], good)
    assert [line["step"] for line in read_log(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"batch": 8, "accumulate": 3}, "run: batch must be a multiple of accumulate x processes = 3"),
        ({"warmup": 6}, "run: warmup must be from 0 to steps - 1 = 5"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        start(tmp_path / "run", make_weight(1.0), **changes)
    assert not (tmp_path / "run").exists()


def test_a_body_that_forgets_to_update_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"must call run.update\(loss\) once for each batch"):
        for _ in start(tmp_path, make_weight(1.0)).steps(Numbers()):
            pass


def test_nothing_to_train_on_leaves_the_folder_free(tmp_path):
    with pytest.raises(InputError, match="the training set is empty"):
        next(start(tmp_path, make_weight(1.0)).steps(Numbers(samples=0)))
    start(tmp_path, make_weight(1.0))  # no "already holds a run"


def test_only_what_is_trained_is_kept(tmp_path):
    network = make_network()
    network[0].requires_grad_(False)
    frozen = network[0].weight.clone()
    run = start(tmp_path, network, steps=1)
    for _, x in run.steps(Numbers()):
        run.update(network(x).mean())
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert list(state["weights"]) == ["m.2.weight", "m.2.bias"]
    assert torch.equal(network[0].weight, frozen)
