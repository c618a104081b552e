"""Scores against hand-made tables and brute force; empty masks and their place in the summary."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from emit.evaluation import metrics
from emit.evaluation.metrics import OVERLAPS, score_boundary, score_case, summarise

CLASSES = ("background", "organ")
BOUNDARY = ("nsd", "hd95", "assd")
INF = float("inf")


def draw(*rows):
    return np.array([[int(c) for c in row] for row in rows])


def block(shape, *spans):
    mask = np.zeros(shape, dtype=int)
    mask[tuple(slice(*span) for span in spans)] = 1
    return mask


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),  # expected: dice, iou, precision, recall
    [
        pytest.param(draw("110", "000"), draw("110", "000"), (1, 1, 1, 1), id="identical"),
        pytest.param(draw("110", "000"), draw("011", "000"), (1 / 2, 1 / 3, 1 / 2, 1 / 2), id="half"),
        pytest.param(draw("111", "100"), draw("110", "000"), (2 / 3, 1 / 2, 1 / 2, 1), id="too much"),
        pytest.param(draw("100", "000"), draw("111", "100"), (2 / 5, 1 / 4, 1, 1 / 4), id="too little"),
        pytest.param(draw("100", "000"), draw("001", "000"), (0, 0, 0, 0), id="apart"),
        pytest.param(draw("000", "000"), draw("000", "000"), (1, 1, 1, 1), id="both empty"),
        pytest.param(draw("000", "000"), draw("100", "000"), (0, 0, 0, 0), id="missed"),
        pytest.param(draw("100", "000"), draw("000", "000"), (0, 0, 0, 0), id="false alarm"),
    ],
)
def test_overlap_table(prediction, target, expected):
    (row,) = score_case(prediction, target, CLASSES, None, 1.0)
    assert [row[key] for key in OVERLAPS] == pytest.approx(expected, abs=1e-15)  # one division of small integers


def dot(shape, *place):
    return block(shape, *((k, k + 1) for k in place))


SQUARE, SHIFTED = block((8, 8), (2, 6), (2, 6)), block((8, 8), (2, 6), (3, 7))
EMPTY, FULL = SQUARE * 0, block((3, 3), (0, 3), (0, 3))
NEAR, FAR = dot((6, 7), 1, 1), dot((6, 7), 4, 5)
# A full image has its border as surface: 4 sides at 1, 4 corners at sqrt 2, and 1 on the way back.
# 95th percentile of those 9: position 7.6, between two values of sqrt 2.
BORDER = 5 / 9, 2**0.5, (5 + 4 * 2**0.5) / 9
# 9 + 10 distances, one of them 10: pooled, position 17.1 of 0..18 gives 1.0 (the larger of the two directed percentiles
# would be 5.5).
NINE, TEN = draw("111111111" + "0" * 10), draw("1111111110000000001")


@pytest.mark.parametrize(
    ("prediction", "target", "spacing", "tolerance", "expected"),  # expected: nsd, hd95, assd
    [
        pytest.param(SQUARE, SQUARE, None, 0, (1, 0, 0), id="identical"),
        # Of the 12 voxels of each ring 6 lie on the other ring and 6 one column off it.
        pytest.param(SHIFTED, SQUARE, None, 0, (1 / 2, 1, 1 / 2), id="shifted square"),
        pytest.param(SHIFTED, SQUARE, (3, 2), 1.9, (1 / 2, 2, 1), id="shifted square in mm"),
        # Columns 5 mm apart: 2 of the 6 reach the other ring along the row axis, 1 mm away; 4 are 5 mm off.
        pytest.param(SHIFTED, SQUARE, (1, 5), 1, (2 / 3, 5, 22 / 12), id="anisotropic"),
        pytest.param(NEAR, FAR, None, 5, (1, 5, 5), id="one pixel"),
        pytest.param(NEAR, FAR, (2, 1), 7, (0, 52**0.5, 52**0.5), id="2:1"),
        pytest.param(FULL, dot((3, 3), 1, 1), None, 1, BORDER, id="touches the border"),
        pytest.param(NINE, TEN, None, 0, (18 / 19, 1, 10 / 19), id="pooled"),
        pytest.param(dot((2, 2, 2), 0, 0, 0), dot((2, 2, 2), 1, 1, 1), (2, 3, 6), 6.9, (0, 7, 7), id="3D"),
        pytest.param(dot((4, 4), 0, 0), dot((4, 4), 0, 3), (0.1, 0.1), 0.3, (1, 0.3, 0.3), id="at tolerance"),
        pytest.param(EMPTY, EMPTY, None, 0, (1, 0, 0), id="both empty"),
        pytest.param(EMPTY, SQUARE, None, 9, (0, INF, INF), id="missed"),
        pytest.param(SQUARE, EMPTY, None, 9, (0, INF, INF), id="false alarm"),
    ],
)
def test_boundary_table(prediction, target, spacing, tolerance, expected):
    (row,) = score_case(prediction, target, CLASSES, spacing, tolerance)
    assert [row[key] for key in BOUNDARY] == pytest.approx(expected, abs=1e-12)  # float64 sums of 24 terms


def list_surface(mask):
    inside = set(map(tuple, np.argwhere(mask)))
    steps = np.vstack([np.eye(mask.ndim, dtype=int), -np.eye(mask.ndim, dtype=int)])
    return np.array([p for p in sorted(inside) if any(tuple(np.array(p) + step) not in inside for step in steps)])


def random_pairs(count, rng):
    for number in range(count):
        shape = rng.integers(5, 14, size=2) if number % 2 else rng.integers(3, 8, size=3)
        masks = [rng.random(shape) < rng.choice([0.03, 0.3, 0.9]) for _ in range(2)]
        for mask in masks:
            mask[tuple(rng.integers(shape))] = True
        yield *masks, tuple(rng.uniform(0.3, 4.0, size=len(shape)))


def test_boundary_equals_brute_force():
    for a, b, spacing in random_pairs(200, np.random.default_rng(1)):
        between = cdist(list_surface(a) * spacing, list_surface(b) * spacing)
        pooled = np.sort(np.concatenate([between.min(axis=1), between.min(axis=0)]))
        place = 0.95 * (len(pooled) - 1)
        low, high = pooled[math.floor(place)], pooled[math.ceil(place)]
        expected = np.mean(pooled <= 1.5), low + (high - low) * (place % 1), np.mean(pooled)
        found = score_boundary(a, b, spacing, 1.5)
        assert [found[key] for key in BOUNDARY] == pytest.approx(expected, abs=1e-9)  # float64, tens of mm


def test_each_class_is_scored_by_itself():
    prediction, target = draw("1122", "0000"), draw("1120", "0000")
    rows = score_case(prediction, target, ("background", "one", "two", "three"), (2, 2), 1)
    expected = [("one", "both present", 2, 2), ("two", "both present", 2, 1), ("three", "both empty", 0, 0)]
    assert [(r["class"], r["kind"], r["predicted"], r["target"]) for r in rows] == expected
    assert [r["dice"] for r in rows] == pytest.approx([1, 2 / 3, 1])
    assert {r["unit"] for r in rows} == {"mm"}
    assert score_case(prediction, target, ("background", "one", "two"), None, 1)[0]["unit"] == "px"


@pytest.mark.parametrize(
    ("prediction", "target", "spacing", "message"),
    [
        (SQUARE, SQUARE[:4], None, "do not fit"),
        (SQUARE, SQUARE, (1, 1, 1), "do not fit"),
        (SQUARE * 255, SQUARE, None, "labels 0 to 255 for 2 classes"),
        (SQUARE, -SQUARE, None, "labels -1 to 1"),
    ],
)
def test_misfits_are_refused(prediction, target, spacing, message):
    with pytest.raises(ValueError, match=message):
        score_case(prediction, target, CLASSES, spacing, 1)


# One case of each kind, in the order of KINDS, on 5 x 5 pixels; the false alarm in the centre, where the fake pixel goes.
NONE = np.zeros((5, 5), dtype=int)
FOUR = [
    (block((5, 5), (0, 1), (0, 2)), block((5, 5), (0, 1), (1, 3))),  # Dice 1/2, IoU 1/3, distances 0 0 1 1
    (NONE, NONE),
    (NONE, dot((5, 5), 0, 1)),  # missed, sqrt 5 from the centre
    (dot((5, 5), 2, 2), NONE),
]


def test_summary_of_one_case_of_each_kind():
    summary = summarise([score_case(*case, CLASSES, None, 0)[0] for case in FOUR])["organ"]
    assert [summary[kind] for kind in ("cases", *metrics.KINDS)] == [4, 1, 1, 1, 1]
    expected = {key: [1.5 / 4, 0.25, 0] for key in ("dice", "precision", "recall", "nsd")}
    expected |= {"iou": [(1 + 1 / 3) / 4, 1 / 6, 0], "hd95": [INF, INF, 2], "assd": [INF, INF, 2]}
    for name, numbers in summary["scores"].items():
        assert [numbers[key] for key in ("mean", "median", "infinite")] == pytest.approx(expected.pop(name))
    assert expected == {}
    assert summary["scores"]["dice"]["spread"] == pytest.approx(np.std([0.5, 1, 0, 0], ddof=1))
    assert math.isnan(summary["scores"]["hd95"]["spread"])


def test_fake_pixel_scores_as_the_public_code():
    masks = [mask.copy() for case in FOUR for mask in case]
    rows = [score_case(*case, CLASSES, None, 0, fake_pixel=True)[0] for case in FOUR]
    assert [row["dice"] for row in rows] == [0.5, 1, 0, 1]
    assert [row["hd95"] for row in rows] == pytest.approx([1, 0, 5**0.5, 0])
    assert [row["kind"] for row in rows] == list(metrics.KINDS)  # what was there before the pixel
    assert all(map(np.array_equal, masks, (mask for case in FOUR for mask in case)))  # the masks are left alone
