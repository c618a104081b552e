"""What a segmenter finds: Dice on the validation part, labels on the native grid, scores. A volume counts as one case."""

import io

import numpy as np
import torch

from emit.data.geometry import LINEAR, fit, unfit
from emit.evaluation.metrics import score_case, score_overlap
from emit.files import write_bytes


@torch.no_grad()
def find_labels(network, image, shape=None) -> np.ndarray:
    """Return the labels (H, W) of an image (1, 1, S, S) in [-1, 1]; the lowest number where scores tie.

    shape: (H, W), the native grid onto which the scores are resized before the labels are chosen; None: (S, S).
    """
    logits = network(image.to(next(network.parameters()).device))[0].cpu()  # (K, S, S)
    if shape is not None:
        logits = unfit(logits, shape)  # (K, H, W)
    return logits.argmax(0).numpy()


def group_volumes(cases) -> dict[str, list]:
    """Return {volume, or id of a flat picture: its cases}, the slices of a volume in order."""
    volumes = {}
    for case in cases:
        volumes.setdefault(case.volume or case.id, []).append(case)
    return {name: sorted(slices, key=lambda case: case.index) for name, slices in volumes.items()}


def validate(network, pictures) -> float:
    """Return the mean Dice over cases and classes at training size. pictures: `emit.data.cache.TrainingImages`, not empty."""
    network.eval()
    found = {}
    for i, case in enumerate(pictures.cases):
        image, mask = pictures.read([i])
        found.setdefault(case.volume or case.id, []).append((find_labels(network, image), mask[0].numpy()))
    network.train()
    pairs = [map(np.stack, zip(*slices, strict=True)) for slices in found.values()]
    classes = range(1, network.config.classes)
    return float(np.mean([score_overlap(a == k, b == k)["dice"] for a, b in pairs for k in classes]))


def predict(network, cases, size: int) -> dict[str, tuple]:
    """Segment cases on their native grid: {volume, or id of a flat picture: (labels, target, spacing)}.

    size: side S of the square that the network sees. Labels and target, as annotated: (H, W), of a volume (D, H, W).
    spacing: mm along each axis, or None. The target of a case without a mask is None.
    """
    found = {}
    for name, slices in group_volumes(cases).items():
        pairs, first = [], slices[0]
        for case in slices:
            image, target = case.load()
            pairs.append((find_labels(network, fit(image, size, LINEAR, -1.0)[None, None], image.shape), target))
        labels, target = map(np.stack, zip(*pairs, strict=True))  # (D, H, W)
        spacing = first.spacing and (first.thickness, *first.spacing)
        found[name] = (labels[0], target[0], first.spacing) if first.volume is None else (labels, target, spacing)
    return found


def score(predictions, classes, tolerance: float, fake_pixel: bool = False) -> list[dict]:
    """Return one row for each case and foreground class: "case" and what `score_case` returns. predictions: of `predict`."""
    return [
        {"case": name, **row}
        for name, (labels, target, spacing) in predictions.items()
        for row in score_case(labels, target, classes, spacing, tolerance, fake_pixel=fake_pixel)
    ]


def save_labels(path, predictions):
    """Write the labels that `predict` found to one compressed file, by volume or case id."""
    memory = io.BytesIO()
    np.savez_compressed(memory, **{name: labels.astype(np.uint8) for name, (labels, _, _) in predictions.items()})
    write_bytes(path, memory.getvalue())
