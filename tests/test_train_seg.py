"""What decides whether the comparison is fair: who trains, who selects, who is scored, and what each published habit changes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import train_seg
from emit.arms import ARMS
from emit.data.splits import Split

CLASSES = ["background", "lesion"]
SETTINGS = SimpleNamespace(
    size=8, device="cpu", steps=3, batch=4, lr=1e-3, warmup=0, schedule="constant", clip=1.0, weight_decay=0.0,
    select_every=1, resume=False, seed=0, real_cases=None, alpha=0.5, patches=2, tolerance=1.0, seeds=1,
)  # fmt: skip


def make_case(name, level=0.0, **more):
    """Return a case with a constant image and an empty mask."""
    image, mask = torch.full((1, 8, 8), level), torch.zeros(1, 8, 8, dtype=torch.int64)
    entries = dict(id=name, volume=None, index=None, spacing=None, thickness=None, load=lambda: (image[0], mask[0]))
    return SimpleNamespace(**entries | more)


class Spy(nn.Module):
    """A one-pixel network that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.conv, self.shown = nn.Conv2d(1, 2, 1), []
        self.config = SimpleNamespace(classes=2)

    def forward(self, image):
        if self.training:
            self.shown.append(image.detach().clone())
        return self.conv(image)


class FakeGenerated:
    """Generated images of 0.5 everywhere."""

    def images(self, cases, rng):
        return torch.full((len(cases), 1, 8, 8), 0.5)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return (arm name, compat) -> the images that the network was trained on; real image i is -1 + i / 10."""
    monkeypatch.setattr(train_seg, "build_segmenter", lambda classes, settings: Spy())
    parts = [make_case(f"t{i}", -1 + i / 10) for i in range(8)], [make_case("v")]

    def run(arm, compat=()):
        folder = tmp_path / arm / "-".join(("fold0", *compat))
        folder.mkdir(parents=True)
        network = train_seg.train_segmenter(ARMS[arm], parts, FakeGenerated(), CLASSES, SETTINGS, compat, folder, 0)
        return network.shown

    return run


def test_real_and_generated_pixels_are_where_the_arm_says(train):
    assert all((image < 0).all() for image in train("baseline"))
    assert all((image == 0.5).all() for image in train("generated only"))
    mixed = torch.cat(train("ours"))
    assert (mixed == 0.5).any() and (mixed < 0).any()
    first, second, third = train("generated first")
    assert (first == 0.5).all() and (second == 0.5).all() and (third < 0).all()  # half of three steps


def test_no_shuffle_and_mix_logits_change_what_is_shown(train):
    in_order = torch.cat(train("baseline", ("no_shuffle",)))[:8, 0, 0, 0]
    assert torch.allclose(in_order, -1 + torch.arange(8) / 10)
    assert not torch.allclose(torch.cat(train("baseline"))[:8, 0, 0, 0], in_order)
    shown = train("ours", ("mix_logits",))
    assert len(shown) == 2 * SETTINGS.steps  # real and generated, each whole, in two passes
    assert all((image < 0).all() for image in shown[::2]) and all((image == 0.5).all() for image in shown[1::2])


@pytest.mark.parametrize(("compat", "selects"), [((), "validation"), (("select_on_test",), "test")])
def test_weights_are_selected_on_validation_unless_asked(tmp_path, monkeypatch, compat, selects):
    seen = {}

    def train_segmenter(arm, parts, *rest):
        seen["training"], seen["selection"] = ([case.id for case in part] for part in parts)

    def score_fold(network, cases, *rest):
        seen["scored"] = [case.id for case in cases]
        return [], []

    monkeypatch.setattr(train_seg, "train_segmenter", train_segmenter)
    monkeypatch.setattr(train_seg, "score_fold", score_fold)
    parts = {name: (f"{name} 1", f"{name} 2") for name in ("train", "validation", "test")}
    cases = SimpleNamespace(cases=[make_case(name) for ids in parts.values() for name in ids], classes=CLASSES)
    settings = SimpleNamespace(**vars(SETTINGS) | {"out": tmp_path})
    train_seg.run_folder(tmp_path, "baseline", 0, 0).mkdir(parents=True)
    train_seg.run_arm("baseline", 0, 0, cases, Split(**parts), None, settings, compat)
    expected = {"training": parts["train"], "selection": parts[selects], "scored": parts["test"]}
    assert {name: tuple(ids) for name, ids in seen.items()} == expected


def test_fake_pixel_scores_an_empty_mask_as_published(tmp_path, monkeypatch):
    empty = np.zeros((8, 8), int)
    found = np.eye(8, dtype=int)
    monkeypatch.setattr(train_seg, "predict", lambda *_: {"case": (found, empty, None)})
    plain, fake = train_seg.score_fold(None, [], CLASSES, SETTINGS, (), tmp_path)
    published, again = train_seg.score_fold(None, [], CLASSES, SETTINGS, ("fake_pixel",), tmp_path)
    assert plain != published and json.dumps(published) == json.dumps(fake) == json.dumps(again)


class Fixed(nn.Module):
    """Finds what is bright: class 1 where the image is above 0."""

    config = SimpleNamespace(classes=2)

    def forward(self, image):
        return torch.cat([-image, image], dim=1)


def slices_of(volume):
    """Two slices: in the first all is found that is there, in the second nothing is there and half of it is found."""
    bright, dark = torch.ones(8, 8), -torch.ones(8, 8)
    half = torch.cat([bright[:4], dark[:4]])
    return [
        make_case(f"{volume}/1", volume=volume, index=1, spacing=(2.0, 3.0), thickness=5.0, mask=np.zeros((8, 8), int),
                  load=lambda: (half, torch.zeros(8, 8, dtype=torch.int64))),
        make_case(f"{volume}/0", volume=volume, index=0, spacing=(2.0, 3.0), thickness=5.0, mask=np.ones((8, 8), int),
                  load=lambda: (bright, torch.ones(8, 8, dtype=torch.int64))),
    ]  # fmt: skip


def test_volumes_are_scored_whole_in_selection_and_in_the_test():
    cases = slices_of("a") + slices_of("b")
    pictures = train_seg.Pictures(cases, 8)
    # 64 pixels found rightly, 32 wrongly: 2 x 64 / (96 + 64) = 0.8; by slices it would be (1 + 0) / 2
    assert train_seg.validate(Fixed(), pictures, "cpu") == pytest.approx(0.8)
    found = train_seg.predict(Fixed(), cases, 8, "cpu")
    assert found.keys() == {"a", "b"}
    prediction, target, spacing = found["a"]
    assert spacing == (5.0, 2.0, 3.0) and prediction.shape == target.shape == (2, 8, 8)
    assert target[0].all() and not target[1].any() and prediction[0].all() and prediction[1].sum() == 32  # by index


def test_mix_logits_takes_each_pixels_finding_from_the_image_it_belongs_to():
    real, generated = torch.ones(1, 1, 8, 8), -torch.ones(1, 1, 8, 8)
    here = (torch.arange(64) % 3 == 0).view(1, 1, 8, 8)
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    logits, _ = train_seg.mix_logits(WithWeights(), ARMS["ours"], real, generated, here, mask, torch.Generator())
    assert torch.equal(logits[:, 1:] > 0, here)


class WithWeights(Fixed):
    """`Fixed`, with a parameter that says on which device it is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
