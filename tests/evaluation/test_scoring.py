"""What a segmenter finds: volumes as a whole, on the native grid, ties, and scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from emit.data.cache import TrainingImages
from emit.data.cases import Case
from emit.evaluation.scoring import find_labels, predict, save_labels, score, validate


class Fixed(nn.Module):
    """Finds what is bright: class 1 where the image is above 0."""

    config = SimpleNamespace(classes=2)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))  # says on which device it is

    def forward(self, image):
        return torch.cat([-image, image], dim=1)


def make_case(name, image, mask, **more):
    image, mask = np.asarray(image, np.float32), np.asarray(mask, np.uint8)
    return Case(name, name, "", "", name, lambda path: (image, mask), **more)


def slices_of(volume):
    """Two slices: in the first all is found that is there, in the second nothing is there and half of it is found."""
    bright, none = np.ones((8, 8)), np.zeros((8, 8))
    half = np.concatenate([bright[:4], -bright[4:]])
    more = {"volume": volume, "spacing": (2.0, 3.0), "thickness": 5.0}
    return [make_case(f"{volume}/1", half, none, index=1, **more), make_case(f"{volume}/0", bright, bright, index=0, **more)]


def test_volumes_are_scored_whole_in_selection_and_in_the_test():
    cases = slices_of("a") + slices_of("b")
    # 64 pixels found rightly, 32 wrongly: 2 x 64 / (96 + 64) = 0.8; by slices it would be (1 + 0) / 2
    assert validate(Fixed(), TrainingImages(cases, 8)) == pytest.approx(0.8, abs=1e-12)
    found = predict(Fixed(), cases, 8)
    assert list(found) == ["a", "b"]
    labels, target, spacing = found["a"]
    assert spacing == (5.0, 2.0, 3.0) and labels.shape == target.shape == (2, 8, 8)
    assert target[0].all() and not target[1].any() and labels[0].all() and labels[1].sum() == 32  # by index
    assert [row["dice"] for row in score(found, ["background", "lesion"], 1.0)] == [0.8, 0.8]


def test_flat_pictures_are_segmented_on_their_native_grid():
    image = np.where(np.arange(24) < 12, 1, -1)[:, None] * np.ones((24, 16))
    found = predict(Fixed(), [make_case("flat", image, image > 0, spacing=(1.0, 1.0))], 8)
    labels, target, spacing = found["flat"]
    assert labels.shape == target.shape == (24, 16) and spacing == (1.0, 1.0)
    assert np.array_equal(labels[:, 4:-4], target[:, 4:-4])  # the padding's darkness reaches 3 pixels in


def test_a_tie_is_the_lowest_class():
    assert not find_labels(Fixed(), torch.zeros(1, 1, 8, 8)).any()


def test_labels_are_read_back_as_they_were_found(tmp_path):
    found = predict(Fixed(), slices_of("a"), 8)
    save_labels(tmp_path / "predictions.npz", found)
    with np.load(tmp_path / "predictions.npz") as stored:
        assert list(stored) == ["a"] and np.array_equal(stored["a"], found["a"][0])
