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


def write_report(folder, rows, labelled, settings, classical, fidelity=(), beside_real=()):
    """Write per_case.csv and summary.json into the folder, print the table and the conclusion, draw figures/ and the page.

    rows: dicts with arm, fold, seed, case, and what `score_case` returns. labelled: LabelledSet.
    settings: of train_seg.py. classical: names of the classical arms. fidelity: rows of `mask_fidelity` for the generated
    images, if there are any; beside_real: one dict of `describe_generated` per fold. Returns what summary.json holds.
    """
    write_text(folder / "per_case.csv", list_cases(rows))
    scores = average_classes(rows)
    deviations = ", ".join(find_deviations(settings))
    results = {
        "settings": asdict(settings),
        "versions": list_versions(),
        "stamp": f"published deviations on: {deviations}" if deviations else "",
        **compute(scores, rows, labelled.cases, settings, classical),
        "fidelity": describe_fidelity(fidelity),
        "beside_real": {"folds": list(beside_real), "sentences": describe_beside_real(beside_real)},
    }
    write_json(folder / "summary.json", make_plain(results), indent=1)
    tables = {"main": list_scores(results), "kinds": list_kinds(results)}
    print("", *filter(None, [results["stamp"]]), *(align(table) + "\n" for table in tables.values()), sep="\n")
    print(*results["conclusion"], *results["fidelity"]["sentences"], *results["beside_real"]["sentences"], sep="\n")
    tables["comparisons"] = list_comparisons(results)
    if len(labelled.classes) > 2:
        tables["classes"] = list_classes(results)
    figures = illustrate(folder, scores, rows, results, labelled, settings)
    write_page(folder / "report.html", results, tables, figures, labelled, settings)
    return results


def find_deviations(settings):
    """Return the names of the published deviations that are on: this run's and those of the generator that it used."""
    images = [] if settings.generated is None else read_manifest(settings.generated / "fold0")
    return [*read_compat(settings.compat, "train_seg.py"), *(images[0].get("compat", []) if images else [])]


def write_sweep(folder, results, label):
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


def compute(scores, rows, cases, settings, classical):
    """Return all numbers of the report: arms, comparisons, conclusion, and what they rest on.

    The conclusion is about our arm, or about the first one with generated images where ours was not run.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    classical = [arm for arm in classical if arm in arms]
    described = describe_arms(scores)
    groups = {case.volume or case.id: case.group for case in cases}
    generated = [arm for arm in arms if arm not in (BASELINE, CONTROL, *classical)]
    others = [arm for arm in arms if arm in (CONTROL, *classical)]
    rng = np.random.default_rng(seed_from(settings.seed, "bootstrap"))
    compared = compare_arms(scores, generated, BASELINE, classical, rng, groups)
    compared += compare_arms(scores, others, BASELINE, (), rng, groups)
    judged = OURS if OURS in generated else next(iter(generated), None)
    return {
        "arms": {arm: {"scores": describe_arm(arm, rows), "dice": described[arm]} for arm in arms},
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


def average_classes(rows):
    """Return {arm: {seed: {case: Dice, the mean over classes}}}."""
    by_case, averages = {}, {}
    for row in rows:
        by_case.setdefault((row["arm"], row["seed"], row["case"]), []).append(row["dice"])
    for (arm, seed, case), dice in by_case.items():
        averages.setdefault(arm, {}).setdefault(seed, {})[case] = float(np.mean(dice))
    return averages


def describe_arm(arm, rows):
    """Summarise the rows of an arm, pooled and by class: {class: what `summarise` gives}."""
    mine = [row for row in rows if row["arm"] == arm]
    return summarise([row | {"class": ALL} for row in mine]) | summarise(mine)


def describe_fidelity(rows):
    """Summarise mask fidelity by class: {"scores", "sentences"}; no sentence where nothing was measured."""
    summary = summarise(rows)
    count = len({(row.get("fold"), row["image"]) for row in rows})
    sentences = [
        f"Mask fidelity, {name}: the baseline's segmenters, which learned from the real images of the same cases, find the "
        f"mask that was asked for in {count} generated images with Dice "
        f"{show(entry['scores']['dice']['mean'])} +- {show(entry['scores']['dice']['spread'])}."
        for name, entry in summary.items()
    ]
    return {"scores": summary, "sentences": sentences}


def describe_beside_real(folds):
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
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def list_versions():
    """Return the versions of the code and of the packages that computed the numbers."""
    packages = {package.__name__: package.__version__ for package in (torch, np, scipy, matplotlib)}
    return {"code": code_version(), "python": platform.python_version()} | packages


def list_cases(rows):
    """Return the rows as CSV; every number can be read back exactly, infinite distances are "inf"."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def list_scores(results):
    """Return the main table as rows of strings, the header first."""
    unit = "/".join(results["units"])
    header = ["arm", "Dice", "difference", f"{100 * (1 - LEVEL):g} % interval", "p (Holm)"]
    table = [[*header, "IoU", "precision", "recall", f"HD95 [{unit}]", f"ASSD [{unit}]", "NSD"]]
    against = {c["arm"]: show_comparison(c) for c in results["comparisons"] if c["reference"] == BASELINE}
    for arm, entry in results["arms"].items():
        dice = f"{entry['dice']['mean']:.4f} +- {show(entry['dice']['case_spread'], 4)}"
        table.append([arm, dice, *against.get(arm, ["", "", ""]), *show_scores(entry["scores"][ALL]["scores"])])
    return table


def list_classes(results):
    """Return the scores of each class."""
    table = [["arm", "class", "Dice", "IoU", "precision", "recall", "HD95", "ASSD", "NSD"]]
    for arm, entry in results["arms"].items():
        for name in results["classes"]:
            scores = entry["scores"][name]["scores"]
            table.append([arm, name, show(scores["dice"]["mean"]), *show_scores(scores)])
    return table


def list_kinds(results):
    """Return how many masks were present, empty, missed or false alarms, for each arm."""
    pooled = {arm: entry["scores"][ALL] for arm, entry in results["arms"].items()}
    return [["arm", *KINDS, "of"]] + [[arm, *(str(n[key]) for key in (*KINDS, "cases"))] for arm, n in pooled.items()]


def list_comparisons(results):
    """Return every comparison with its verdict."""
    table = [["arm", "against", "difference", "interval", "p (Holm)", "p", "rank-biserial", "verdict"]]
    for c in results["comparisons"]:
        numbers = [*show_comparison(c), f"{c['p']:.2g}", f"{c['effect']:+.2f}"]
        table.append([c["arm"], c["reference"], *numbers, c["verdict"]])
    return table


def show_comparison(c):
    """Return difference, interval and corrected p as strings."""
    return [f"{c['difference']:+.4f}", f"{c['low']:+.4f} to {c['high']:+.4f}", f"{c['p_adjusted']:.2g}"]


def show_scores(scores):
    """Return the means of IoU, precision and recall, the medians of HD95 and ASSD, the mean of NSD, as strings.

    A median is over all cases, a missed lesion or a false alarm being infinite; in brackets stands how many are.
    """
    shares = [show(scores[name]["mean"]) for name in ("iou", "precision", "recall")]
    distances = [f"{show(scores[name]['median'], 2)} ({scores[name]['infinite']} inf)" for name in ("hd95", "assd")]
    return [*shares, *distances, show(scores["nsd"]["mean"])]


def show(value, digits=3):
    """Return a number as a string, a dash for what cannot be computed."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def align(table):
    """Return the table as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(line.rstrip() for line in lines)
