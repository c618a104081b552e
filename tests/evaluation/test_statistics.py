"""Paired statistics against worked examples, scipy's t test and simulation."""

import numpy as np
import pytest
from scipy import stats

from emit.errors import InputError
from emit.evaluation import statistics
from emit.evaluation.statistics import compare_arms, conclude, holm, infer, share_headroom, split_error, verdict


def compare_ours(table, groups=None):
    cases = table["ours"].shape[2]
    (found,) = compare_arms(table, [("ours", "baseline")], range(cases) if groups is None else groups)
    return found


def own_parts(rng, folds, seeds, cases):
    """Scores (folds, seeds, folds * cases) of a set whose cases are tested in one fold each."""
    own = np.arange(folds)[:, None, None] == np.arange(folds * cases) // cases
    return np.where(own, rng.normal(size=(folds, seeds, folds * cases)), np.nan)


def test_holm_worked_example():
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1 = 0.02 0.03 0.06 0.04; the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_error_worked_example():
    # Means of trainings 2, 4: A = 2 / 2 = 1. Of cases 1, 4, 4: B = 3 / 3 = 1. The rest 0 -1 1, 0 1 -1: s^2 = 4 / 2, E = 2 / 6.
    # error^2 = 5 / 3; shares 3 / 5 of T - 1 = 1 and 2 / 5 of G - 1 = 2 give 1 / freedom = 0.6 + 0.2.
    assert split_error(np.array([[0, 2, 4], [2, 6, 4]]), range(3)) == pytest.approx(((5 / 3) ** 0.5, 1 / 0.8))
    # Cases alike, then trainings alike but for the rest: A = 1 or B = 1 alone, and never less than that.
    assert split_error(np.array([[2, 2, 2], [4, 4, 4]]), range(3)) == pytest.approx((1, 1))
    assert split_error(np.array([[1, 4, 4], [1, 4, 4]]), range(3)) == pytest.approx((1, 2))
    # Means of trainings 3, 3 and of cases 2, 4: A = 0, B = 1, E = 4 / 4: error^2 is B, not A + B - E = 0.
    assert split_error(np.array([[1, 5], [3, 3]]), range(2)) == pytest.approx((1, 1))
    # Groups of 3 cases and of 1: shares 0.75, 0.25. Means 2 and 6 vary by s^2 = 8; B = 8 * (0.75^2 + 0.25^2) = 5, 1 / 0.625 - 1.
    assert split_error(np.array([[1, 2, 3, 6]]), list("aaab")) == pytest.approx((5**0.5, 0.6))


@pytest.mark.parametrize("layout", ["one training", "alike folds", "own parts", "own parts, seeds", "alike seeds"])
def test_where_one_thing_varies_it_is_students_test(layout):
    rng = np.random.default_rng(1)
    luck = rng.normal(size=3)
    values = {
        "one training": rng.normal(size=(1, 1, 12)),
        "alike folds": np.array([luck, luck[::-1]])[..., None] * np.ones(12),
        "own parts": own_parts(rng, 4, 1, 3),  # one training a case: the fold is all that can be told apart
        "own parts, seeds": own_parts(rng, 4, 2, 3),
        "alike seeds": rng.normal(size=(3, 1, 1)) * np.ones((3, 5, 12)),  # a fold's luck counts once, whatever the seeds
    }[layout]
    units = {"one training": values[0, 0], "alike folds": values[:, :, 0].ravel()}.get(layout, np.nanmean(values, axis=(1, 2)))
    found, expected = infer(values, range(12)), stats.ttest_1samp(units, 0)
    assert found["difference"] == pytest.approx(units.mean(), abs=1e-12)
    assert found["p"] == pytest.approx(expected.pvalue, rel=1e-6)
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6)


def test_groups_are_the_units():
    # 20 patients with 10 equal cases each are 20 independent values, in whatever order.
    values, order = np.random.default_rng(3).normal(size=(1, 4, 20)), np.random.default_rng(4).permutation(200) % 20
    assert infer(values[..., order], [f"patient{i}" for i in order]) == pytest.approx(infer(values, range(20)))
    assert infer(values, ["one"] * 20)["high"] == np.inf and infer(values, ["one"] * 20)["p"] == 1


def test_what_does_not_move_is_not_told_from_zero():
    noise = np.random.default_rng(0).normal(size=(1, 3, 9)) * 1e-17  # what averaging leaves of a zero
    assert infer(noise * 0, range(9))["p"] == 1 and infer(noise, range(9))["p"] > 0.9
    assert infer(noise + 0.05, range(9))["p"] < 1e-6


def test_the_detectable_difference_is_detected_with_the_power():
    # Of one training the test is Student's: it sees a shift d with the probability that a noncentral t exceeds its quantile.
    found = infer(np.random.default_rng(2).normal(size=(1, 1, 60)), range(60))
    error = (found["high"] - found["low"]) / 2 / stats.t.ppf(0.975, 59)
    power = stats.nct.sf(stats.t.ppf(0.975, 59), 59, found["detectable"] / error)
    assert power == pytest.approx(0.8, abs=0.005)  # the sum of two quantiles is near it, not equal


def test_arms_are_described():
    # Cases 0.55 and 0.85, seeds 0.6 and 0.8: standard deviations 0.3 / sqrt 2 and 0.2 / sqrt 2.
    found = statistics.describe(np.array([[[0.5, 0.7], [0.6, 1.0]]]))
    assert found == pytest.approx({"mean": 0.7, "case_spread": 0.3 / 2**0.5, "seed_spread": 0.2 / 2**0.5})
    assert np.isnan(statistics.describe(np.array([[[0.5, 0.7]]]))["seed_spread"])
    apart = statistics.describe(np.array([[[0.5, np.nan], [0.6, np.nan]], [[np.nan, 0.7], [np.nan, 1.0]]]))
    assert apart == pytest.approx(found)  # each case in a fold of its own


def test_table_pairs_by_name_averages_classes_and_drops_nothing():
    order = [("a", 1, "x"), ("a", 1, "y"), ("a", 2, "y"), ("a", 2, "x"), ("b", 2, "x"), ("b", 2, "y"), ("b", 1, "y"), ("b", 1, "x")]
    rows = [{"arm": arm, "fold": 0, "seed": seed, "case": case, "dice": i / 8} for i, (arm, seed, case) in enumerate(order)]
    rows.append(rows[0] | {"dice": 0.5})  # another class of the first
    cases, seeds, table = statistics.tabulate(rows)
    assert (cases, seeds) == (["x", "y"], [1, 2])
    assert table["a"].tolist() == [[[0.25, 1 / 8], [3 / 8, 2 / 8]]]
    assert table["b"].tolist() == [[[7 / 8, 6 / 8], [4 / 8, 5 / 8]]]
    apart = [row | {"fold": int(row["case"] == "y")} for row in rows]  # each case in a fold of its own
    found = statistics.tabulate(apart)[2]["b"]
    assert np.array_equal(found, [[[7 / 8, np.nan], [4 / 8, np.nan]], [[np.nan, 6 / 8], [np.nan, 5 / 8]]], equal_nan=True)
    for lacking in (rows[1:-1], apart[1:-1], [*rows, rows[0] | {"fold": 1}]):
        with pytest.raises(KeyError):
            statistics.tabulate(lacking)
    with pytest.raises(InputError, match="a, case y: Dice is nan; remove"):
        statistics.tabulate([*rows, rows[1] | {"dice": np.nan}])


def simulate(rng, shift=0.0, trainings=(1, 3), cases=60, per_group=1, luck=0.03, fold_luck=0.0, arms=("baseline", "ours")):
    """Scores of a --test set: a case's difficulty is shared by the arms, what an arm does to a group and a case is its own.

    Standard deviations: of cases 0.25, of which 0.11 are the arm's; of a training's luck, `luck`; of the rest 0.1.
    """
    folds, seeds = trainings
    groups, difficulty, table = np.arange(cases) // per_group, 0.22 * rng.normal(size=cases), {}
    for arm in arms:
        own = 0.08 * (rng.normal(size=cases)[groups] + rng.normal(size=cases)) if per_group > 1 else 0.11 * rng.normal(size=cases)
        lucks = luck * rng.normal(size=(folds, seeds, 1)) + fold_luck * rng.normal(size=(folds, 1, 1))
        table[arm] = 0.6 + difficulty + own + lucks + 0.1 * rng.normal(size=(folds, seeds, cases))
    return table | {"ours": table["ours"] + shift}, groups


def false_positives(rng, count, **options):
    """Return the share of intervals that exclude a true difference of zero."""
    hits = 0
    for _ in range(count):
        table, groups = simulate(rng, **options)
        found = infer(table["ours"] - table["baseline"], groups)
        assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
        hits += found["p"] < 0.05
    return hits / count


@pytest.mark.parametrize("options", [{}, {"trainings": (3, 4), "fold_luck": 0.03}], ids=["trainings", "folds"])
def test_an_interval_holds_the_luck_of_trainings(options):
    # Of cases alone it would exclude zero in 15 % and more. 5 % of 500 has a standard error of 1 %; 3 of those.
    assert 0.02 <= false_positives(np.random.default_rng(12), 500, luck=0.04, cases=150, **options) <= 0.08


@pytest.mark.parametrize(("shift", "expected"), [(0.1, "detectable gain"), (-0.1, "detectable loss"), (0.0, "no detectable gain")])
def test_known_shift_is_found(shift, expected):
    # The standard error is sqrt(2 (0.11^2 / 100 + 0.03^2 / 15 + 0.1^2 / 1500)) = 0.0194: a shift of 5 of those.
    table, _ = simulate(np.random.default_rng(11), shift, trainings=(15, 1), cases=100)
    found = compare_ours(table)
    assert verdict(found) == expected
    assert found["difference"] == pytest.approx(shift, abs=4 * 0.0194)
    assert found["low"] < found["difference"] < found["high"]
    sentence = conclude(found)
    assert sentence.startswith(f"ours against baseline: {expected} (mean difference in Dice {found['difference']:+.4f}")
    assert "100 cases, folds x seeds 15 x 1; the interval speaks for new cases and for new trainings" in sentence
    assert sentence.endswith(f"it could have seen is {found['detectable']:.4f}).")


def test_one_training_and_few_groups_say_so():
    table, groups = simulate(np.random.default_rng(4), 0.5, trainings=(1, 1), cases=60, per_group=12)
    alone, grouped = compare_ours(table), compare_ours(table, groups)
    assert (alone["units"], verdict(alone)) == (60, "detectable gain")
    assert (grouped["units"], verdict(grouped)) == (5, "too few cases to tell")
    assert "60 cases in 5 groups, folds x seeds 1 x 1; the interval speaks for new cases but not for new" in conclude(grouped)
    assert grouped["high"] - grouped["low"] > alone["high"] - alone["low"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"p_adjusted": 0.049}, "detectable gain"),
        ({"p_adjusted": 0.049, "difference": -0.1}, "detectable loss"),
        ({"p_adjusted": 0.05}, "no detectable gain"),
        ({"units": 6}, "detectable gain"),
        ({"units": 5}, "too few cases to tell"),
    ],
)
def test_verdict_rests_on_level_direction_and_groups(change, expected):
    assert verdict({"p_adjusted": 0.01, "difference": 0.1, "units": 60} | change) == expected


def test_a_family_is_corrected_together():
    rng = np.random.default_rng(5)
    base, noise = rng.uniform(0.4, 0.6, size=(1, 2, 30)), 1e-3 * rng.normal(size=(3, 1, 2, 30))
    table = {"baseline": base, "mirror": base + 0.02 + noise[0], "scale": base + 0.05 + noise[1], "ours": base + 0.04 + noise[2]}
    pairs = [("mirror", "baseline"), ("scale", "baseline"), ("ours", "baseline"), ("ours", "scale")]
    found = compare_arms(table, pairs, range(30))
    assert [(c["arm"], c["reference"]) for c in found] == pairs
    assert [c["difference"] for c in found] == pytest.approx([0.02, 0.05, 0.04, -0.01], abs=1e-3)
    assert [c["p_adjusted"] for c in found] == holm([c["p"] for c in found]) != [c["p"] for c in found]


def test_share_of_the_headroom():
    rng = np.random.default_rng(6)
    reference, arm, oracle = (rng.normal(shift, 0.1, size=40) for shift in (0, 0.1, 0.2))
    table = {"deepstack": reference[None, None], "ours+deepstack": arm[None, None], "oracle+deepstack": oracle[None, None]}
    found = share_headroom(table, "ours+deepstack", "deepstack", "oracle+deepstack", range(40))
    # Fieller (1954): (x - s y)^2 = t^2 (Vxx - 2 s Vxy + s^2 Vyy) / n, of the paired gains.
    gain, headroom = arm - reference, oracle - reference
    (v_xx, v_xy), (_, v_yy) = np.cov(gain, headroom) * stats.t.ppf(0.975, 39) ** 2 / 40
    x, y = gain.mean(), headroom.mean()
    assert found["share"] == pytest.approx(x / y)
    assert (found["low"], found["high"]) == pytest.approx(sorted(np.roots([y**2 - v_yy, 2 * v_xy - 2 * x * y, x**2 - v_xx])))
    assert found["sentence"].startswith(f"ours+deepstack reaches {x / y:.2f} of the headroom")
    assert f"{found['low']:.2f} to {found['high']:.2f}" in found["sentence"]


@pytest.mark.parametrize(("shift", "scale"), [(0, 0), (0, 0.01), (-1, 0.01)], ids=["none", "noise", "loss"])
def test_a_headroom_that_is_not_there_has_no_interval(shift, scale):
    rng = np.random.default_rng(7)
    zero, oracle = np.zeros((1, 1, 40)), shift + scale * rng.normal(size=(1, 1, 40))
    table = {"baseline": zero, "ours": rng.normal(size=(1, 1, 40)), "oracle": oracle}
    found = share_headroom(table, "ours", "baseline", "oracle", range(40))
    assert np.isfinite(found["share"]) == (scale > 0) and (found["low"], found["high"]) == (-np.inf, np.inf)
    assert found["sentence"] == "ours has no headroom to reach a share of: oracle adds nothing detectable to baseline."


@pytest.mark.slow
@pytest.mark.parametrize("luck", [0.02, 0.05])
@pytest.mark.parametrize(("cases", "per_group"), [(60, 1), (300, 1), (60, 3), (300, 5)])
@pytest.mark.parametrize("trainings", [(1, 3), (3, 1), (5, 1), (15, 1), (3, 5)])
def test_false_positive_rate(trainings, cases, per_group, luck):
    rate = false_positives(np.random.default_rng(2024), 1000, trainings=trainings, cases=cases, per_group=per_group, luck=luck)
    # 5 % of 1000 has a standard error of 0.7 %. Where luck and cases weigh alike, three trainings or folds give 2 to 3 %.
    assert 0.015 <= rate <= 0.07


@pytest.mark.slow
def test_family_wise_error_stays_below_the_level():
    rng, hits = np.random.default_rng(7), 0
    for _ in range(400):
        table, groups = simulate(rng, arms=("baseline", "ours", *"abc"))
        found = compare_arms(table, [(arm, "baseline") for arm in ("ours", *"abc")], groups)
        hits += any(verdict(c).startswith("detectable") for c in found)
    assert hits / 400 <= 0.07
