"""Paired statistics against worked examples, enumeration and simulation."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from emit.errors import InputError
from emit.evaluation import statistics
from emit.evaluation.statistics import bootstrap_interval, compare_arms, conclude, holm, signed_rank, verdict


def compare_ours(table, groups=None):
    cases = np.atleast_2d(table["ours"]).shape[1]
    table = {arm: np.atleast_2d(values) for arm, values in table.items()}
    (found,) = compare_arms(table, [("ours", "baseline")], np.random.default_rng(0), range(cases) if groups is None else groups)
    return found


def test_holm_worked_example():
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1 = 0.02 0.03 0.06 0.04; the last is raised to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize("differences", [[1, 2, 3, 4, 5, -6], [1, -2, 3, -4, 5, 6, 7], [3, 1, 2, 5, 4, 6]])
def test_signed_rank_equals_enumeration(differences):
    ranks = np.abs(differences)  # the magnitudes are 1..n, so they are their own ranks
    signs = np.array(list(product([-1, 1], repeat=len(ranks))))
    extreme = np.mean(np.abs(signs @ ranks) >= abs(sum(differences)))
    p, effect = signed_rank(np.array(differences) / 7)
    assert p == pytest.approx(extreme, abs=1e-12)
    assert effect == pytest.approx(sum(differences) / ranks.sum(), abs=1e-12)


def test_signed_rank_leaves_zeros_out():
    assert signed_rank([0.0, 0.0]) == (1.0, 0.0)
    # 1e-17 is what averaging over seeds leaves of a zero; the 6 others all gain: p = 2 / 2^6.
    p, effect = signed_rank([1e-17, 0, -1e-17, 1, 2, 3, 4, 5, 6])
    assert (p, effect) == (pytest.approx(2 / 64), 1.0)


def test_bootstrap_of_a_normal_sample():
    sample = 3 + 2 * norm.ppf((np.arange(400) + 0.5) / 400)
    error = sample.std() / 20
    low, high = bootstrap_interval(sample, np.random.default_rng(0), np.arange(400), resamples=4000)
    # A 2.5 % quantile of 4000 draws is known to sqrt(0.025 * 0.975 / 4000) / density(1.96) = 0.042 errors; 4 of those.
    assert (low, high) == pytest.approx((3 - 1.96 * error, 3 + 1.96 * error), abs=0.17 * error)
    narrow = bootstrap_interval(sample, np.random.default_rng(0), np.arange(400), level=0.32, resamples=4000)
    assert narrow == pytest.approx((3 - 0.994 * error, 3 + 0.994 * error), abs=0.12 * error)


def test_groups_are_resampled_whole():
    # 20 patients with 10 equal cases each: 20 independent values, not 200, so the interval is sqrt(10) wider.
    members = np.repeat(np.arange(20), 10)
    differences = np.random.default_rng(3).normal(size=20)[members]
    by_group = bootstrap_interval(differences, np.random.default_rng(0), members, resamples=4000)
    by_case = bootstrap_interval(differences, np.random.default_rng(0), np.arange(200), resamples=4000)
    # Each width is known to about 4 %; 20 draws from a skewed set add a little.
    assert np.diff(by_group) / np.diff(by_case) == pytest.approx(10**0.5, rel=0.1)


def test_bootstrap_weighs_cases_not_groups():
    members = np.array([0, 0, 0, 1, 2, 2])
    assert bootstrap_interval(np.full(6, 0.25), np.random.default_rng(0), members) == pytest.approx((0.25, 0.25))
    # Two groups, of 3 ones and 1 zero: a resample's mean is 0 (both zero), 3/4 (one of each) or 1.
    means = {bootstrap_interval([1, 1, 1, 0], np.random.default_rng(k), members[:4], resamples=1)[0] for k in range(40)}
    assert means == {0.0, 0.75, 1.0}


def test_arms_are_described():
    # Cases 0.55 and 0.85, seeds 0.6 and 0.8: standard deviations 0.3 / sqrt 2 and 0.2 / sqrt 2.
    found = statistics.describe(np.array([[0.5, 0.7], [0.6, 1.0]]))
    assert found == pytest.approx({"mean": 0.7, "case_spread": 0.3 / 2**0.5, "seed_spread": 0.2 / 2**0.5})
    assert np.isnan(statistics.describe(np.array([[0.5, 0.7]]))["seed_spread"])


def test_table_pairs_by_name_averages_classes_and_drops_nothing():
    order = [("a", 1, "x"), ("a", 1, "y"), ("a", 2, "y"), ("a", 2, "x"), ("b", 2, "x"), ("b", 2, "y"), ("b", 1, "y"), ("b", 1, "x")]
    rows = [{"arm": arm, "seed": seed, "case": case, "dice": i / 8} for i, (arm, seed, case) in enumerate(order)]
    rows.append(rows[0] | {"dice": 0.5})  # another class of the first
    cases, seeds, table = statistics.tabulate(rows)
    assert (cases, seeds) == (["x", "y"], [1, 2])
    assert table["a"].tolist() == [[0.25, 1 / 8], [3 / 8, 2 / 8]]
    assert table["b"].tolist() == [[7 / 8, 6 / 8], [4 / 8, 5 / 8]]
    with pytest.raises(KeyError):
        statistics.tabulate(rows[1:-1])
    with pytest.raises(InputError, match="a, case y: Dice is nan; remove"):
        statistics.tabulate([*rows, rows[1] | {"dice": np.nan}])


def simulate(rng, shift, cases=60, seeds=3, per_group=1):
    """Paired scores: a case's difficulty is shared; what the arm does to it (its group) and to a seed is its own."""
    difficulty = rng.beta(5, 2, size=cases)
    groups = np.arange(cases) // per_group
    change = rng.normal(0, 0.04, size=cases // per_group)[groups]
    noise = rng.normal(0, 0.02, size=(2, seeds, cases))
    return {"baseline": difficulty + noise[0], "ours": difficulty + change + shift + noise[1]}, groups


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.03, "detectable gain"), (-0.03, "detectable loss"), (0.0, "no detectable gain")]
)
def test_known_shift_is_found(shift, expected):
    # A case's difference deviates by sqrt(0.04^2 + 2 * 0.02^2 / 3) = 0.043: 0.03 is 5.4 standard errors of 60 cases.
    scores, _ = simulate(np.random.default_rng(11), shift)
    found = compare_ours(scores)
    assert verdict(found) == expected
    assert found["difference"] == pytest.approx(shift, abs=4 * 0.043 / 60**0.5)
    assert found["low"] < found["difference"] < found["high"]
    sentence = conclude(found)
    assert sentence.startswith(f"ours against baseline: {expected} (mean difference in Dice {found['difference']:+.4f}")
    assert sentence.endswith("60 cases, 3 seeds).")  # interval and p agree: nothing is added


def test_too_few_cases_say_so():
    gain = np.arange(1, 9) / 100
    for cases, judged, expected in ((5, "a", "too few"), (6, "a", "detectable gain"), (6, "ab", "too few")):
        table = {"baseline": np.zeros((1, cases)), "a": gain[None, :cases], "b": gain[None, :cases] / 2}
        found = compare_arms(table, [(arm, "baseline") for arm in judged], np.random.default_rng(0), range(cases))
        assert found[0]["smallest_p"] == pytest.approx(len(judged) * 2.0 ** (1 - cases))  # 0.0625, 0.03125, 0.0625
        assert found[0]["p_adjusted"] == pytest.approx(found[0]["smallest_p"])  # all gain: it is reached
        assert expected in conclude(found[0])
    assert "smallest p that could be reached is 0.062" in conclude(found[0])


def test_many_cases_of_few_patients_are_few():
    table, groups = simulate(np.random.default_rng(4), 0.2, cases=60, per_group=12)
    alone, grouped = compare_ours(table), compare_ours(table, groups)
    assert (alone["units"], verdict(alone)) == (60, "detectable gain")
    assert (grouped["units"], verdict(grouped)) == (5, "too few cases to tell")
    assert "60 cases in 5 groups" in conclude(grouped)


def test_groups_reach_both_the_rank_test_and_the_interval():
    # 8 patients with 3 equal cases each, all gaining: p = 2 / 2^8, not 2 / 2^24.
    gain = np.repeat(np.arange(1, 9) / 100, 3)
    found = compare_ours({"baseline": gain * 0, "ours": gain}, [f"patient{i // 3}" for i in range(24)])
    assert found["p"] == pytest.approx(2 / 2**8)
    # Deviation of 1..8 is 2.29; of a mean of 8, 0.0081; the interval is 3.92 of those, and sqrt 3 less by case.
    assert found["high"] - found["low"] == pytest.approx(3.92 * 0.0081, rel=0.1)


def mirror(c):
    return c | {"low": -c["high"], "high": -c["low"], "effect": -c["effect"]}


@pytest.mark.parametrize("name", ["gain", "loss"])
def test_verdict_rests_on_level_interval_and_direction(name):
    table, _ = simulate(np.random.default_rng(11), 0.03)
    clear = compare_ours(table) if name == "gain" else mirror(compare_ours(table))
    both, none = "the interval and the ranks point in opposite directions", "no detectable gain"
    excludes = "the interval excludes zero but the corrected p does not reach 0.05"
    includes = "the corrected p is below 0.05 but the interval includes zero"
    for change, expected, note in (
        ({"p_adjusted": 0.049}, f"detectable {name}", ""),
        ({"p_adjusted": 0.05}, none, excludes),
        ({"effect": -clear["effect"]}, none, both),
        ({"low": -0.01, "high": 0.01}, none, includes),
        ({"low": -0.01, "high": 0.01, "p_adjusted": 0.5}, none, ""),
        ({"smallest_p": 0.06}, "too few cases to tell", ""),
    ):
        assert (verdict(clear | change), statistics.find_disagreement(clear | change)) == (expected, note)


def test_a_family_is_corrected_together():
    rng = np.random.default_rng(5)
    base = rng.uniform(0.4, 0.6, size=(2, 30))
    table = {"baseline": base, "mirror": base + 0.02, "scale": base + 0.05, "ours": base + 0.04}
    pairs = [("mirror", "baseline"), ("scale", "baseline"), ("ours", "baseline"), ("ours", "scale")]
    found = compare_arms(table, pairs, rng, range(30))
    assert [(c["arm"], c["reference"]) for c in found] == pairs
    assert [c["difference"] for c in found] == pytest.approx([0.02, 0.05, 0.04, -0.01])
    assert [verdict(c) for c in found] == ["detectable gain"] * 3 + ["detectable loss"]
    assert found[0]["smallest_p"] == pytest.approx(4 * 2.0**-29)


def test_a_gain_needs_interval_and_rank_test_to_agree():
    # 19 small gains, one large loss: the ranks say gain, the mean says loss; so neither is claimed.
    found = compare_ours({"baseline": np.zeros(20), "ours": np.r_[np.arange(1, 20) / 1000, -2.0]})
    assert found["p_adjusted"] < 0.05 and found["difference"] < 0 < found["effect"]
    assert verdict(found) == "no detectable gain"
    assert conclude(found).endswith("1 seed; the corrected p is below 0.05 but the interval includes zero).")


def test_an_interval_without_a_corrected_p_is_no_gain():
    # 7 gains and the smallest difference a loss: p = 4 / 2^8, times 4 comparisons 0.0625; the mean is 0.042 +- 0.010.
    gain, mixed = np.array([[-1, 2, 3, 4, 5, 6, 7, 8]]) / 100, np.array([[1, -2, 3, -4, 5, -6, 7, -8]]) / 100
    table = {"baseline": mixed * 0, "ours": gain, "b": mixed, "c": -mixed, "d": mixed / 2}
    pairs = [(arm, "baseline") for arm in ("ours", "b", "c", "d")]
    found, *_ = compare_arms(table, pairs, np.random.default_rng(0), range(8))
    assert found["p_adjusted"] == pytest.approx(0.0625) and found["smallest_p"] < 0.05 and found["low"] > 0
    assert verdict(found) == "no detectable gain"


@pytest.mark.slow
@pytest.mark.parametrize("per_group", [1, 3], ids=["cases", "groups"])
def test_false_positive_rate(per_group):
    rng = np.random.default_rng(2024)
    hits = 0
    for _ in range(400):
        table, groups = simulate(rng, 0.0, cases=60 * per_group, per_group=per_group)
        (found,) = compare_arms(table, [("ours", "baseline")], rng, groups)
        hits += verdict(found) in ("detectable gain", "detectable loss")
    assert 0.03 <= hits / 400 <= 0.07  # 5 % of 400 has a standard error of 1.1 %


@pytest.mark.slow
def test_family_wise_error_stays_below_the_level():
    rng, hits = np.random.default_rng(7), 0
    for _ in range(400):
        base = rng.beta(5, 2, size=(3, 40))
        table = {"baseline": base} | {name: base + rng.normal(0, 0.05, size=base.shape) for name in "abcd"}
        found = compare_arms(table, [(arm, "baseline") for arm in "abcd"], rng, range(40), resamples=500)
        hits += any(verdict(c).startswith("detectable") for c in found)
    assert hits / 400 <= 0.07
