"""Which figures a finished run gets, and what is shown in them: chosen by rule, never by hand."""

import json
from pathlib import Path

import numpy as np

from emit.data.cache import Pictures
from emit.data.images import decode
from emit.evaluation.figures import save_contours, save_curves, save_generated, save_paired

MOST_ARMS = 6  # in one figure of contours or curves
PERCENTILES = (10, 50, 90)
COLUMNS, SAMPLES = 6, 3  # of the figure of generated images
SHOWN = f"At most {MOST_ARMS} arms: baseline, best classical, then those with generated images."
CAPTIONS = {
    "paired": "One line per case, its Dice averaged over seeds and classes: blue gains, vermilion loses. Boxes: quartiles; "
    "whiskers: the farthest case within 1.5 times their distance.",
    "contours": "Cases at the 10th, 50th and 90th percentile of the baseline's Dice, first seed, among those with a target; "
    f"of a volume, the slice with the largest target and the Dice of the whole volume. {SHOWN}",
    "generated": f"Fold 0, cases evenly spaced in the manifest, the first {SAMPLES} samples of each. Yellow: the label.",
    "curves": f"Mean over folds and seeds; the band is their range. {SHOWN}",
}


def illustrate(folder, scores, rows, results, cases, settings):
    """Draw each figure that the run folder has the material for into figures/; return [(title, path, caption)].

    scores: {arm: {seed: {case: Dice}}}.
    """
    target, stamp, shown = Path(folder) / "figures", results["stamp"], choose_shown(results)
    means = {arm: average_seeds(by_seed) for arm, by_seed in scores.items()}
    save_paired(target / "paired.png", means, stamp=stamp)
    drawn = {"paired": "Every case under every arm"}
    examples = collect_examples(folder, shown, scores["baseline"], rows, cases)
    if examples:
        save_contours(target / "contours.png", examples, cases.classes, stamp)
        drawn["contours"] = "Contours"
    if settings.generated is not None:
        save_generated(target / "generated.png", collect_generated(settings, cases.cases), stamp)
        drawn["generated"] = "Generated images"
    curves = collect_curves(folder, shown)
    if curves:
        save_curves(target / "curves.png", curves, stamp)
        drawn["curves"] = "Learning curves"
    return [(title, target / f"{name}.png", CAPTIONS[name]) for name, title in drawn.items()]


def choose_shown(results):
    """Return the arms of figures that cannot hold all: baseline, best classical, then those with generated images."""
    named = ["baseline", results["best_classical"], *results["generated_arms"]]
    return [arm for arm in named if arm][:MOST_ARMS]


def average_seeds(by_seed):
    """Turn {seed: {case: score}} into {case: mean score}."""
    cases = next(iter(by_seed.values()))
    return {case: float(np.mean([scores[case] for scores in by_seed.values()])) for case in cases}


def choose_percentiles(scores, percentiles=PERCENTILES):
    """Return [(percentile, case)]: the case of rank p (n - 1) / 100, rounded half up, by score and then by name.

    A case that two percentiles ask for is given once.
    """
    if not scores:
        return []
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    chosen = {}
    for percentile in percentiles:
        chosen.setdefault(ranked[int(percentile * (len(ranked) - 1) / 100 + 0.5)], percentile)
    return [(percentile, case) for case, percentile in chosen.items()]


def collect_examples(folder, arms, baseline, rows, cases):
    """Return what `save_contours` draws; nothing where a run kept no predictions. baseline: {seed: {case: Dice}}."""
    seed = min(baseline)
    wanted = {row["case"] for row in rows if row["target"]}  # contours of nothing show nothing
    examples = []
    for percentile, name in choose_percentiles({case: baseline[seed][case] for case in wanted}):
        mine = [row for row in rows if row["case"] == name and row["seed"] == seed]
        files = {arm: run_folder(folder, arm, mine[0]["fold"], seed) / "predictions.npz" for arm in arms}
        if not all(file.exists() for file in files.values()):
            return []
        members = sorted((c for c in cases.cases if (c.volume or c.id) == name), key=lambda case: case.index)
        masks = [case.mask for case in members]
        largest = int(np.argmax([np.count_nonzero(mask) for mask in masks]))
        case, found = members[largest], {}
        for arm, file in files.items():
            with np.load(file) as kept:
                prediction = kept[name] if case.volume is None else kept[name][largest]
            found[arm] = prediction, float(np.mean([row["dice"] for row in mine if row["arm"] == arm]))
        row, column = case.spacing or (1, 1)
        example = {"image": case.image, "target": masks[largest], "aspect": row / column, "found": found}
        examples.append({"label": f"{percentile}th percentile\n{case.id}"} | example)
    return examples


def collect_generated(settings, cases):
    """Return what `save_generated` draws, from fold 0 of the generator's output."""
    folder = Path(settings.generated) / "fold0"
    by_case = {}
    for line in (json.loads(text) for text in (folder / "manifest.jsonl").read_text().splitlines()):
        by_case.setdefault(line["case"], []).append(line)
    names = list(by_case)
    chosen = [names[i] for i in np.linspace(0, len(names) - 1, min(COLUMNS, len(names))).astype(int)]
    columns = []
    for name in chosen:
        lines = sorted(by_case[name], key=lambda line: line["index"])[:SAMPLES]
        picture = Pictures([case for case in cases if case.id == name], lines[0]["size"])
        column = {"prompt": lines[0]["prompt"], "original": picture.image([0])[0, 0].numpy()}
        column["edge"] = decode(folder / "edges" / lines[0]["file"]) / 255
        column["mask"] = decode(folder / "masks" / lines[0]["file"])
        column["samples"] = [decode(folder / "images" / line["file"]) / 127.5 - 1 for line in lines]
        columns.append(column)
    return columns


def collect_curves(folder, arms):
    """Return {quantity: {arm: [(steps, values) of each run]}} from the runs' log.jsonl and validation.jsonl."""
    curves = {}
    for quantity, file, key in (
        ("training loss", "log.jsonl", "loss"),
        ("validation Dice", "validation.jsonl", "dice"),
    ):
        for arm in arms:
            for path in sorted((Path(folder) / arm.replace(" ", "_")).glob(f"fold*_seed*/{file}")):
                lines = [json.loads(text) for text in path.read_text().splitlines()]
                if lines:
                    run = [line["step"] for line in lines], [line[key] for line in lines]
                    curves.setdefault(quantity, {}).setdefault(arm, []).append(run)
    return curves


def run_folder(folder, arm, fold, seed):
    """Return where train_seg.py keeps one run."""
    return Path(folder) / arm.replace(" ", "_") / f"fold{fold}_seed{seed}"
