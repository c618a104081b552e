"""Is an arm better than its reference, or is it noise: of the cases, and of the trainings (weights, order, draws)?

A table {arm: (folds, seeds, cases)} holds the score of every case by every training that tested it, and nan elsewhere.
Sampled are groups of cases (a patient's cases share one) and trainings; arms share both, so differences are paired.
Scores must be finite and larger must be better (Dice, IoU, NSD).
"""

import numpy as np
from scipy import optimize, stats

from emit.errors import InputError
from emit.evaluation.metrics import measure_spread

LEVEL = 0.05  # of tests and intervals [choice] convention
POWER = 0.8  # at which a difference counts as detectable [choice] convention
FEWEST = 6  # groups of a verdict [choice] with 5, even all gaining, a sign test's p is 2 / 2^5 > LEVEL


def tabulate(rows) -> tuple[list[str], list[int], dict[str, np.ndarray]]:
    """Return (cases, seeds, {arm: Dice averaged over classes, (folds, seeds, cases)}); KeyError where an arm lacks a score.

    rows: dicts with arm, fold, seed, case and dice.
    """
    dice = {}
    for row in rows:
        if not np.isfinite(row["dice"]):
            raise InputError(f"{row['arm']}, case {row['case']}: Dice is {row['dice']}; remove its scores.json and resume")
        dice.setdefault((row["arm"], row["fold"], row["seed"], row["case"]), []).append(row["dice"])
    arms, folds, seeds, cases = (list(dict.fromkeys(names)) for names in zip(*dice, strict=True))
    table = {arm: np.full((len(folds), len(seeds), len(cases)), np.nan) for arm in arms}
    for fold, case in dict.fromkeys((fold, case) for _, fold, _, case in dice):
        for arm in arms:
            found = [np.mean(dice[arm, fold, seed, case]) for seed in seeds]
            table[arm][folds.index(fold), :, cases.index(case)] = found
    return cases, seeds, table


def describe(values) -> dict[str, float]:
    """Describe an arm's (folds, seeds, cases): mean; case_spread, standard deviation over cases of their averages;
    seed_spread, that over seeds of the average, which holds whatever the seed decides; nan with one seed.
    """
    by_case = np.nanmean(values, axis=0)  # (seeds, cases)
    spreads = {"case_spread": measure_spread(by_case.mean(axis=0)), "seed_spread": measure_spread(by_case.mean(axis=1))}
    return {"mean": float(by_case.mean())} | spreads


def compare_arms(table, pairs, groups) -> list[dict]:
    """Compare the pairs (arm, reference) of one family, over all of which Holm's correction runs: `infer` of the differences.

    table: of `tabulate`.  groups: of each case, its patient.  units: number of groups; folds x seeds: each arm's trainings.
    """
    found = [{"arm": a, "reference": b} | infer(table[a] - table[b], groups) for a, b in pairs]
    folds, seeds, cases = next(iter(table.values())).shape
    shared = {"cases": cases, "units": len(set(groups)), "folds": folds, "seeds": seeds}
    return [c | {"p_adjusted": p} | shared for c, p in zip(found, holm([c["p"] for c in found]), strict=True)]


def infer(values, groups) -> dict[str, float]:
    """Test whether the mean over cases of values (folds, seeds, cases) is zero, for new trainings and new cases.

    Returns difference (the mean), low, high (t interval at 1 - LEVEL), p (two-sided) and detectable, the difference that is
    found with probability POWER: (t_{1 - LEVEL / 2} + t_POWER) * standard error.
    """
    difference = np.nanmean(values, axis=(0, 1)).mean()
    error, freedom = measure_error(values, groups)
    reach = error * stats.t.ppf(1 - LEVEL / 2, freedom)
    found = {"difference": difference, "low": difference - reach, "high": difference + reach}
    found |= {"p": 2 * stats.t.sf(abs(difference) / error, freedom), "detectable": reach + error * stats.t.ppf(POWER, freedom)}
    return {name: float(value) for name, value in found.items()}


def measure_error(values, groups) -> tuple[float, float]:
    """Return (standard error of the mean in `infer`, its degrees of freedom).

    The trainings of a fold share their images and the generator: where that makes the larger error, a fold counts as one
    training. Where every case was tested in one fold, the cases are the fold's too, and the folds are the only groups.
    """
    tested = ~np.isnan(values[:, 0])  # (folds, cases)
    if len(set(groups)) < 2:
        return np.inf, 1.0
    if tested.all():
        found = [split_error(scores, groups) for scores in (values.reshape(-1, values.shape[2]), values.mean(axis=1))]
        return max(found, key=lambda pair: pair[0])
    return split_error(np.nanmean(values, axis=(0, 1))[None], tested.argmax(axis=0))


def split_error(scores, groups) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of the mean of scores (T trainings, cases) in G groups of cases.

    Two-way random effects, score = mean + training + group + rest:  error^2 = A + B - E,  A = s^2(means of trainings) / T,
    B = s^2(means of groups) / G,  E = s^2(rest) / (T G): A and B both hold the rest (never below A or B).
    1 / freedom is the mean of 1 / (T - 1) and 1 / (G - 1), weighted by their shares of error^2, A and B - E: Satterthwaite
    (1946) squares the shares, which rejects too often at T = 3. As readers and cases in Hillis (2007), doi:10.1002/sim.2532.
    A group counts by its share w of the cases: its squared deviation has the weight w^2 / (1 - 2 w + sum w^2), unbiased where
    groups vary alike, and 1 / sum w^2 stands for G in the degrees of freedom.
    """
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    share, count = sizes / sizes.sum(), len(scores)  # share: (G,)
    weights, pairs = share**2 / (1 - 2 * share + share @ share), max(count * (count - 1), 1)
    means = np.array([np.bincount(members, weights=row) for row in scores]) / sizes  # (T, G)
    by_training, by_group, mean = scores.mean(axis=1), means.mean(axis=0), scores.mean()  # (T,), (G,)
    rest = means - by_training[:, None] - by_group + mean
    a, b = ((by_training - mean) ** 2).sum() / pairs, weights @ (by_group - mean) ** 2
    e = weights @ (rest**2).sum(axis=0) / pairs
    variance = max(a, b, a + b - e, 1e-24)  # averages leave 1e-17 where 0 is meant
    return variance**0.5, variance / (a / max(count - 1, 1) + (variance - a) / (1 / (share @ share) - 1))


def holm(p_values) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m (from 0) times m - i, made non-decreasing, at most 1."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    return np.minimum(stepped, 1)[np.argsort(order)].tolist()


def share_headroom(table, arm, reference, oracle, groups) -> dict:
    """Return the share of the oracle's gain over the reference that the arm reaches: the names, share, low, high, sentence.

    Fieller's (1954) interval: the shares s for which gain - s * headroom is not told from zero by `infer`; infinite where
    the headroom itself is not, or is a loss. The share is nan where the headroom is zero.
    """
    gain, headroom = table[arm] - table[reference], table[oracle] - table[reference]
    means = [infer(values, groups)["difference"] for values in (gain, headroom)]
    share, far, low, high = means[0] / means[1] if means[1] else np.nan, 1e6, -np.inf, np.inf

    def excess(s):
        return LEVEL - infer(gain - s * headroom, groups)["p"]

    words = f"{arm} has no headroom to reach a share of: {oracle} adds nothing detectable to {reference}."
    if means[1] > 0 and excess(share - far) > 0 and excess(share + far) > 0:
        low, high = optimize.brentq(excess, share - far, share), optimize.brentq(excess, share, share + far)
        words = (
            f"{arm} reaches {share:.2f} of the headroom, which is what fresh real images add to {reference} "
            f"({100 * (1 - LEVEL):g} % interval {low:.2f} to {high:.2f})."
        )
    return {"arm": arm, "reference": reference, "oracle": oracle, "share": share, "low": low, "high": high, "sentence": words}


def verdict(c) -> str:
    """One of "detectable gain", "detectable loss", "no detectable gain", "too few cases to tell"."""
    if c["units"] < FEWEST:
        return "too few cases to tell"
    if c["p_adjusted"] >= LEVEL:
        return "no detectable gain"
    return "detectable gain" if c["difference"] > 0 else "detectable loss"


def conclude(c) -> str:
    """Write the verdict and the numbers it rests on as one sentence. c: of `compare_arms`."""
    numbers = [
        f"mean difference in Dice {c['difference']:+.4f}",
        f"uncorrected {100 * (1 - LEVEL):g} % interval {c['low']:+.4f} to {c['high']:+.4f}",
        f"Holm-corrected p {c['p_adjusted']:.2g}",
        f"{c['cases']} cases" + (f" in {c['units']} groups" if c["units"] < c["cases"] else ""),
        f"folds x seeds {c['folds']} x {c['seeds']}",
    ]
    trainings = "and for new trainings" if c["folds"] * c["seeds"] > 1 else "but not for new trainings, as there is one"
    notes = f"the interval speaks for new cases {trainings}; the smallest difference it could have seen is {c['detectable']:.4f}"
    return f"{c['arm']} against {c['reference']}: {verdict(c)} ({', '.join(numbers)}; {notes})."
