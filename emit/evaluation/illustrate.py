"""Which figures a finished run gets, and what is shown in them: chosen by rule, never by hand."""

import json
from pathlib import Path

import numpy as np

from emit.data.cache import TrainingImages
from emit.data.images import decode
from emit.evaluation.figures import costing_nothing, save_contours, save_curves, save_generated, save_paired
from emit.evaluation.scoring import group_volumes
from emit.evaluation.statistics import tabulate
from emit.generated import read_manifest

MOST_ARMS = 6  # in one figure of contours or curves
PERCENTILES = (10, 50, 90)  # of the baseline's Dice, for contours
COLUMNS, SAMPLES = 6, 3  # of the figure of generated images
CURVES = ("training loss", "log.jsonl", "loss"), ("validation Dice", "validation.jsonl", "dice")  # title, file, key
SHOWN = f"At most {MOST_ARMS} arms: baseline, best classical, then those with generated images."
CAPTIONS = {
    "Every case under every arm": "One line per case, its Dice averaged over seeds and classes: blue gains, vermilion loses. "
    "Boxes: quartiles; whiskers: the farthest case within 1.5 times their distance.",
    "Contours": "Cases at the 10th, 50th and 90th percentile of the baseline's Dice, first fold and seed, among those with a "
    f"target; of a volume, the slice with the largest target and the Dice of the whole volume. {SHOWN}",
    "Generated images": f"Fold 0, cases evenly spaced in the manifest, the first {SAMPLES} samples of each, used or not; the edge "
    "is the first's. Yellow: each image's own label.",
    "Learning curves": f"Mean over folds and seeds; the band is their range. {SHOWN}",
}


def illustrate(rows, results, labelled, settings) -> list[tuple[str, Path, str]]:
    """Draw each figure that the run folder has the material for into figures/; return [(title, path, caption)]."""
    arms = [arm for arm in ("baseline", results["best_classical"], *results["generated_arms"]) if arm][:MOST_ARMS]
    stamp = results["stamp"]
    paths = [settings.out / "figures" / f"{name}.png" for name in ("paired", "contours", "generated", "curves")]
    for path in paths:
        path.unlink(missing_ok=True)  # as drawn before a resume
    with costing_nothing(paths[0]):
        if len(results["arms"]) > 1:
            save_paired(paths[0], {arm: np.nanmean(values, axis=(0, 1)) for arm, values in tabulate(rows)[2].items()}, stamp)
    with costing_nothing(paths[1]):
        if examples := collect_examples(settings.out, arms, rows, labelled.cases):
            save_contours(paths[1], examples, labelled.classes, stamp)
    with costing_nothing(paths[2]):
        if settings.generated is not None:
            save_generated(paths[2], collect_generated(settings.generated / "fold0", labelled.cases), stamp)
    with costing_nothing(paths[3]):
        if curves := collect_curves(settings.out, arms):
            save_curves(paths[3], curves, stamp)
    return [(title, path, caption) for path, (title, caption) in zip(paths, CAPTIONS.items(), strict=True) if path.exists()]


def choose_percentiles(scores) -> dict[str, int]:
    """Return {case: percentile}: the case of rank p (n - 1) / 100, rounded half up, by score and then by name."""
    ranked = sorted(scores, key=lambda case: (scores[case], case))
    return {ranked[int(p * (len(ranked) - 1) / 100 + 0.5)]: p for p in PERCENTILES if ranked}


def collect_examples(folder, arms, rows, cases) -> list[dict]:
    """Return what `save_contours` draws."""
    first = {row["case"]: row["fold"] for row in reversed(rows)}  # a --test set is scored in every fold
    names, seeds, table = tabulate(row for row in rows if row["fold"] == first[row["case"]])
    fold_of = {row["case"]: first[row["case"]] for row in rows if row["target"]}  # contours of nothing show nothing
    dice = {arm: dict(zip(names, np.nanmean(table[arm], axis=0)[0].tolist(), strict=True)) for arm in arms}  # of the first seed
    examples = []
    for name, percentile in choose_percentiles({case: dice["baseline"][case] for case in fold_of}).items():
        slices = group_volumes(cases)[name]
        targets, found = [case.mask for case in slices], {}
        largest = int(np.argmax([np.count_nonzero(mask) for mask in targets]))
        case, target = slices[largest], targets[largest]
        for arm in arms:
            with np.load(run_folder(folder, arm, fold_of[name], seeds[0]) / "predictions.npz") as arrays:
                prediction = arrays[name].reshape(-1, *target.shape)[largest]  # (H, W)
            found[arm] = prediction, dice[arm][name]
        row, column = case.spacing or (1, 1)
        example = {"image": case.image, "target": target, "aspect": row / column, "found": found}
        examples.append({"label": f"{percentile}th percentile\n{case.id}"} | example)
    return examples


def collect_generated(folder, cases) -> list[dict]:
    """Return what `save_generated` draws, from one fold of the generator's output."""
    by_case, cases, columns = {}, {case.id: case for case in cases}, []
    for line in read_manifest(folder):
        by_case.setdefault(line["case"], []).append(line)
    names = list(by_case)
    for place in np.linspace(0, len(names) - 1, min(COLUMNS, len(names))).astype(int):
        lines = sorted(by_case[names[place]], key=lambda line: line["index"])[:SAMPLES]
        images, masks = ([decode(folder / kind / line["file"]) for line in lines] for kind in ("images", "masks"))
        prompt = lines[0]["prompt"]  # a text, or pairs of weight and text
        prompt = prompt if isinstance(prompt, str) else " + ".join(f"{weight:g} {text}" for weight, text in prompt)
        original, label = TrainingImages([cases[names[place]]], lines[0]["size"]).read([0])
        column = {"prompt": prompt, "edge": decode(folder / "edges" / lines[0]["file"]) / 255}
        pairs = [(image / 127.5 - 1, mask) for image, mask in zip(images, masks, strict=True)]
        columns.append(column | {"original": (original[0, 0].numpy(), label[0].numpy()), "samples": pairs})
    return columns


def collect_curves(folder, arms) -> dict[str, dict]:
    """Return {quantity: {arm: [(steps, values) of each run]}} from the runs' log.jsonl and validation.jsonl."""
    curves = {}
    for quantity, file, key in CURVES:
        for arm in arms:
            for path in sorted(folder.glob(str(run_folder("", arm, "*", "*") / file))):
                lines = [json.loads(text) for text in path.read_text().splitlines()]
                points = [(line["step"], line[key]) for line in lines if key in line]
                if points:  # none without validation cases
                    curves.setdefault(quantity, {}).setdefault(arm, []).append(tuple(zip(*points, strict=True)))
    return curves


def run_folder(folder, arm: str, fold, seed) -> Path:
    """Return where train_seg.py writes one run."""
    return Path(folder) / arm.replace(" ", "_") / f"fold{fold}_seed{seed}"
