"""The judge: each generated image is looked at by the network that did not learn its case; the worst are left out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from emit.data.cases import Case
from emit.errors import InputError
from emit.evaluation.folds import Fold
from emit.evaluation.judge import keep_best, score_label

CASES = [
    Case(f"c{i}", f"group {i // 2}", "", "", "", lambda path: (np.ones((4, 4), np.float32), np.ones((4, 4)))) for i in range(8)
]


class Bright(nn.Module):
    """Finds what is brighter than a level: 0 where it learned an even group, 0.5 where an odd one."""

    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(float(level)))

    def forward(self, image):
        return torch.cat([self.level.expand_as(image), image], dim=1)


class Images:
    """Of case i an image of i / 10 everywhere, all lesion; and of the last a black one, whose label is not there."""

    def pairs(self):
        levels = [(case.id, i / 10) for i, case in enumerate(CASES)] + [("c7", -1.0)]
        return [(name, torch.full((1, 1, 4, 4), level), np.ones((4, 4), np.uint8)) for name, level in levels]

    def keep(self, scores, share):
        self.scores, self.share = scores, share
        return [number for number, score in enumerate(scores) if score > 0]


@pytest.fixture
def judged(tmp_path):
    learned = []

    def train(arm, fold, settings, folder, seed):
        learned.append((arm.augmentation, [case.id for case in fold.training], folder, seed))
        return Bright(0.5 * int(fold.training[0].group[-1]) % 1).eval()

    fold = Fold(3, None, CASES, [], {}, Images())
    settings = SimpleNamespace(out=tmp_path, seed=0, size=4, keep_best=0.7)
    return fold, settings, train, learned


def test_no_image_is_judged_by_who_learned_its_case(judged):
    fold, settings, train, learned = judged
    sentence = keep_best(fold, settings, train)
    names = [names for _, names, *_ in learned]
    assert names == [["c0", "c1", "c4", "c5"], ["c2", "c3", "c6", "c7"]]  # whole groups, every second
    assert [augmentation for augmentation, *_ in learned] == ["nnunet"] * 2 and len({entry[2:] for entry in learned}) == 2
    # Cases of groups 0 and 2 (levels 0, 0.1, 0.4, 0.5) are judged by the network that learned groups 1 and 3: level 0.5;
    # those of groups 1 and 3 (0.2, 0.3, 0.6, 0.7 and -1) by the other, level 0. Equal is not found: the lower label wins.
    assert fold.generated.scores.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0] and fold.generated.share == 0.7
    assert "4 of 9 generated images" in sentence and "All: Dice 0.44" in sentence and "Used: Dice 1.00" in sentence
    assert "labelled area 100.0%" in sentence and "Real images of the same cases: Dice 1.00" in sentence


def test_a_class_that_is_nowhere_does_not_count():
    label = np.array([[1, 1], [0, 0]])
    assert score_label(label, label) == 1 == score_label(0 * label, 0 * label)
    assert score_label(0 * label, label) == 0 and score_label(2 * label, label) == 0  # one missed; and one instead of it
    assert score_label(np.array([[1, 1], [2, 2]]), label) == 0.5 and score_label(np.array([[1, 0], [0, 0]]), label) == 2 / 3


def test_one_group_cannot_be_judged(judged):
    fold, settings, train, _ = judged
    with pytest.raises(InputError, match="--keep-best: fold 3 has one group"):
        keep_best(replace(fold, training=CASES[:2]), settings, train)
