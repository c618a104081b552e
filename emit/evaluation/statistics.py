"""Is an arm better than the baseline and than the best classical augmentation, or is it noise?

Every case is tested once for each seed (in the fold that holds it out), so a table {arm: (seeds, cases)} is complete.
The unit of evidence is the case, or the group where cases share a patient: seeds and folds travel inside it.
Scores must be finite and larger must be better (Dice, IoU, NSD).
"""

import numpy as np
from scipy import stats

from emit.errors import InputError
from emit.evaluation.metrics import measure_spread

LEVEL = 0.05  # of tests and intervals [choice] convention


def tabulate(rows) -> tuple[list[str], list[int], dict[str, np.ndarray]]:
    """Return (cases, seeds, {arm: Dice averaged over classes, (seeds, cases)}); KeyError where an arm lacks one.

    rows: dicts with arm, seed, case and dice. Raises InputError where a Dice is not finite.
    """
    dice = {}
    for row in rows:
        if not np.isfinite(row["dice"]):
            raise InputError(f"{row['arm']}, case {row['case']}: Dice is {row['dice']}; remove its scores.json and resume")
        dice.setdefault((row["arm"], row["seed"], row["case"]), []).append(row["dice"])
    arms, seeds, cases = (list(dict.fromkeys(names)) for names in zip(*dice, strict=True))
    table = {arm: np.array([[np.mean(dice[arm, seed, case]) for case in cases] for seed in seeds]) for arm in arms}
    return cases, seeds, table


def describe(values) -> dict[str, float]:
    """Describe an arm's (seeds, cases): mean; case_spread, standard deviation over cases of the seed average; seed_spread,
    that over seeds of the case average, which holds whatever the seed decides; nan with one seed.
    """
    spreads = {"case_spread": measure_spread(values.mean(axis=0)), "seed_spread": measure_spread(values.mean(axis=1))}
    return {"mean": float(values.mean())} | spreads


def compare_arms(table, pairs, rng, groups, resamples: int = 2000) -> list[dict]:
    """Compare the pairs (arm, reference) of one family: Holm's correction runs over all of them.

    table: {arm: (seeds, cases)}.  groups: of each case, its patient; rng: numpy Generator.
    Each comparison: arm, reference, difference (mean over cases, each averaged over seeds), low, high (its bootstrap interval
    at 1 - LEVEL), p, effect (of `signed_rank`, on groups), p_adjusted (Holm), smallest_p (the smallest adjusted p that so few
    groups could have given), cases, units (groups), seeds.
    """
    numbers, found = {}, []
    members = np.array([numbers.setdefault(group, len(numbers)) for group in groups])  # (cases,) in 0..G-1
    for arm, reference in pairs:
        differences = table[arm].mean(axis=0) - table[reference].mean(axis=0)  # (cases,)
        low, high = bootstrap_interval(differences, rng, members, LEVEL, resamples)
        p, effect = signed_rank(np.bincount(members, weights=differences) / np.bincount(members))  # means of groups
        c = {"difference": float(differences.mean()), "low": low, "high": high, "p": p, "effect": effect}
        found.append({"arm": arm, "reference": reference} | c)
    units, (seeds, cases) = len(numbers), next(iter(table.values())).shape
    smallest = min(1.0, len(found) * 2.0 ** (1 - units))  # all units on one side: 2 of the 2^units equally likely signs
    shared = {"smallest_p": smallest, "cases": cases, "units": units, "seeds": seeds}
    return [c | {"p_adjusted": p} | shared for c, p in zip(found, holm([c["p"] for c in found]), strict=True)]


def bootstrap_interval(differences, rng, members, level=LEVEL, resamples=2000) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean paired difference, at confidence 1 - level.

    differences: (cases,), averaged over seeds.  members: (cases,) group numbers 0..G-1; whole groups are drawn with
    replacement, so cases of one patient come and go together.
    It speaks for new cases under these seeds.  With fewer than about 20 groups it is too narrow.
    """
    sums, sizes = np.bincount(members, weights=differences), np.bincount(members)
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=resamples)  # how often each group came
    means = (drawn @ sums) / (drawn @ sizes)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return float(low), float(high)


def signed_rank(differences) -> tuple[float, float]:
    """Return (p, effect) of paired differences: Wilcoxon's two-sided p and the matched-pairs rank-biserial correlation.

    effect = (W+ - W-) / (W+ + W-), W the sums of ranks of |difference| (Kerby 2014): 1 all gain, -1 all lose.
    Zero differences are left out (Wilcoxon's rule); p = 1 and effect 0 where all are zero.
    """
    differences = np.round(np.asarray(differences, dtype=float), 12)  # averages leave 1e-17 where 0 or a tie is meant
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(moved))
    effect = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return float(stats.wilcoxon(moved).pvalue), effect


def holm(p_values) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m (from 0) times m - i, made non-decreasing, at most 1."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def find_sides(c) -> tuple[int, int]:
    """Return on which side of zero the interval lies and, where the adjusted p is below LEVEL, the ranks: 1, -1, 0 for neither."""
    ranks = (c["effect"] > 0) - (c["effect"] < 0) if c["p_adjusted"] < LEVEL else 0
    return (c["low"] > 0) - (c["high"] < 0), ranks


def verdict(c) -> str:
    """One of "detectable gain", "detectable loss", "no detectable gain", "too few cases to tell".

    A gain or loss needs both: adjusted p below the level, and an interval that lies on that side of zero.
    """
    if c["smallest_p"] > LEVEL:
        return "too few cases to tell"
    return {(1, 1): "detectable gain", (-1, -1): "detectable loss"}.get(find_sides(c), "no detectable gain")


def find_disagreement(c) -> str:
    """Say where interval, adjusted p and direction of the ranks disagree; "" where they agree."""
    interval, ranks = find_sides(c)
    if interval == ranks:
        return ""
    if ranks == 0:
        return f"the interval excludes zero but the corrected p does not reach {LEVEL:g}"
    if interval == 0:
        return f"the corrected p is below {LEVEL:g} but the interval includes zero"
    return "the interval and the ranks point in opposite directions"


def conclude(c) -> str:
    """Write the verdict, the numbers it rests on and what speaks against it as one sentence. c: of `compare_arms`."""
    numbers = [
        f"mean difference in Dice {c['difference']:+.4f}",
        f"{100 * (1 - LEVEL):g} % interval {c['low']:+.4f} to {c['high']:+.4f}",
        f"Holm-corrected p {c['p_adjusted']:.2g}",
        f"rank-biserial {c['effect']:+.2f}",
        f"{c['cases']} cases" + (f" in {c['units']} groups" if c["units"] < c["cases"] else ""),
        f"{c['seeds']} seed" + ("s" if c["seeds"] > 1 else ""),
    ]
    few = f"the smallest p that could be reached is {c['smallest_p']:.2g}" if c["smallest_p"] > LEVEL else ""
    notes = filter(None, (", ".join(numbers), few, find_disagreement(c)))
    return f"{c['arm']} against {c['reference']}: {verdict(c)} ({'; '.join(notes)})."
