"""Is an arm better than the baseline and than the best classical augmentation, or is it noise?

Every case is tested once for each seed (in the fold that holds it out), so a table scores[arm][seed][case] is complete.
The unit of evidence is the case, or the group where cases share a patient: seeds and folds travel inside it.
Scores must be finite and larger must be better (Dice, IoU, NSD).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.05  # of tests and intervals [choice] convention


@dataclass(frozen=True)
class Comparison:
    """One arm against a reference, with all numbers that `conclude` needs."""

    arm: str
    reference: str
    difference: float  # mean over cases of (arm - reference), each averaged over seeds
    low: float  # bootstrap interval of the difference, at 1 - LEVEL
    high: float
    p: float  # Wilcoxon signed-rank, two-sided, on units
    effect: float  # matched-pairs rank-biserial correlation, -1..1
    p_adjusted: float  # after Holm's correction over all comparisons of one call
    smallest_p: float  # the smallest adjusted p that so few units could have given
    cases: int
    units: int  # groups, or cases where there are no groups
    seeds: int
    level: float = LEVEL


def tabulate(scores) -> tuple[tuple, tuple, dict[str, np.ndarray]]:
    """Turn scores[arm][seed][case] into (cases, seeds, {arm: float64 array (seeds, cases)}), in one order.

    ValueError where an arm lacks a seed or a case, or a score is not finite: nothing is dropped.
    """
    first = next(iter(scores.values()))
    seeds, cases = tuple(first), tuple(next(iter(first.values())))
    for arm, by_seed in scores.items():
        if set(by_seed) != set(seeds):
            raise ValueError(f"arm {arm} has seeds {sorted(by_seed)}, others {sorted(seeds)}")
        for seed, by_case in by_seed.items():
            if odd := set(by_case) ^ set(cases):
                raise ValueError(f"arm {arm}, seed {seed}: {len(odd)} cases are not in every arm, such as {min(odd)}")
    table = {arm: np.array([[scores[arm][s][c] for c in cases] for s in seeds], dtype=float) for arm in scores}
    for arm, values in table.items():
        if odd := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(f"arm {arm} has {odd} scores that are not finite")
    return cases, seeds, table


def describe_arms(scores) -> dict[str, dict[str, float]]:
    """Return {arm: {"mean", "case_spread", "seed_spread"}}.

    case_spread: standard deviation (n - 1) over cases of the seed average.  seed_spread: that over seeds of the case
    average, which holds whatever the seed decides; nan with one seed.
    """
    found = {}
    for arm, values in tabulate(scores)[2].items():
        spreads = {"case_spread": _spread(values.mean(axis=0)), "seed_spread": _spread(values.mean(axis=1))}
        found[arm] = {"mean": float(values.mean())} | spreads
    return found


def compare_arms(scores, arms, baseline, classical, rng, groups=None, resamples: int = 2000) -> list[Comparison]:
    """Compare each of `arms` with the baseline and with the best of the `classical` arms.

    groups: {case: patient}, where cases share one; None where each case stands alone.  rng: numpy Generator.
    The best classical arm has the highest mean on these same scores. Choosing it here flatters the classical side, so a
    gain over it is understated. Holm's correction runs over all comparisons returned.
    """
    cases, seeds, table = tabulate(scores)
    members = _members(cases, groups)
    pairs = [(arm, baseline) for arm in arms if arm != baseline]
    if classical:
        best = max(classical, key=lambda arm: table[arm].mean())
        pairs += [(arm, best) for arm in arms if arm not in classical and best != baseline]
    found = []
    for arm, reference in pairs:
        differences = table[arm].mean(axis=0) - table[reference].mean(axis=0)
        low, high = bootstrap_interval(differences, rng, members, LEVEL, resamples)
        p, effect = signed_rank(np.bincount(members, weights=differences) / np.bincount(members))  # means of groups
        found.append((arm, reference, float(differences.mean()), low, high, p, effect))
    adjusted = holm([row[5] for row in found])
    units = int(members.max()) + 1
    smallest = min(1.0, len(pairs) * 2.0 ** (1 - units))  # all units on one side: 2 of the 2^units equally likely signs
    shared = {"smallest_p": smallest, "cases": len(cases), "units": units, "seeds": len(seeds)}
    return [Comparison(*row, p_adjusted=p, **shared) for row, p in zip(found, adjusted, strict=True)]


def bootstrap_interval(differences, rng, members=None, level=LEVEL, resamples=2000) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean paired difference, at confidence 1 - level.

    differences: (cases,), averaged over seeds.  members: (cases,) group numbers 0..G-1 (None: each case is a group);
    whole groups are drawn with replacement, so cases of one patient come and go together.
    It speaks for new cases under these seeds.  With fewer than about 20 groups it is too narrow.
    """
    differences = np.asarray(differences, dtype=float)
    members = np.arange(len(differences)) if members is None else members
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


def verdict(c: Comparison) -> str:
    """One of "detectable gain", "detectable loss", "no detectable gain", "too few cases to tell".

    A gain or loss needs both: adjusted p below the level, and an interval that lies on that side of zero.
    """
    if c.smallest_p > c.level:
        return "too few cases to tell"
    if c.p_adjusted < c.level and c.low > 0 and c.effect > 0:
        return "detectable gain"
    if c.p_adjusted < c.level and c.high < 0 and c.effect < 0:
        return "detectable loss"
    return "no detectable gain"


def find_disagreement(c: Comparison) -> str:
    """Say where interval, adjusted p and direction of the ranks disagree; "" where they agree."""
    excludes, reaches = c.low > 0 or c.high < 0, c.p_adjusted < c.level
    if excludes and not reaches:
        return f"the interval excludes zero but the corrected p does not reach {c.level:g}"
    if reaches and not excludes:
        return f"the corrected p is below {c.level:g} but the interval includes zero"
    if reaches and (c.low > 0) != (c.effect > 0):
        return "the interval and the ranks point in opposite directions"
    return ""


def conclude(c: Comparison) -> str:
    """Write the verdict, the numbers it rests on and what speaks against it as one sentence."""
    numbers = [
        f"mean difference in Dice {c.difference:+.4f}",
        f"{100 * (1 - c.level):g} % interval {c.low:+.4f} to {c.high:+.4f}",
        f"Holm-corrected p {c.p_adjusted:.2g}",
        f"rank-biserial {c.effect:+.2f}",
        f"{c.cases} cases" if c.units == c.cases else f"{c.cases} cases in {c.units} groups",
        f"{c.seeds} seed" + ("s" if c.seeds > 1 else ""),
    ]
    few = f"the smallest p that could be reached is {c.smallest_p:.2g}" if c.smallest_p > c.level else ""
    notes = filter(None, (", ".join(numbers), few, find_disagreement(c)))
    return f"{c.arm} against {c.reference}: {verdict(c)} ({'; '.join(notes)})."


def _members(cases, groups):
    """Number the groups 0..G-1 and return each case's; a case without a group is its own."""
    groups, numbers = groups or {}, {}
    keys = [("case", case) if groups.get(case) is None else ("group", groups[case]) for case in cases]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _spread(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
