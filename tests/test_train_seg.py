"""What decides whether the comparison is fair: who trains, who selects, who is scored, what each deviation changes, kills."""

import contextlib
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import train_seg
from emit import files
from emit.arms import ARMS, Arm
from emit.data.cases import Case
from emit.data.splits import Split
from emit.dataset import LabelledSet, SetSettings
from emit.errors import InputError
from emit.evaluation.folds import Fold, open_folds
from emit.ledger import Ledger
from emit.seeds import generator

CLASSES = ("background", "lesion")
SMALL = {"data": Path("phantoms"), "size": 16, "device": "cpu", "channels": (2, 4), "batch": 4}
SMALL |= {"steps": 6, "warmup": 0, "select_every": 2, "save_every": 2}
LABELLED = LabelledSet([], CLASSES, [], SetSettings(data=Path("phantoms"), window=(-100.0, 200.0)))


def make_settings(out, **change):
    return train_seg.Settings(**SMALL | {"out": out} | change)


def make_case(name, level=None):
    """Return a case with a constant image, or with noise around a darker square, the lesion."""
    image, mask = np.full((16, 16), level, np.float32), np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 1
    if level is None:
        image = torch.randn(16, 16, generator=generator(name)).numpy() / 4 - mask
    return Case(name, name, "", "", name, lambda path: (image, mask))


class FakeGenerated:
    """Generated images of 0.5 everywhere, all lesion."""

    ledger = Ledger().add("pre-training", np.array([1, 2], np.uint64))

    def draw(self, cases, rng):
        return torch.full((len(cases), 1, 16, 16), 0.5), torch.ones(len(cases), 16, 16, dtype=torch.long)

    def pairs(self):
        return [("t0", torch.full((1, 1, 16, 16), 0.5), np.ones((16, 16), np.uint8))]


def make_fold(**change):
    """Return a fold of 8 training cases, whose images are -1 + i / 10, 2 of validation and 3 of the test."""
    training = [make_case(f"t{i}", -1 + i / 10) for i in range(8)]
    parts = [[make_case(f"{part}{i}") for i in range(count)] for part, count in (("v", 2), ("test", 3))]
    return replace(Fold(0, LABELLED, training, parts[0], {"": parts[1]}, FakeGenerated(), FakeGenerated()), **change)


class Spy(nn.Module):
    """A one-pixel network that keeps what it was shown."""

    def __init__(self, config):
        super().__init__()
        self.conv, self.shown, self.config = nn.Conv2d(1, 2, 1), [], config

    def forward(self, image):
        if self.training:
            self.shown.append(image.detach().clone())
        return self.conv(image)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return (arm, settings) -> the images that the network was trained on; real image i is -1 + i / 10."""
    monkeypatch.setattr(train_seg, "Segmenter", Spy)
    runs = itertools.count()

    def run(arm, **change):
        arm = arm if isinstance(arm, Arm) else ARMS[arm]
        settings = make_settings(tmp_path, **{"steps": 3} | change)
        return train_seg.train_segmenter(arm, make_fold(), settings, tmp_path / str(next(runs)), 0).shown

    return run


def test_real_and_generated_pixels_are_where_the_arm_says(train):
    assert all((image < 0).all() for image in train("baseline"))
    assert all((image == 0.5).all() for image in train("generated only"))
    patches = torch.cat(train("ours")) == 0.5
    assert 0 < patches.float().mean() < 1 and patches.flatten(1).any(1).all()
    mixed = (torch.cat(train("mixed", steps=12)) == 0.5).flatten(1)
    assert torch.equal(mixed.any(1), mixed.all(1)) and mixed.any() and not mixed.all()  # each image is one or the other
    first, second, third = train("generated first")
    assert (first == 0.5).all() and (second == 0.5).all() and (third < 0).all()  # half of three steps


@pytest.mark.parametrize("arm", ["ours", "mixed", "generated first", "oracle"])
def test_labels_come_from_where_the_pixels_do(train, monkeypatch, arm):
    seen = []
    monkeypatch.setattr(train_seg, "dice_ce_loss", lambda logits, mask: seen.append(mask) or logits.mean())
    image, mask = torch.cat(train(arm))[:, 0], torch.cat(seen)
    lesion = torch.zeros(16, 16, dtype=torch.long)
    lesion[4:9, 4:9] = 1  # of every real case
    assert torch.equal(mask, torch.where(image == 0.5, 1, lesion)) and (image == 0.5).any() and (image < 0).any()


def test_no_shuffle_shows_the_cases_in_order(train):
    in_order = torch.cat(train("baseline", compat=("no_shuffle",)))[:8, 0, 0, 0]
    assert torch.allclose(in_order, -1 + torch.arange(8) / 10, atol=1e-6)  # float32
    assert not torch.allclose(torch.cat(train("baseline"))[:8, 0, 0, 0], in_order)


def test_mix_logits_takes_each_pixels_finding_from_the_image_it_belongs_to(train, monkeypatch):
    seen = []
    monkeypatch.setattr(Spy, "forward", lambda self, image: self.shown.append(image) or self.conv(0 * image) + image)
    monkeypatch.setattr(train_seg, "dice_ce_loss", lambda logits, mask: seen.append(logits) or logits.mean())
    monkeypatch.setattr(train_seg, "validate", lambda *_: 0.0)
    here = (torch.arange(256) % 3 == 0).view(1, 1, 16, 16)
    shown = train(Arm(real=lambda *_: here, source="generated"), compat=("mix_logits",), steps=1)
    assert len(shown) == 2 and (shown[0] < 0).all() and (shown[1] == 0.5).all()  # each whole, in two passes
    bias = seen[0][0, :, 0, 1] - 0.5  # of this network; the pixel is generated
    expected = torch.where(here, shown[0], shown[1]) + bias[:, None, None]
    assert torch.allclose(seen[0], expected, atol=1e-6)  # float32


@pytest.mark.parametrize(("compat", "selects"), [((), "validation"), (("select_on_test",), "test")])
def test_weights_are_selected_on_validation_unless_asked(tmp_path, compat, selects):
    parts = {name: (f"{name} 1", f"{name} 2") for name in ("train", "validation", "test")}
    labelled = replace(LABELLED, cases=[make_case(name) for ids in parts.values() for name in ids], splits=[Split(**parts)])
    (fold,) = open_folds(make_settings(tmp_path, compat=compat), {"": labelled})
    found = [tuple(case.id for case in part) for part in (fold.training, fold.validation, fold.tests[""])]
    assert found == [parts["train"], parts[selects], parts["test"]]


def test_the_test_part_is_scored_and_the_baseline_judges_the_generated_images(tmp_path):
    for arm, judged in (("baseline", 1), ("ours", 0)):
        found = train_seg.run_arm(arm, make_fold(), 0, make_settings(tmp_path))[""]
        assert [row["case"] for row in found["rows"]] == ["test0", "test1", "test2"] and len(found["fidelity"]) == judged
        assert all((row["arm"], row["fold"], row["seed"]) == (arm, 0, 0) for row in found["rows"])


@pytest.mark.parametrize(("compat", "expected"), [((), False), (("fake_pixel",), True)])
def test_empty_masks_are_scored_as_they_are_unless_asked(tmp_path, monkeypatch, compat, expected):
    asked = []
    monkeypatch.setattr(train_seg, "score", lambda *arguments: asked.append(arguments[-1]) or [])
    train_seg.run_arm("mirror", make_fold(), 0, make_settings(tmp_path, compat=compat))
    assert asked == [expected]


@pytest.mark.parametrize(
    ("parts", "dice", "chosen"), [({}, [0.2, 0.6, 0.6, 0.1], 2), ({}, [0.9, 0.6, 0.6, 0.1], 0), ({"validation": []}, [], 3)]
)
def test_the_best_weights_are_taken_the_latest_of_equals_and_the_last_without_validation(
    tmp_path, monkeypatch, parts, dice, chosen
):
    saved, looks = [], iter(dice)

    def validate(network, pictures):
        saved.append({name: value.clone() for name, value in network.state_dict().items()})
        assert [case.id for case in pictures.cases] == ["v0", "v1"]
        return next(looks)

    monkeypatch.setattr(train_seg, "validate", validate)
    settings, fold = make_settings(tmp_path, steps=7), make_fold(**parts)
    network = train_seg.train_segmenter(ARMS["baseline"], fold, settings, tmp_path / "run", 0)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["weights"]
    last = {name: state[f"segmenter.{name}"] for name in dict(network.named_parameters())}
    expected = last if chosen == 3 else saved[chosen]
    assert all(torch.equal(value, expected[name]) for name, value in network.named_parameters())
    assert chosen == 3 or not torch.equal(expected["head.bias"], last["head.bias"])
    assert [line["dice"] for line in train_seg.read_lines(tmp_path / "run" / "validation.jsonl")] == dice


def test_the_weights_file_says_what_is_needed_to_use_it(tmp_path):
    settings = make_settings(tmp_path, steps=1)
    train_seg.train_segmenter(ARMS["baseline"], make_fold(), settings, tmp_path / "run", 0)
    with safe_open(tmp_path / "run" / "segmenter.safetensors", "pt") as file:
        header = json.loads(file.metadata()["emit"])
    assert header["config"] == {"in_channels": 1, "classes": 2, "channels": [2, 4], "variant": "attention"}
    assert header["classes"] == list(CLASSES) and header["size"] == 16 and header["reading"]["window"] == [-100, 200]


@pytest.mark.parametrize("content", [None, b"", b"cut off"])
@pytest.mark.parametrize("name", ["segmenter.safetensors", "scores.json"])
def test_a_finished_run_with_a_damaged_file_says_so(tmp_path, name, content):
    train_seg.run_arm("baseline", make_fold(), 0, make_settings(tmp_path))
    folder = tmp_path / "baseline" / "fold0_seed0"
    (folder / "scores.json").unlink() if name != "scores.json" else None
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    again = contextlib.nullcontext() if (name, content) == ("scores.json", None) else pytest.raises(InputError, match=name)
    with again:  # scores that are not there are made again
        train_seg.run_arm("baseline", make_fold(), 0, make_settings(tmp_path, resume=True))


class Killed(BaseException):
    """The process ends here."""


def read_run(folder):
    """Return what a run leaves: weights, looks at validation, labels, scores."""
    lines = [json.loads(text) for text in (folder / "validation.jsonl").read_text().splitlines()]
    with np.load(folder / "predictions.npz") as file:
        labels = {name: file[name].tolist() for name in file}
    weights = {name: value.tolist() for name, value in load_file(folder / "segmenter.safetensors").items()}
    return weights, lines, labels, json.loads((folder / "scores.json").read_text())


@pytest.fixture
def uneven(monkeypatch):
    """Let the Dice go up and down with the weights, so that the best look is neither the first nor the last."""

    def validate(network, pictures):
        return math.sin(16 * sum(value.double().sum().item() for value in network.parameters())) / 2 + 0.5

    monkeypatch.setattr(train_seg, "validate", validate)


def test_a_kill_before_any_write_resumes_to_the_same_result(tmp_path, monkeypatch, uneven):
    writes, replace_file, limit = itertools.count(), files.os.replace, math.inf

    def write(source, target):
        if next(writes) == limit:
            raise Killed
        replace_file(source, target)

    monkeypatch.setattr(files.os, "replace", write)
    fold, place = make_fold(), "baseline/fold0_seed0"
    train_seg.run_arm("baseline", fold, 0, make_settings(tmp_path / "whole"))
    whole, total = read_run(tmp_path / "whole" / place), next(writes)
    dice = [line["dice"] for line in whole[1]]
    assert dice.index(max(dice)) == 1 and total > 10
    for limit in range(total):
        out, writes = tmp_path / str(limit), itertools.count()
        with pytest.raises(Killed):
            train_seg.run_arm("baseline", fold, 0, make_settings(out))
        train_seg.run_arm("baseline", fold, 0, make_settings(out, resume=True))
        assert read_run(out / place) == whole, limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": 6}, "warmup must be from 0 to steps - 1 = 5"),
        ({"sweep": ("patches=2", "17")}, "--patches: is 17, more than the 16"),
        ({"sweep": ("n=1", "2")}, "give --generated"),
        ({"compat": ("one_seed",)}, "--compat: one_seed"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(train_seg, "open_set", lambda *_: LABELLED)
    with pytest.raises(InputError, match=message):
        for run in train_seg.plan_runs(make_settings(tmp_path, **change))[1].values():
            train_seg.open_labelled(run)


def test_a_sweep_of_images_reads_each_values_own_folder(tmp_path):
    settings = make_settings(tmp_path, sweep=("guidance=1", "2.5"), generated=tmp_path / "made")
    name, runs = train_seg.plan_runs(settings)
    assert name == "guidance" and {run.generated for run in runs.values()} == {
        tmp_path / "made" / f"guidance_{v}" for v in ("1", "2.5")
    }


@pytest.mark.parametrize("change", [{"ema": 0.9}, {"precision": "bf16"}])
def test_average_and_precision_reach_the_segmenter(tmp_path, change):
    weights = []
    for place, settings in enumerate((make_settings(tmp_path), make_settings(tmp_path, **change))):
        network = train_seg.train_segmenter(ARMS["nnunet"], make_fold(), settings, tmp_path / str(place), 0)
        weights.append(torch.cat([parameter.flatten() for parameter in network.parameters()]))
    assert not torch.equal(*weights)


def test_folders_of_a_sweep_must_be_what_their_names_say(tmp_path, monkeypatch):
    made = replace(LABELLED, real_cases=16)
    monkeypatch.setattr(train_seg, "open_set", lambda *_: made)
    with pytest.raises(InputError, match="were made with --real-cases 16, not 8; generate them anew"):
        train_seg.open_labelled(make_settings(tmp_path, generated=tmp_path, real_cases=8))
    assert train_seg.open_labelled(make_settings(tmp_path, generated=tmp_path, real_cases=16)) is made
