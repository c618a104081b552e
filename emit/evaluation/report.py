"""The report of the comparison: table on the screen, per_case.csv, summary.json, figures/ and one page, report.html.

Two families of tests, each with Holm's correction: the arms with generated images against the baseline and the best
classical arm, and every other arm against the baseline.
"""

import csv
import io
import math
import platform
from dataclasses import asdict
from functools import partial

import matplotlib
import numpy as np
import scipy
import torch

from emit.compat import read_compat
from emit.evaluation.figures import attempt, save_sweep
from emit.evaluation.illustrate import illustrate
from emit.evaluation.metrics import KINDS, summarise
from emit.evaluation.page import write_page
from emit.evaluation.statistics import LEVEL, compare_arms, conclude, describe_arms, verdict
from emit.files import write_json, write_text
from emit.generated import read_manifest
from emit.seeds import seed_from
from emit.training.settings import code_version

BASELINE, OURS, CONTROL = "baseline", "ours", "copies"
ALL = "all classes"
NOTHING = "No arm with generated images was run: nothing is concluded about generated images."


def write_report(folder, rows, labelled, settings, classical, fidelity=(), beside_real=()) -> dict:
    """Write per_case.csv and summary.json, print the tables and the conclusion, draw figures/ and the page.

    rows: dicts with arm, fold, seed, case, and what `score_case` returns. labelled: LabelledSet. settings: of
    train_seg.py. classical: names of arms. Of generated images, fidelity: rows of `mask_fidelity`; beside_real: one dict
    of `describe_generated` per fold. Returns what summary.json holds.
    """
    write_text(folder / "per_case.csv", list_cases(rows))
    scores = average_classes(rows)
    deviations = ", ".join(find_deviations(settings))
    results = {
        "settings": asdict(settings),
        "versions": {"code": code_version(), "python": platform.python_version()}
        | {package.__name__: package.__version__ for package in (torch, np, scipy, matplotlib)},
        "stamp": f"published deviations on: {deviations}" if deviations else "",
        **compute(scores, rows, labelled.cases, settings, classical),
        "fidelity": describe_fidelity(fidelity),
        "beside_real": {"folds": list(beside_real), "sentences": describe_beside_real(beside_real)},
    }
    write_json(folder / "summary.json", make_plain(results), indent=1)
    tables = make_tables(results)
    print("", *filter(None, [results["stamp"]]), *(align(tables[name]) + "\n" for name in ("main", "kinds")), sep="\n")
    print(*results["conclusion"], *results["fidelity"]["sentences"], *results["beside_real"]["sentences"], sep="\n")
    figures = illustrate(folder, scores, rows, results, labelled, settings)
    write_page(folder / "report.html", results, tables, figures, labelled, settings)
    return results


def find_deviations(settings) -> list[str]:
    """Return the names of the published deviations that are on: this run's and those of the generator that it used."""
    images = [] if settings.generated is None else read_manifest(settings.generated / "fold0")
    return [*read_compat(settings.compat, "train_seg.py"), *(images[0].get("compat", []) if images else [])]


def write_sweep(folder, results, label: str) -> None:
    """Write sweep.json and sweep.png: each arm's mean Dice against the swept setting.

    results: {value: what write_report returned}; label: what the values are. Bars: the standard error of the mean over
    cases, each averaged over its seeds; the arms share their cases, so bars that overlap do not mean "no difference".
    """
    runs, means, errors = list(results.values()), {}, {}
    for arm in runs[0]["arms"]:
        means[arm] = [run["arms"][arm]["dice"]["mean"] for run in runs]
        errors[arm] = [run["arms"][arm]["dice"]["case_spread"] / math.sqrt(run["cases"]) for run in runs]
    sweep = {"label": label, "values": list(results), "mean_dice": means, "standard_error": errors}
    sweep["conclusions"] = {str(value): found["conclusion"] for value, found in results.items()}
    write_json(folder / "sweep.json", make_plain(sweep), indent=1)
    save = partial(save_sweep, means=means, spreads=errors, label=label)
    attempt(folder / "sweep.png", lambda: list(results), save, runs[0]["stamp"])


def compute(scores, rows, cases, settings, classical) -> dict:
    """Return all numbers of the report: arms, comparisons, conclusion, and what they rest on.

    The conclusion is about our arm, or about the first one with generated images where ours was not run.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    classical = [arm for arm in classical if arm in arms]
    described, summaries = describe_arms(scores), {}
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        summaries[arm] = summarise([row | {"class": ALL} for row in mine]) | summarise(mine)
    groups = {case.volume or case.id: case.group for case in cases}
    others = [arm for arm in arms if arm in (CONTROL, *classical)]
    generated = [arm for arm in arms if arm not in (BASELINE, *others)]
    rng = np.random.default_rng(seed_from(settings.seed, "bootstrap"))
    compared = compare_arms(scores, generated, BASELINE, classical, rng, groups)
    compared += compare_arms(scores, others, BASELINE, (), rng, groups)
    judged = OURS if OURS in generated else next(iter(generated), None)
    return {
        "arms": {arm: {"scores": summaries[arm], "dice": described[arm]} for arm in arms},
        "best_classical": max(classical, key=lambda arm: described[arm]["mean"], default=None),
        "generated_arms": generated,
        "comparisons": [asdict(c) | {"verdict": verdict(c), "sentence": conclude(c)} for c in compared],
        "conclusion": [conclude(c) for c in compared if c.arm == judged] or [NOTHING],
        "classes": list(dict.fromkeys(row["class"] for row in rows)),
        "units": sorted({row["unit"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "cases": len({row["case"] for row in rows}),
        "groups": len({groups[row["case"]] for row in rows}),
    }


def average_classes(rows) -> dict[str, dict]:
    """Return {arm: {seed: {case: Dice, the mean over classes}}}."""
    by_case, averages = {}, {}
    for row in rows:
        by_case.setdefault((row["arm"], row["seed"], row["case"]), []).append(row["dice"])
    for (arm, seed, case), dice in by_case.items():
        averages.setdefault(arm, {}).setdefault(seed, {})[case] = float(np.mean(dice))
    return averages


def describe_fidelity(rows) -> dict:
    """Summarise mask fidelity by class: {"scores", "sentences"}; no sentence where nothing was measured."""
    summary, sentences = summarise(rows), []
    count = len({(row.get("fold"), row["image"]) for row in rows})
    for name, entry in summary.items():
        dice = entry["scores"]["dice"]
        sentences.append(
            f"Mask fidelity, {name}: the baseline's segmenters, which learned from the real images of the same cases, find "
            f"the mask that was asked for in {count} generated images with Dice {show(dice['mean'])} +- {show(dice['spread'])}."
        )
    return {"scores": summary, "sentences": sentences}


def describe_beside_real(folds) -> list[str]:
    """Say how near the generated images are to training images, and how different among themselves."""
    return [
        f"Copies, fold {fold}: the nearest training image correlates with {found['images']} generated images at "
        f"{found['correlation']:.2f} in the median and {found['highest']:.2f} at most, with unseen real ones at "
        f"{found['held_out']:.2f}; it is the image's own source, whose edges it follows, for {found['own_source']:.0%}; "
        f"{found['flagged']} are nearer than 99 % of the unseen."
        + (f" Diversity within a case {found['diversity']:.2f}." if found["diversity"] is not None else "")
        for fold, found in enumerate(folds)
    ]


def make_plain(value):
    """Return the value as JSON can hold it: what is not finite becomes None, what is no number, list or dict a string."""
    if isinstance(value, dict):
        return {str(key): make_plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(member) for member in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, int | float | str | None) else str(value)


def list_cases(rows) -> str:
    """Return the rows as CSV; every number can be read back exactly, infinite distances are "inf"."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make_tables(results) -> dict[str, list[list[str]]]:
    """Return {name: rows of strings, the header first}: main, kinds, comparisons and, where there are several, classes."""
    unit, interval = "/".join(results["units"]), f"{100 * (1 - LEVEL):g} % interval"
    distances = [f"HD95 [{unit}]", f"ASSD [{unit}]"]
    main = [["arm", "Dice", "difference", interval, "p (Holm)", "IoU", "precision", "recall", *distances, "NSD"]]
    kinds = [["arm", *KINDS, "of"]]
    comparisons = [["arm", "against", "difference", "interval", "p (Holm)", "p", "rank-biserial", "verdict"]]
    classes = [["arm", "class", "Dice", "IoU", "precision", "recall", "HD95", "ASSD", "NSD"]]
    to_baseline = {}
    for c in results["comparisons"]:
        numbers = [f"{c['difference']:+.4f}", f"{c['low']:+.4f} to {c['high']:+.4f}", f"{c['p_adjusted']:.2g}"]
        comparisons.append([c["arm"], c["reference"], *numbers, f"{c['p']:.2g}", f"{c['effect']:+.2f}", c["verdict"]])
        if c["reference"] == BASELINE:
            to_baseline[c["arm"]] = numbers
    for arm, entry in results["arms"].items():
        pooled = entry["scores"][ALL]
        dice = f"{entry['dice']['mean']:.4f} +- {show(entry['dice']['case_spread'], 4)}"
        main.append([arm, dice, *to_baseline.get(arm, [""] * 3), *show_scores(pooled["scores"])])
        kinds.append([arm, *(str(pooled[key]) for key in (*KINDS, "cases"))])
        for name in results["classes"]:
            scores = entry["scores"][name]["scores"]
            classes.append([arm, name, show(scores["dice"]["mean"]), *show_scores(scores)])
    tables = {"main": main, "kinds": kinds, "comparisons": comparisons}
    return tables | {"classes": classes} if len(results["classes"]) > 1 else tables


def show_scores(scores) -> list[str]:
    """Return the means of IoU, precision and recall, the medians of HD95 and ASSD, the mean of NSD, as strings.

    A median is over all cases, a missed lesion or a false alarm being infinite; in brackets stands how many are.
    """
    shares = [show(scores[name]["mean"]) for name in ("iou", "precision", "recall")]
    distances = [f"{show(scores[name]['median'], 2)} ({scores[name]['infinite']} inf)" for name in ("hd95", "assd")]
    return [*shares, *distances, show(scores["nsd"]["mean"])]


def show(value: float, digits: int = 3) -> str:
    """Return a number as a string, a dash for what cannot be computed."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def align(table) -> str:
    """Return the table as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in table)
