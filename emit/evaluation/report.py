"""The report of the comparison: table on the screen, per_case.csv, summary.json, figures/ and one page, report.html.

Two families of tests, each with Holm's correction: the arms with generated images against the baseline and the best
classical arm, and every other arm against the baseline.
"""

import csv
import json
import math
import platform
from dataclasses import asdict

import matplotlib
import numpy as np
import scipy
import torch

from emit.compat import read_compat
from emit.evaluation.figures import save_sweep
from emit.evaluation.illustrate import illustrate
from emit.evaluation.metrics import KINDS, POLICIES, policies, summarise
from emit.evaluation.page import write_page
from emit.evaluation.statistics import compare_arms, conclude, describe_arms, verdict
from emit.files import write_atomic
from emit.seeds import seed_from
from emit.training.config import code_version

BASELINE, OURS, CONTROL = "baseline", "ours", "copies"
ALL = "all classes"


def write_report(folder, rows, fake_pixel_rows, cases, splits, settings, classical, fidelity=(), beside_real=()):
    """Print the table and the conclusion; write per_case.csv, summary.json, figures/ and report.html into the folder.

    rows: dicts with arm, fold, seed, case, and what `score_case` returns; fake_pixel_rows: the same with its fake pixel.
    cases: CaseSet. splits: one Split per fold. settings: of train_seg.py. classical: names of the classical arms.
    fidelity: rows of `mask_fidelity` for the generated images, if there are any; beside_real: one dict of
    `describe_generated` per fold. Returns what summary.json holds.
    """
    write_atomic(folder / "per_case.csv", lambda path: write_cases(path, rows))
    scores = average_classes(rows)
    results = compute(scores, rows, fake_pixel_rows, cases.cases, settings, classical)
    habits = find_habits(settings)
    stamp = f"published habits on: {', '.join(habits)}" if habits else ""
    results = {"settings": asdict(settings), "versions": list_versions(), "stamp": stamp} | results
    results["fidelity"] = describe_fidelity(fidelity)
    results["beside_real"] = {"folds": list(beside_real), "sentences": tell_beside_real(beside_real)}
    text = json.dumps(make_plain(results), indent=1, allow_nan=False)
    write_atomic(folder / "summary.json", lambda path: path.write_text(text + "\n"))
    tables = {"main": list_scores(results), "kinds": list_kinds(results)}
    print(f"\n{stamp}\n" if stamp else "")
    for table in tables.values():
        print(align(table) + "\n")
    print("\n".join([*results["conclusion"], *results["fidelity"]["sentences"], *results["beside_real"]["sentences"]]))
    tables |= {"comparisons": list_comparisons(results), "policies": list_policies(results)}
    if len(cases.classes) > 2:
        tables["classes"] = list_classes(results)
    figures = illustrate(folder, scores, rows, results, cases, settings)
    write_page(folder / "report.html", results, tables, figures, cases, splits, settings)
    return results


def find_habits(settings):
    """Return the published habits that are on: this run's and those of the generator that it used."""
    habits = list(read_compat(settings.compat, "train_seg.py"))
    config = None if settings.generated is None else settings.generated / "config.json"
    if config is not None and config.exists():
        words = json.loads(config.read_text())["settings"].get("compat", [])
        habits += read_compat(words, "emit.generate")
    return habits


def write_sweep(folder, results, label):
    """Write sweep.json and sweep.png: each arm's mean Dice against the swept setting.

    results: {value: what write_report returned}; label: what the values are. Bars: the standard error of the mean over
    cases, each averaged over its seeds; the arms share their cases, so bars that overlap do not mean "no difference".
    """
    arms = next(iter(results.values()))["arms"]
    means = {arm: [found["arms"][arm]["dice"]["mean"] for found in results.values()] for arm in arms}
    errors = {
        arm: [found["arms"][arm]["dice"]["case_spread"] / math.sqrt(found["cases"]) for found in results.values()]
        for arm in arms
    }
    kept = {"label": label, "values": list(results), "mean_dice": means, "standard_error": errors}
    kept["conclusions"] = {str(value): found["conclusion"] for value, found in results.items()}
    write_atomic(folder / "sweep.json", lambda path: path.write_text(json.dumps(make_plain(kept), indent=1) + "\n"))
    save_sweep(folder / "sweep.png", list(results), means, errors, label, stamp=next(iter(results.values()))["stamp"])


def compute(scores, rows, fake_rows, cases, settings, classical):
    """Return all numbers of the report: arms, comparisons, conclusion, and what they rest on."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    classical = [arm for arm in classical if arm in arms]
    described = describe_arms(scores)
    groups = {case.volume or case.id: case.group for case in cases}
    generated = [arm for arm in arms if arm not in (BASELINE, CONTROL, *classical)]
    others = [arm for arm in arms if arm in (CONTROL, *classical)]
    rng = np.random.default_rng(seed_from(settings.seed, "bootstrap"))
    compared = compare_arms(scores, generated, BASELINE, classical, rng, groups, settings.level)
    compared += compare_arms(scores, others, BASELINE, (), rng, groups, settings.level)
    comparisons = [asdict(c) | {"verdict": verdict(c), "sentence": conclude(c)} for c in compared]
    return {
        "arms": {arm: describe_arm(arm, rows, fake_rows) | {"dice": described[arm]} for arm in arms},
        "best_classical": max(classical, key=lambda arm: described[arm]["mean"], default=None),
        "generated_arms": generated,
        "comparisons": comparisons,
        "conclusion": choose_sentences(comparisons, generated),
        "classes": list(dict.fromkeys(row["class"] for row in rows)),
        "units": sorted({row["unit"] for row in rows}),
        "seeds": len({row["seed"] for row in rows}),
        "cases": len({row["case"] for row in rows}),
        "groups": len({groups[row["case"]] for row in rows}),
    }


def choose_sentences(comparisons, generated):
    """Return the sentences about our arm, or about the first one with generated images where ours was not run."""
    if not generated:
        return ["No arm with generated images was run: nothing is concluded about generated images."]
    arm = OURS if OURS in generated else generated[0]
    return [comparison["sentence"] for comparison in comparisons if comparison["arm"] == arm]


def average_classes(rows):
    """Return {arm: {seed: {case: Dice, the mean over classes}}}."""
    found = {}
    for row in rows:
        by_case = found.setdefault(row["arm"], {}).setdefault(row["seed"], {})
        by_case.setdefault(row["case"], []).append(row["dice"])
    return {
        arm: {seed: {case: float(np.mean(dice)) for case, dice in by_case.items()} for seed, by_case in by_seed.items()}
        for arm, by_seed in found.items()
    }


def describe_arm(arm, rows, fake_rows):
    """Summarise the rows of an arm by class and pooled, and under each policy: {"scores", "policies"}."""
    pair = [[row for row in table if row["arm"] == arm] for table in (rows, fake_rows)]
    pooled = [[row | {"class": ALL} for row in table] for table in pair]
    by_class, together = policies(*pair), policies(*pooled)
    found = {name: together[name] | by_class[name] for name in together}
    return {"scores": summarise(pooled[0]) | summarise(pair[0]), "policies": found}


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


def tell_beside_real(folds):
    """Say how near the generated images are to training images, and how different among themselves."""
    return [
        f"Copies, fold {fold}: the nearest training image correlates with {found['images']} generated images at "
        f"{found['correlation']:.2f} in the median and {found['highest']:.2f} at most, with unseen real ones at "
        f"{found['held_out']:.2f}; it is the image's own source, whose edges it follows, for {found['own_source']:.0%}; "
        f"{found['flagged']} are nearer than 99 % of the unseen."
        + (f" Diversity within a case {found['diversity']:.2f}." if found["diversity"] is not None else "")
        for fold, found in enumerate(folds)
    ]


def write_cases(path, rows):
    """Write the rows as CSV; every number can be read back exactly, infinite distances are "inf"."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


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
    packages = {"torch": torch, "numpy": np, "scipy": scipy, "matplotlib": matplotlib}
    versions = {name: package.__version__ for name, package in packages.items()}
    return {"code": code_version(), "python": platform.python_version()} | versions


def list_scores(results):
    """Return the main table as rows of strings, the header first."""
    unit = "/".join(results["units"])
    header = ["arm", "Dice", "difference", f"{100 * (1 - results['settings']['level']):g} % interval", "p (Holm)"]
    header += ["IoU", "precision", "recall", f"HD95 [{unit}]", f"ASSD [{unit}]", "NSD"]
    against = {c["arm"]: c for c in results["comparisons"] if c["reference"] == BASELINE}
    table = [header]
    for arm, entry in results["arms"].items():
        line, dice, scores = [arm], entry["dice"], entry["scores"][ALL]["scores"]
        line.append(f"{dice['mean']:.4f} +- {show(dice['case_spread'], 4)}")
        c = against.get(arm)
        line += ["", "", ""] if c is None else show_comparison(c)
        line += [show(scores[name]["mean"]) for name in ("iou", "precision", "recall")]
        line += [f"{show(scores[name]['mean'], 2)} ({scores[name]['infinite']} inf)" for name in ("hd95", "assd")]
        table.append([*line, show(scores["nsd"]["mean"])])
    return table


def list_kinds(results):
    """Return how many masks were present, empty, missed or false alarms, for each arm."""
    table = [["arm", *KINDS, "of"]]
    for arm, entry in results["arms"].items():
        counts = entry["scores"][ALL]
        table.append([arm, *(str(counts[kind]) for kind in KINDS), str(counts["cases"])])
    return table


def list_comparisons(results):
    """Return every comparison with its verdict."""
    table = [["arm", "against", "difference", "interval", "p (Holm)", "p", "rank-biserial", "verdict"]]
    for c in results["comparisons"]:
        line = [c["arm"], c["reference"], *show_comparison(c), f"{c['p']:.2g}"]
        table.append([*line, f"{c['effect']:+.2f}", c["verdict"]])
    return table


def list_policies(results):
    """Return Dice and HD95 as each policy would have reported them, with the number of dropped cases."""
    names = (*POLICIES, "diffboost")
    table = [["arm", *(f"Dice, {name}" for name in names), *(f"HD95, {name}" for name in names if name != "nnunet")]]
    for arm, entry in results["arms"].items():
        found = {name: entry["policies"][name][ALL]["scores"] for name in names}
        line = [arm, *(show_policy(found[name]["dice"], 4) for name in names)]
        table.append([*line, *(show_policy(found[name]["hd95"], 2) for name in names if "hd95" in found[name])])
    return table


def list_classes(results):
    """Return the scores of each class."""
    table = [["arm", "class", "Dice", "IoU", "precision", "recall", "HD95", "ASSD", "NSD"]]
    for arm, entry in results["arms"].items():
        for name in results["classes"]:
            scores = entry["scores"][name]["scores"]
            line = [show(scores[key]["mean"]) for key in ("dice", "iou", "precision", "recall")]
            line += [f"{show(scores[key]['mean'], 2)} ({scores[key]['infinite']} inf)" for key in ("hd95", "assd")]
            table.append([arm, name, *line, show(scores["nsd"]["mean"])])
    return table


def show_comparison(c):
    """Return difference, interval and corrected p as strings."""
    return [f"{c['difference']:+.4f}", f"{c['low']:+.4f} to {c['high']:+.4f}", f"{c['p_adjusted']:.2g}"]


def show_policy(numbers, digits):
    """Return a mean and what it leaves out, as a string."""
    left = [f"{numbers[key]} {word}" for key, word in (("infinite", "inf"), ("dropped", "dropped")) if numbers[key]]
    return show(numbers["mean"], digits) + (f" ({', '.join(left)})" if left else "")


def show(value, digits=3):
    """Return a number as a string, a dash for what cannot be computed."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def align(table):
    """Return the table as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
    return "\n".join(line.rstrip() for line in lines)
