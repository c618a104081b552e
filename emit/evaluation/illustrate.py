"""Which figures a finished run gets, and what is shown in them: chosen by rule, never by hand."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from emit.data.cache import TrainingImages
from emit.data.images import decode
from emit.evaluation.figures import attempt, save_contours, save_curves, save_generated, save_paired
from emit.evaluation.predict import group_volumes
from emit.evaluation.statistics import tabulate
from emit.generated import read_manifest

MOST_ARMS = 6  # in one figure of contours or curves
PERCENTILES = (10, 50, 90)
COLUMNS, SAMPLES = 6, 3  # of the figure of generated images
CURVES = ("training loss", "log.jsonl", "loss"), ("validation Dice", "validation.jsonl", "dice")  # title, file, key
SHOWN = f"At most {MOST_ARMS} arms: baseline, best classical, then those with generated images."
WORDS = {  # title and caption
    "paired": (
        "Every case under every arm",
        "One line per case, its Dice averaged over seeds and classes: blue gains, vermilion loses. Boxes: quartiles; "
        "whiskers: the farthest case within 1.5 times their distance.",
    ),
    "contours": (
        "Contours",
        "Cases at the 10th, 50th and 90th percentile of the baseline's Dice, first seed, among those with a target; "
        f"of a volume, the slice with the largest target and the Dice of the whole volume. {SHOWN}",
    ),
    "generated": (
        "Generated images",
        f"Fold 0, cases evenly spaced in the manifest, the first {SAMPLES} samples of each. Yellow: the label.",
    ),
    "curves": ("Learning curves", f"Mean over folds and seeds; the band is their range. {SHOWN}"),
}


def illustrate(folder, scores, rows, results, labelled, settings) -> list[tuple[str, Path, str]]:
    """Draw each figure that the run folder has the material for into figures/; return [(title, path, caption)].

    scores: {arm: {seed: {case: Dice}}}. A figure that cannot be drawn is left out, with a line that says why.
    """
    shown = choose_shown(results)
    names, _, table = tabulate(scores)
    means = {arm: dict(zip(names, values.mean(axis=0), strict=True)) for arm, values in table.items()}
    contours = partial(save_contours, classes=labelled.classes)
    figures = {
        "paired": (lambda: means, save_paired),
        "contours": (partial(collect_examples, folder, shown, scores["baseline"], rows, labelled), contours),
        "generated": (partial(collect_generated, settings, labelled.cases), save_generated),
        "curves": (partial(collect_curves, folder, shown), save_curves),
    }
    paths = {name: Path(folder) / "figures" / f"{name}.png" for name in figures}
    drawn = [name for name, figure in figures.items() if attempt(paths[name], *figure, results["stamp"])]
    return [(WORDS[name][0], paths[name], WORDS[name][1]) for name in drawn]


def choose_shown(results) -> list[str]:
    """Return the arms of figures that cannot hold all: baseline, best classical, then those with generated images."""
    return [arm for arm in ("baseline", results["best_classical"], *results["generated_arms"]) if arm][:MOST_ARMS]


def choose_percentiles(scores) -> list[tuple[int, str]]:
    """Return [(percentile, case)]: the case of rank p (n - 1) / 100, rounded half up, by score and then by name.

    A case that two percentiles ask for is given once.
    """
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    chosen = {}
    for percentile in PERCENTILES if ranked else ():
        chosen.setdefault(ranked[int(percentile * (len(ranked) - 1) / 100 + 0.5)], percentile)
    return [(percentile, case) for case, percentile in chosen.items()]


def collect_examples(folder, arms, baseline, rows, labelled) -> list[dict]:
    """Return what `save_contours` draws; nothing where a run has no predictions. baseline: {seed: {case: Dice}}."""
    seed, examples = min(baseline), []
    wanted = {row["case"] for row in rows if row["target"]}  # contours of nothing show nothing
    for percentile, name in choose_percentiles({case: baseline[seed][case] for case in wanted}):
        mine = [row for row in rows if row["case"] == name and row["seed"] == seed]
        files = {arm: run_folder(folder, arm, mine[0]["fold"], seed) / "predictions.npz" for arm in arms}
        if not all(file.exists() for file in files.values()):
            return []
        slices = [(case, case.mask) for case in group_volumes(labelled.cases)[name]]
        largest = int(np.argmax([np.count_nonzero(mask) for _, mask in slices]))
        (case, target), found = slices[largest], {}
        for arm, file in files.items():
            with np.load(file) as arrays:
                prediction = arrays[name] if case.volume is None else arrays[name][largest]
            found[arm] = prediction, float(np.mean([row["dice"] for row in mine if row["arm"] == arm]))
        row, column = case.spacing or (1, 1)
        example = {"image": case.image, "target": target, "aspect": row / column, "found": found}
        examples.append({"label": f"{percentile}th percentile\n{case.id}"} | example)
    return examples


def collect_generated(settings, cases) -> list[dict]:
    """Return what `save_generated` draws, from fold 0 of the generator's output; nothing without it."""
    if settings.generated is None:
        return []
    folder, by_case = Path(settings.generated) / "fold0", {}
    for line in read_manifest(folder):
        by_case.setdefault(line["case"], []).append(line)
    names, columns = list(by_case), []
    for place in np.linspace(0, len(names) - 1, min(COLUMNS, len(names))).astype(int):
        lines = sorted(by_case[names[place]], key=lambda line: line["index"])[:SAMPLES]
        first, original = lines[0], [case for case in cases if case.id == names[place]]
        samples = [decode(folder / "images" / line["file"]) / 127.5 - 1 for line in lines]
        edge, mask = (decode(folder / kind / first["file"]) for kind in ("edges", "masks"))
        original = TrainingImages(original, first["size"]).image([0])[0, 0].numpy()
        prompt = first["prompt"]  # a text, or pairs of weight and text
        prompt = prompt if isinstance(prompt, str) else " + ".join(f"{weight:g} {text}" for weight, text in prompt)
        column = {"prompt": prompt, "original": original, "edge": edge / 255, "mask": mask, "samples": samples}
        columns.append(column)
    return columns


def collect_curves(folder, arms) -> dict[str, dict]:
    """Return {quantity: {arm: [(steps, values) of each run]}} from the runs' log.jsonl and validation.jsonl."""
    curves = {}
    for quantity, file, key in CURVES:
        for arm in arms:
            for path in sorted(Path(folder).glob(str(run_folder("", arm, "*", "*") / file))):
                lines = [json.loads(text) for text in path.read_text().splitlines()]
                points = [(line["step"], line[key]) for line in lines if key in line]
                if points:  # none without validation cases
                    curves.setdefault(quantity, {}).setdefault(arm, []).append(tuple(zip(*points, strict=True)))
    return curves


def run_folder(folder, arm: str, fold, seed) -> Path:
    """Return where train_seg.py writes one run."""
    return Path(folder) / arm.replace(" ", "_") / f"fold{fold}_seed{seed}"
